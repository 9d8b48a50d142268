"""Reading `.pth` files: allowed content is read, other content is refused, and no code runs."""

from __future__ import annotations

import base64
import collections
import functools
import io
import os
import pickle
import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from priorkit.pipeline.errors import InputError
from priorkit.prior.interchange.pth import StandIn, read_pth, version_text

PICKLED_VERSIONS = {
    "21.3": (
        "gAJjcGFja2FnaW5nLnZlcnNpb24KVmVyc2lvbgpxACmBcQF9cQIoWAgAAABfdmVyc2lvbnEDY3BhY2thZ2luZy52ZXJzaW9uCl9W"
        "ZXJzaW9uCnEEKEsASwBLF0sKh3EFTk5OTnRxBoFxB1gEAAAAX2tleXEIKEsASwBLF0sKh3EJY3BhY2thZ2luZy5fc3RydWN0dXJl"
        "cwpJbmZpbml0eVR5cGUKcQopgXELY3BhY2thZ2luZy5fc3RydWN0dXJlcwpOZWdhdGl2ZUluZmluaXR5VHlwZQpxDCmBcQ1oC2gN"
        "dHEOdWIu"
    ),
    "26.0": (
        "gAJjcGFja2FnaW5nLnZlcnNpb24KVmVyc2lvbgpxACmBcQFOfXECKFgEAAAAX2RldnEDTlgGAAAAX2Vwb2NocQRLAFgKAAAAX2tl"
        "eV9jYWNoZXEFKEsASwBLF0sKh3EGY3BhY2thZ2luZy5fc3RydWN0dXJlcwpJbmZpbml0eVR5cGUKcQcpgXEIY3BhY2thZ2luZy5f"
        "c3RydWN0dXJlcwpOZWdhdGl2ZUluZmluaXR5VHlwZQpxCSmBcQpoCGgKdHELWAYAAABfbG9jYWxxDE5YBQAAAF9wb3N0cQ1OWAQA"
        "AABfcHJlcQ5OWAgAAABfcmVsZWFzZXEPaAZ1hnEQYi4="
    ),
    "26.3": ("gAJjcGFja2FnaW5nLnZlcnNpb24KVmVyc2lvbgpxACmBcQEoSwBLAEsXSwqHcQJOTk5OdHEDYi4="),
}
"""`packaging.version.parse("0.23.10")` of releases of packaging, pickled by protocol 2."""


def save(path: Path, content: Any, **options: Any) -> str:
    torch.save(content, path, **options)
    return str(path)


@pytest.fixture(params=["zip", "legacy"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], str]:
    """Save an object in torch's current format, or in the format before 1.6."""

    def write(content: Any) -> str:
        return save(tmp_path / "a.pth", content, _use_new_zipfile_serialization=request.param == "zip")

    return write


def test_tensors_and_plain_values_are_read(write: Callable[[Any], str]) -> None:
    content = {
        "a": torch.arange(6.0).view(2, 3), "b": {"c": [1, 2.5, None, True, "text"]}, 3: (4, 5),
        "d": collections.OrderedDict(e=torch.ones(2, dtype=torch.float16)), "f": torch.nn.Parameter(torch.ones(3)),
        "set": {1, 2},
    }  # fmt: skip
    found = read_pth(write(content))
    assert torch.equal(found["a"], content["a"])
    assert found["b"] == content["b"]
    assert found[3] == (4, 5)
    assert found["d"]["e"].dtype == torch.float16
    assert torch.equal(found["f"], content["f"])
    assert found["set"] == {1, 2}


@pytest.mark.parametrize("url", ["memory://checkpoints/a.pth", "file://{tmp}/a.pth"])
def test_a_file_anywhere_is_read(url: str, tmp_path: Path) -> None:
    url = url.format(tmp=tmp_path)
    with fsspec.open(url, "wb") as file:
        torch.save({"a": torch.ones(3)}, file)
    assert torch.equal(read_pth(url)["a"], torch.ones(3))


def test_an_optimiser_with_its_states_is_a_stand_in(write: Callable[[Any], str]) -> None:
    """A pickled warmup holds an optimiser, whose `defaultdict` of states by weight must be filled."""
    weight = torch.nn.Parameter(torch.ones(3))
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        optimiser = kind([weight])
        weight.sum().backward()
        optimiser.step()
        found = read_pth(write({"optimiser": optimiser}))["optimiser"]
        assert isinstance(found, StandIn)
        assert set(found.values["defaults"]) >= {"lr", "betas"}
        assert list(next(iter(found.values["state"].values()))) == ["step", "exp_avg", "exp_avg_sq"]


def test_numpy_scalars_are_stand_ins(write: Callable[[Any], str]) -> None:
    found = read_pth(write({"best_validation_loss": np.float64(0.5), "b": np.float32(1), "a": torch.ones(1)}))
    assert isinstance(found["best_validation_loss"], StandIn)
    assert torch.equal(found["a"], torch.ones(1))


class Hostile:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class SetsState:
    """Pickles as an object of a class that may be imported, which would run on `__setstate__`."""

    def __setstate__(self, state: Any) -> None:
        Path(state["path"]).touch()

    def __getstate__(self) -> Any:
        return self.__dict__


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that an unpickler could import."""
    module = types.ModuleType("a_module_of_the_attacker")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(SetsState, "__module__", module.__name__)
    module.SetsState = SetsState  # type: ignore[attr-defined]
    return module


def attacks(marker: Path) -> dict[str, tuple[Any, str]]:
    """Return objects that would touch the marker when unpickled, with the name that the error must show."""
    sets_state = SetsState()
    sets_state.path = str(marker)  # type: ignore[attr-defined]
    return {
        "system": (Hostile(os.system, f"touch {marker}"), "posix.system"),
        "eval": (Hostile(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        "mkdir": (Hostile(Path.mkdir, marker), "getattr"),
        "class": (sets_state, "a_module_of_the_attacker.SetsState"),
        "copy": (Hostile(shutil.copyfile, __file__, str(marker)), "shutil.copyfile"),
        "partial": (functools.partial(os.mkdir, str(marker)), "functools.partial"),
    }


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("nested", ["value", "key", "list", "inside a stand-in", "arguments of a stand-in", "alone"])
@pytest.mark.parametrize("attack", ["system", "eval", "mkdir", "class", "copy", "partial"])
def test_code_in_a_file_is_refused_and_named(
    attack: str, nested: str, write: Callable[[Any], str], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    hostile, name = attacks(marker)[attack]
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    optimiser.defaults["more"] = hostile
    content = {
        "value": {"model": {}, "version": hostile},
        "key": {(hostile,): 1},
        "list": {"a": [1, [hostile]]},
        "inside a stand-in": {"warmup_scheduler": optimiser},
        "arguments of a stand-in": {"a": Hostile(collections.defaultdict, dict, {1: hostile})},
        "alone": hostile,
    }[nested]
    if nested == "key" and attack == "class":
        hostile.__class__.__hash__ = object.__hash__
    path = write(content)
    with pytest.raises(InputError, match=rf"a\.pth: holds {name}, which is not among .* nothing of it was run"):
        read_pth(path)
    assert not marker.exists()


def test_the_attacks_are_real(importable: types.ModuleType, tmp_path: Path) -> None:
    """Python's pickle runs them."""
    for attack in ("system", "mkdir", "class", "copy"):
        marker = tmp_path / attack
        pickle.loads(pickle.dumps(attacks(marker)[attack][0]))
        assert marker.exists(), attack


def test_a_stand_in_is_only_built_by_its_own_name(write: Callable[[Any], str]) -> None:
    with pytest.raises(InputError, match=r"collections\.deque, which is not among"):
        read_pth(write({"a": collections.deque([1])}))
    with pytest.raises(InputError, match=r"torch\.optim\.sgd.SGD, which is not among"):
        read_pth(write({"a": torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])}))


def test_reading_leaves_no_name_allowed_in_torch(write: Callable[[Any], str]) -> None:
    path = write({"optimiser": torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])})
    before = torch.serialization.get_safe_globals()
    read_pth(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_no_environment_variable_makes_it_unsafe(
    write: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = write({"a": attacks(tmp_path / "marker")["system"][0]})
    with pytest.raises(InputError, match=r"holds posix\.system"):
        read_pth(path)
    assert not (tmp_path / "marker").exists()


def legacy(content: Any) -> bytes:
    written = io.BytesIO()
    torch.save(content, written, _use_new_zipfile_serialization=False)
    return written.getvalue()


def archive(content: Any = None) -> bytes:
    written = io.BytesIO()
    torch.save({"a": torch.ones(50)} if content is None else content, written)
    return written.getvalue()


def other_zip() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("notes.txt", "no checkpoint")
    return written.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"PK\x03\x04", b"\x80", b"\x80\x02.", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        b"<!DOCTYPE html><html>not found</html>", other_zip(), b"prefix" + archive(), archive()[:300],
        archive()[:-10], legacy({"a": torch.ones(50)})[:-20], legacy({"a": torch.ones(50)})[:40],
        pickle.dumps({"a": 1}, protocol=0), b"(lp0\n.", os.urandom(64), b"\0" * 600,
    ],
    ids=[
        "empty", "zip magic", "one byte", "no object", "git lfs pointer", "html", "another zip", "prefixed", "cut",
        "end cut", "legacy end cut", "legacy cut", "protocol 0", "text pickle", "noise", "zeros",
    ],
)  # fmt: skip
def test_files_that_are_not_checkpoints_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(data)
    fsspec.filesystem("memory").pipe("/a.pth", data)
    for path in (str(tmp_path / "a.pth"), "memory://a.pth"):
        with pytest.raises(
            InputError, match=r"a\.pth: cannot be read as a checkpoint; is the file whole\? \(.+\)$"
        ) as e:
            read_pth(path)
        assert "will likely succeed" not in str(e.value)  # torch's advice to read it unsafely is none of ours
        assert "\n" not in str(e.value)


def test_any_damage_gives_a_clear_error_or_none(tmp_path: Path) -> None:
    """Bytes are changed anywhere in the pickle."""
    data = legacy({"a": torch.ones(3), "b": {"c": [1, 2.5, "text"]}, "d": collections.OrderedDict(e=(1, 2))})
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            damaged[random.integers(len(damaged))] = int(random.integers(256))
        (tmp_path / "a.pth").write_bytes(damaged)
        try:
            read_pth(str(tmp_path / "a.pth"))
        except InputError:
            refused += 1
        except Warning:
            pass
    assert refused > 100


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), 5, "text", None])
def test_content_that_is_not_a_dictionary_is_refused(content: Any, write: Callable[[Any], str]) -> None:
    with pytest.raises(InputError, match=rf"holds a {type(content).__name__}, not the dictionary of a checkpoint"):
        read_pth(write(content))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "a.pth", tmp_path / "no/a.pth", tmp_path / "file/a.pth", "memory://nothing/a.pth"):
        with pytest.raises(InputError, match=r"a\.pth: no such file"):
            read_pth(str(path))
    with pytest.raises(InputError, match=r"folder\.pth: a folder, not a checkpoint"):
        read_pth(str(tmp_path / "folder.pth"))
    with pytest.raises(InputError, match=r"nothing://a\.pth: .*use a local path or an fsspec URL"):
        read_pth("nothing://a.pth")


@pytest.mark.parametrize("packaging", PICKLED_VERSIONS)
def test_versions_of_all_releases_of_packaging_are_read(packaging: str, tmp_path: Path) -> None:
    pickled = base64.b64decode(PICKLED_VERSIONS[packaging])
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}X\x07\0\0\0version" + pickled[2:-1] + b"s.")  # in a dictionary
        file.writestr("a/version", "3\n")
    version = read_pth(str(tmp_path / "a.pth"))["version"]
    assert isinstance(version, StandIn)
    assert version_text(version, "a.pth") == "0.23.10"


def test_a_version_as_text_or_none() -> None:
    assert version_text("1.15.6", "a.pth") == "1.15.6"
    assert version_text(None, "a.pth") is None


@pytest.mark.parametrize("value", [3, (1, 15, 6), {}, StandIn(), StandIn(1, 2), StandIn(1, ()), StandIn(None, {})])
def test_a_version_of_another_kind_is_named(value: Any) -> None:
    with pytest.raises(InputError, match=r"a\.pth: its version is of an unknown kind .*give function_version="):
        version_text(value, "a.pth")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(InputError, match="a pointer of Git LFS, not the file; run `git lfs pull`"):
        read_pth(str(tmp_path / "a.pth"))
