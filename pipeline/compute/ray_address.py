"""Address of the Ray cluster that a command uses, and checks of the cluster's version and token before joining it.

This module never imports Ray.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import PriorkitError
from .ray_probe import CLIENT_SERVER, HEAD, OK, UNAUTHENTICATED, UNIMPLEMENTED, Answer, ask

AUTO, LOCAL = "auto", "local"

_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})/?")
_FORMS = "known forms are HOST:6379, ray://HOST:10001, [IPv6]:6379, auto and local"
_TOKEN_FILE = Path("~/.ray/auth_token")
_OWN_SETTINGS = {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0"}
"""Environment variables with Ray's settings for a cluster that priorkit starts, used unless the user has set them.

At Ray's default nice value of 15, one busy process of another program on the same core would leave a worker almost no
CPU time. By default, Ray also starts one worker for each CPU core before any is needed. Most of these would stay idle,
and training cannot use them, because its workers have environment variables of their own.
"""


@dataclass(frozen=True)
class ClusterAddress:
    """Address of the Ray cluster that a command uses, and the name of the setting or variable that specifies it."""

    address: str
    """Address in Ray's notation: `host:port`, `ray://host:port` or `auto`; `local` for a cluster that priorkit
    starts."""
    source: str
    """Name of the setting or environment variable that specifies the address: `compute.address` or `RAY_ADDRESS`; empty
    if neither is set. If the address was given as `auto`, and a running cluster was found, `=auto` is appended to the
    name, as in `RAY_ADDRESS=auto`."""

    @property
    def is_own(self) -> bool:
        """True if priorkit starts the cluster for the command and stops it afterwards."""
        return self.address == LOCAL

    def described(self) -> str:
        """Return the location of the cluster as text for summaries, such as `at head:6379 (RAY_ADDRESS)`."""
        if self.is_own:
            return "on this machine" + (f" ({self.source}=local)" if self.source else "")
        return f"at {self.address} ({self.source})"

    @property
    def way_out(self) -> str:
        """Advice for error messages on how to run without this cluster, such as `unset RAY_ADDRESS`."""
        return "unset RAY_ADDRESS" if self.source.startswith("RAY_ADDRESS") else "leave the address out"

    def error(self, problem: str) -> PriorkitError:
        """Return an exception whose message says which cluster cannot be joined, and why."""
        named = f"{self.source} ({self.address})" if "=" in self.source else f"{self.source}={self.address!r}"
        return PriorkitError(f"cannot join Ray at {named}: {problem}")


def cluster_address(address: str | None) -> ClusterAddress:
    """Return the address of the Ray cluster to use, from `compute.address` or the environment variable `RAY_ADDRESS`.

    If neither is set, return the address `local`, which stands for a cluster that priorkit starts on this machine.

    Args:
        address: value of the setting `compute.address`; None if it is not set. If it is None or `auto`, and
            `RAY_ADDRESS` is set, the value of `RAY_ADDRESS` is used instead. Ray follows the same rule, and sets
            `RAY_ADDRESS` for the jobs that it runs.

    Raises:
        PriorkitError: the address has an unknown form or an invalid port.
    """
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if named and address in (None, AUTO):
        place = ClusterAddress(named, "RAY_ADDRESS")
    elif address is None:
        return ClusterAddress(LOCAL, "")
    else:
        place = ClusterAddress(address, "compute.address")
    if place.address not in (AUTO, LOCAL) and (match := _ADDRESS.fullmatch(place.address)) is None:
        if place.address.startswith(("http://", "https://")):
            raise place.error(f"that is the address of Ray's dashboard, for its jobs; {_FORMS}")
        raise place.error(_FORMS)
    if place.address not in (AUTO, LOCAL) and match is not None and not 0 < int(match["port"]) < 65536:
        raise place.error(f"there is no port {match['port']}")
    return place


def find_running(place: ClusterAddress, candidates: Mapping[str, bool]) -> tuple[ClusterAddress, bool]:
    """Find the running Ray cluster that the address `auto` refers to.

    A request is sent to each candidate. Candidates that cannot be reached are ignored, and so are clusters that another
    command started for itself with `ray.init`. If exactly one cluster accepts the request, that cluster is returned. If
    none accepts it, but exactly one refuses it because the authentication token is missing or wrong, that one is
    returned.

    Args:
        place: the address `auto`, and the name of the setting or variable that specifies it.
        candidates: addresses of clusters on this machine. Each is mapped to True if this user runs a Ray process that
            uses the address, otherwise to False. The addresses come from the command lines of Ray processes. Ray's
            address file is not used, because it remains after a cluster has stopped.

    Returns:
        Address of the cluster, and True if this user runs one of its processes, otherwise False.

    Raises:
        PriorkitError: no running cluster was found, or more than one was found.
    """
    accessible, closed = [], []
    for address, is_ours in sorted(candidates.items()):
        if (match := _ADDRESS.fullmatch(address)) is None:
            continue
        try:
            answer, _ = _ask_with_token(match, HEAD, is_ours)
        except OSError:
            continue
        # skip clusters that another command started for itself, since they end with that command
        if answer.status == OK and not answer.metadata().get("ray_init_cluster"):
            accessible.append(address)
        elif answer.status == UNAUTHENTICATED:
            closed.append(address)
    running = accessible or closed
    if not running:
        raise place.error(f"no cluster runs on this machine; start it with `ray start --head`, or {place.way_out}")
    if len(running) > 1:
        raise place.error(f"several clusters run on this machine ({', '.join(running)}); name the one to join")
    return ClusterAddress(running[0], f"{place.source}=auto"), candidates[running[0]]


def require_cluster(place: ClusterAddress, version: str, *, is_ours: bool = False) -> dict[str, str]:
    """Check that this process may join a cluster, and return the environment variables that Ray needs to join it.

    Args:
        place: address of the cluster.
        version: Ray version in this process.
        is_ours: True if `auto` found the cluster among this user's processes. The user's token is sent to any other
            cluster only if `RAY_AUTH_MODE=token` is set, because that cluster may belong to someone else.

    Raises:
        PriorkitError: no service answers at the address, or the service there is not Ray; the address lacks the
            `ray://` prefix that its port needs, or has the prefix although its port does not support it; the cluster's
            Ray or Python version differs from this process's version; the token is missing or refused; or the address
            begins with `ray://` and grpcio is not installed.
    """
    match = _ADDRESS.fullmatch(place.address)
    assert match is not None
    mode = _mode()
    token, origin = find_token()
    question, other = (CLIENT_SERVER, HEAD) if match["client"] else (HEAD, CLIENT_SERVER)
    try:
        answer, environment = _ask_with_token(match, question, is_ours)
        if answer.status == UNIMPLEMENTED and _ask(match, other, None).status != UNIMPLEMENTED:
            raise place.error(
                "that is the port of the cluster's head; leave out ray://"
                if match["client"]
                else f"that is the port of Ray's client server; write ray://{place.address}"
            )
    except OSError as error:
        raise place.error(f"{error}; start it there with `ray start --head`, or {place.way_out}") from None
    if answer.status is None:
        raise place.error(f"what listens there is not Ray: {answer.shown()}; the port of a head is 6379 by default")
    if answer.status == UNIMPLEMENTED:
        raise place.error("what listens there speaks gRPC, but is not Ray; the port of a head is 6379 by default")
    if answer.status == UNAUTHENTICATED and mode in ("", "token", "disabled"):
        raise place.error(_token_problem(mode or environment.get("RAY_AUTH_MODE", ""), token, origin))
    if mode == "token" and token is None:
        raise place.error(f"RAY_AUTH_MODE=token, but there is no token here ({_ways()}); the cluster asks for none")
    if match["client"]:
        if importlib.util.find_spec("grpc") is None:
            raise place.error('ray:// needs grpcio: pip install "ray[client]"')
    elif answer.status == OK:
        _require_versions(place, answer, version)
    return environment


def own_environment() -> dict[str, str]:
    """Return the environment variables for a cluster that priorkit starts on this machine.

    Unless RAY_AUTH_MODE turns tokens off, the variables include a new token that protects the cluster. By default, Ray
    would write a token to the user's home folder, or start the cluster without a token.

    The variables also include `_OWN_SETTINGS`, unless the user has set other values.
    """
    environment = {name: os.environ.get(name, value) for name, value in _OWN_SETTINGS.items()}
    if _mode() in ("", "token"):
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return environment


def find_token() -> tuple[str | None, str]:
    """Return the authentication token that Ray would send, and a description of its location, such as `RAY_AUTH_TOKEN`.

    The locations are searched in the same order as in Ray. If there is no token, return None and the last location
    searched.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH", "").strip():
        return _read_token(Path(path)), f"RAY_AUTH_TOKEN_PATH={path}"
    try:
        return _read_token(_TOKEN_FILE.expanduser()), str(_TOKEN_FILE)
    except RuntimeError:  # the user has no home folder
        return None, str(_TOKEN_FILE)


def described_authentication() -> str:
    """Return the authentication mode and the token's location as text, without the token itself.

    An example of the text is `RAY_AUTH_MODE token, token in RAY_AUTH_TOKEN`.
    """
    token, origin = find_token()
    mode = os.environ.get("RAY_AUTH_MODE", "").strip() or "not set"
    return f"RAY_AUTH_MODE {mode}, " + (f"token in {origin}" if token else "no token")


def _read_token(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _mode() -> str:
    return os.environ.get("RAY_AUTH_MODE", "").strip().lower()


def _ask_with_token(match: re.Match[str], question: tuple[str, bytes], is_ours: bool) -> tuple[Answer, dict[str, str]]:
    """Send a request to a cluster, with this user's authentication token if necessary, and return the answer.

    If RAY_AUTH_MODE is `token`, the request contains the token. If RAY_AUTH_MODE is not set, the request is first sent
    without the token. If the cluster then asks for a token and `is_ours` is True, the request is sent again with the
    token.

    Args:
        match: match of the regular expression `_ADDRESS` with the cluster's address.
        question: pair of gRPC method path and serialized request, for example the constant `HEAD`.
        is_ours: True if the token may be sent even when RAY_AUTH_MODE is not set.

    Returns:
        The cluster's answer, and the environment variables that must be set so that Ray also sends the token. The
        dictionary is empty if no variable needs to be changed.
    """
    token, mode = find_token()[0], _mode()
    answer = _ask(match, question, token if mode == "token" else None)
    if answer.status == UNAUTHENTICATED and not mode and token and is_ours:
        return _ask(match, question, token), {"RAY_AUTH_MODE": "token"}
    return answer, {}


def _token_problem(mode: str, token: str | None, origin: str) -> str:
    needed = "the cluster asks for a token (Ray's token authentication)"
    if mode == "disabled":
        return f"{needed}, but RAY_AUTH_MODE=disabled here; set RAY_AUTH_MODE=token and give its token ({_ways()})"
    if token is None:
        return f"{needed}, and there is none here; set RAY_AUTH_MODE=token and give its token ({_ways()})"
    if mode == "token":
        return f"the cluster refuses the token in {origin}; give the one that `ray get-auth-token` prints on its head"
    return f"{needed}; RAY_AUTH_MODE=token sends it the one in {origin}"


def _ways() -> str:
    return f"RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or {_TOKEN_FILE} as on the cluster's head"


def _require_versions(place: ClusterAddress, answer: Answer, version: str) -> None:
    metadata = answer.metadata()
    ray_version = str(metadata.get("ray_version", version))
    python_version = str(metadata.get("python_version", platform.python_version()))
    parts = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    same_python = python_version.split(".")[:parts] == platform.python_version().split(".")[:parts]
    if ray_version != version or not same_python:
        raise place.error(
            f"it runs Ray {ray_version} on Python {python_version}, this process Ray {version} on Python "
            f"{platform.python_version()}; Ray needs the same versions on both sides"
        )


def _ask(match: re.Match[str], question: tuple[str, bytes], token: str | None) -> Answer:
    return ask(match["host"].strip("[]"), int(match["port"]), question, token)


def explain_failure(text: str) -> str:
    """Join the first and last lines of a Ray error message into a single line, and return it.

    The lines between them, usually a traceback, are left out. However, all lines of a message about a version mismatch
    are kept. If the message is empty, return `Ray gives no reason`.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "Ray gives no reason"
    if len(lines) == 1 or "Version mismatch" in lines[0]:
        return " ".join(lines)
    return f"{lines[0]} {lines[-1]}"
