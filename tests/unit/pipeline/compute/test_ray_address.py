"""Addresses of Ray clusters, and the checks before joining one."""

from __future__ import annotations

import platform
import socket
from pathlib import Path

import pytest

from priorkit.pipeline.compute import ray_address
from priorkit.pipeline.compute.ray_address import (
    ClusterAddress,
    cluster_address,
    described_authentication,
    explain_failure,
    find_running,
    find_token,
    own_environment,
    require_cluster,
)
from priorkit.pipeline.compute.ray_probe import Answer
from priorkit.pipeline.errors import PriorkitError


@pytest.fixture(autouse=True)
def _no_ray_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "variable", "expected"),
    [
        (None, "", ("local", "")),
        (None, "h:6379", ("h:6379", "RAY_ADDRESS")),
        (None, "auto", ("auto", "RAY_ADDRESS")),
        (None, "local", ("local", "RAY_ADDRESS")),
        ("auto", "", ("auto", "compute.address")),
        ("auto", "ray://h:10001", ("ray://h:10001", "RAY_ADDRESS")),
        ("local", "h:6379", ("local", "compute.address")),
        ("[::1]:6379", "h:6379", ("[::1]:6379", "compute.address")),
    ],
)
def test_the_setting_or_the_variable_names_a_cluster(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, variable: str, expected: tuple[str, str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(setting) == ClusterAddress(*expected)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("head", "known forms are HOST:6379"),
        ("ray://head", "known forms"),
        ("::1:6379", "known forms"),
        ("h:99999", "no port 99999"),
        ("http://h:8265", "Ray's dashboard"),
        ("ssh://h:22", "known forms"),
    ],
)
def test_an_address_of_another_form_is_refused(address: str, said: str) -> None:
    with pytest.raises(PriorkitError, match=rf"cannot join Ray at compute\.address='{address}': .*{said}"):
        cluster_address(address)


def test_the_description_names_the_cluster() -> None:
    assert ClusterAddress("local", "").described() == "on this machine"
    assert ClusterAddress("h:1", "RAY_ADDRESS").described() == "at h:1 (RAY_ADDRESS)"


def test_the_error_for_a_closed_port_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for source, way_out in (("RAY_ADDRESS", "unset RAY_ADDRESS"), ("compute.address", "leave the address out")):
            with pytest.raises(PriorkitError, match=f"{source}='{address}'.*ray start --head.*{way_out}"):
                require_cluster(ClusterAddress(address, source), "1.0")
        with pytest.raises(PriorkitError, match="no cluster runs on this machine"):
            find_running(ClusterAddress("auto", "compute.address"), {address: True})


def test_a_token_is_searched_in_the_order_of_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_token() == (None, "~/.ray/auth_token")
    assert described_authentication() == "RAY_AUTH_MODE not set, no token"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of-home\n")
    assert find_token() == ("of-home", "~/.ray/auth_token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert find_token() == (None, f"RAY_AUTH_TOKEN_PATH={tmp_path / 'none'}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert find_token() == ("given", "RAY_AUTH_TOKEN")
    assert "given" not in described_authentication()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", "/proc/nohome")
    assert find_token()[0] is None


def test_a_cluster_of_our_own_gets_a_new_token(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = own_environment(), own_environment()
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) >= 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "RAY_AUTH_TOKEN" not in own_environment()


@pytest.mark.parametrize("name", ["RAY_worker_niceness", "RAY_prestart_worker_first_driver"])
def test_workers_of_our_own_cluster_have_normal_priority_and_start_when_needed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    assert own_environment()[name] == "0"
    monkeypatch.setenv(name, "7")
    assert own_environment()[name] == "7"


@pytest.mark.parametrize(
    ("mode", "token", "is_ours", "said"),
    [
        ("", "", False, r"asks for a token .*none here; set RAY_AUTH_MODE=token .*auth_token"),
        ("", "good", False, r"RAY_AUTH_MODE=token sends it the one in RAY_AUTH_TOKEN"),
        ("", "bad", True, r"refuses the token in RAY_AUTH_TOKEN"),
        ("token", "bad", False, r"refuses the token in RAY_AUTH_TOKEN"),
        ("disabled", "good", False, r"RAY_AUTH_MODE=disabled here"),
    ],
)
def test_a_cluster_that_asks_for_a_token_is_explained(
    monkeypatch: pytest.MonkeyPatch, mode: str, token: str, is_ours: bool, said: str
) -> None:
    def refuse(host: str, port: int, question: object, token: str | None = None) -> Answer:
        return Answer(0) if token == "good" else Answer(16)

    monkeypatch.setattr(ray_address, "ask", refuse)
    for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", token)):
        if value:
            monkeypatch.setenv(name, value)
    with pytest.raises(PriorkitError, match=said):
        require_cluster(ClusterAddress("h:6379", "compute.address"), "1.0", is_ours=is_ours)


def test_only_a_cluster_of_this_user_gets_the_token_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "ask", lambda host, port, question, token=None: Answer(0 if token else 16))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    place = ClusterAddress("h:6379", "compute.address=auto")
    assert require_cluster(place, "1.0", is_ours=True) == {"RAY_AUTH_MODE": "token"}
    with pytest.raises(PriorkitError, match=r"compute\.address=auto \(h:6379\)"):
        require_cluster(place, "1.0")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ('{"ray_version": "0.9", "python_version": "%s"}', "runs Ray 0.9 on Python"),
        ('{"ray_version": "1.0", "python_version": "2.7.1"}%.0s', r"Ray 1.0 on Python 2\.7\.1, this process Ray 1\.0"),
    ],
)
def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch, metadata: str, said: str) -> None:
    body = (metadata % platform.python_version()).encode()
    monkeypatch.setattr(ray_address, "ask", lambda host, port, question, token=None: Answer(0, body))
    with pytest.raises(PriorkitError, match=said):
        require_cluster(ClusterAddress("h:6379", "compute.address"), "1.0")


def test_auto_ignores_clusters_that_commands_started_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = {1: b'{"ray_init_cluster": true}', 2: b'{"ray_init_cluster": false}', 3: b"{}"}
    monkeypatch.setattr(ray_address, "ask", lambda host, port, question, token=None: Answer(0, bodies[port]))
    place = ClusterAddress("auto", "compute.address")
    assert find_running(place, {"h:1": True, "h:2": False})[0].address == "h:2"
    with pytest.raises(PriorkitError, match=r"several clusters run on this machine \(h:2, h:3\)"):
        find_running(place, {"h:1": True, "h:2": True, "h:3": False})
    with pytest.raises(PriorkitError, match="no cluster runs on this machine"):
        find_running(place, {"h:1": True})


def test_an_error_of_ray_is_cut_to_its_first_and_last_line() -> None:
    assert explain_failure("") == "Ray gives no reason"
    assert explain_failure("a:\n  File x\n b") == "a: b"
    assert explain_failure("Version mismatch: was:\n Ray: 1\n Python: 3") == "Version mismatch: was: Ray: 1 Python: 3"
