"""Which Ray cluster a command works on, and whether it may: addresses, versions and tokens. Imports nothing of Ray."""

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
_NICENESS = "RAY_worker_niceness"
"""Environment variable with the nice value of Ray's workers."""


@dataclass(frozen=True)
class ClusterAddress:
    """Where the Ray cluster of a command is."""

    address: str
    """As Ray takes it: `local` for a cluster of our own, `auto`, `host:port` or `ray://host:port`."""
    source: str
    """What names it: `compute.address` or `RAY_ADDRESS`; empty where neither does."""

    @property
    def is_own(self) -> bool:
        """Return whether the cluster is started for the command, and ends with it."""
        return self.address == LOCAL

    def described(self) -> str:
        """The cluster, as a summary names it."""
        if self.is_own:
            return "on this machine" + (f" ({self.source}=local)" if self.source else "")
        return f"at {self.address} ({self.source})"

    @property
    def way_out(self) -> str:
        """The way to do without this cluster."""
        return "unset RAY_ADDRESS" if self.source.startswith("RAY_ADDRESS") else "leave the address out"

    def error(self, problem: str) -> PriorkitError:
        """The error that this cluster cannot be joined."""
        named = f"{self.source} ({self.address})" if "=" in self.source else f"{self.source}={self.address!r}"
        return PriorkitError(f"cannot join Ray at {named}: {problem}")


def cluster_address(address: str | None) -> ClusterAddress:
    """The cluster that a setting and the environment name.

    Args:
        address: the setting `compute.address`. As Ray itself does, `RAY_ADDRESS` counts where it is None or `auto`;
            Ray sets that variable inside its own jobs.

    Raises:
        PriorkitError: an address has none of the known forms.
    """
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if named and address in (None, AUTO):
        found = ClusterAddress(named, "RAY_ADDRESS")
    elif address is None:
        return ClusterAddress(LOCAL, "")
    else:
        found = ClusterAddress(address, "compute.address")
    if found.address not in (AUTO, LOCAL) and (match := _ADDRESS.fullmatch(found.address)) is None:
        if found.address.startswith(("http://", "https://")):
            raise found.error(f"that is the address of Ray's dashboard, for its jobs; {_FORMS}")
        raise found.error(_FORMS)
    if found.address not in (AUTO, LOCAL) and match is not None and not 0 < int(match["port"]) < 65536:
        raise found.error(f"there is no port {match['port']}")
    return found


def find_running(place: ClusterAddress, candidates: Mapping[str, bool]) -> tuple[ClusterAddress, bool]:
    """The one cluster on this machine that `ray start` made and that answers: the cluster that `auto` stands for.

    Args:
        candidates: addresses that Ray's processes on this machine name, and whether a process of this user does.
            Ray's address file is not read, since it outlives the cluster.

    Returns:
        The cluster, and whether it is this user's own.

    Raises:
        PriorkitError: there is none, or more than one.
    """
    open_to_us, closed = [], []
    for address, is_ours in sorted(candidates.items()):
        if (match := _ADDRESS.fullmatch(address)) is None:
            continue
        try:
            answer, _ = _ask_with_token(match, HEAD, is_ours)
        except OSError:
            continue
        # a cluster that a command has started for itself ends with that command
        if answer.status == OK and not answer.metadata().get("ray_init_cluster"):
            open_to_us.append(address)
        elif answer.status == UNAUTHENTICATED:
            closed.append(address)
    found = open_to_us or closed
    if not found:
        raise place.error(f"no cluster runs on this machine; start it with `ray start --head`, or {place.way_out}")
    if len(found) > 1:
        raise place.error(f"several clusters run on this machine ({', '.join(found)}); name the one to join")
    return ClusterAddress(found[0], f"{place.source}=auto"), candidates[found[0]]


def require_cluster(place: ClusterAddress, version: str, *, is_ours: bool = False) -> dict[str, str]:
    """Ask a cluster whether this process may join it, and give the environment in which Ray does.

    Args:
        version: Ray's version here.
        is_ours: `auto` found it among this user's processes. Only such a cluster is sent the user's token unasked:
            Ray, too, does not give it to an address that a setting names.

    Raises:
        PriorkitError: nothing answers there, it is not Ray, it runs other versions, or it asks for another token.
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
        raise place.error(_about_token(mode or environment.get("RAY_AUTH_MODE", ""), token, origin))
    if mode == "token" and token is None:
        raise place.error(f"RAY_AUTH_MODE=token, but there is no token here ({_ways()}); the cluster asks for none")
    if match["client"]:
        if importlib.util.find_spec("grpc") is None:
            raise place.error('ray:// needs grpcio: pip install "ray[client]"')
    elif answer.status == OK:
        _require_versions(place, answer, version)
    return environment


def own_environment() -> dict[str, str]:
    """Environment variables of a cluster that priorkit starts on this machine.

    A token guards it: Ray would write one into the user's home, or start without. Its workers have the priority of
    other processes: at Ray's default, nice 15, one busy process takes nearly all time of a core from them.
    """
    environment = {_NICENESS: os.environ.get(_NICENESS, "0")}
    if _mode() in ("", "token"):
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return environment


def find_token() -> tuple[str | None, str]:
    """The token that Ray would send, and where it is; looked for in Ray's own order."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH", "").strip():
        return _read_token(Path(path)), f"RAY_AUTH_TOKEN_PATH={path}"
    try:
        return _read_token(_TOKEN_FILE.expanduser()), str(_TOKEN_FILE)
    except RuntimeError:  # this user has no home
        return None, str(_TOKEN_FILE)


def described_authentication() -> str:
    """The mode and the place of the token, without the token."""
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
    """The answer of a cluster, and the environment in which Ray sends it the same token."""
    token, mode = find_token()[0], _mode()
    answer = _ask(match, question, token if mode == "token" else None)
    if answer.status == UNAUTHENTICATED and not mode and token and is_ours:
        return _ask(match, question, token), {"RAY_AUTH_MODE": "token"}
    return answer, {}


def _about_token(mode: str, token: str | None, origin: str) -> str:
    wanted = "the cluster asks for a token (Ray's token authentication)"
    if mode == "disabled":
        return f"{wanted}, but RAY_AUTH_MODE=disabled here; set RAY_AUTH_MODE=token and give its token ({_ways()})"
    if token is None:
        return f"{wanted}, and there is none here; set RAY_AUTH_MODE=token and give its token ({_ways()})"
    if mode == "token":
        return f"the cluster refuses the token in {origin}; give the one that `ray get-auth-token` prints on its head"
    return f"{wanted}; RAY_AUTH_MODE=token sends it the one in {origin}"


def _ways() -> str:
    return f"RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or {_TOKEN_FILE} as on the cluster's head"


def _require_versions(place: ClusterAddress, answer: Answer, version: str) -> None:
    metadata = answer.metadata()
    theirs = str(metadata.get("ray_version", version)), str(metadata.get("python_version", platform.python_version()))
    parts = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    same_python = theirs[1].split(".")[:parts] == platform.python_version().split(".")[:parts]
    if theirs[0] != version or not same_python:
        raise place.error(
            f"it runs Ray {theirs[0]} on Python {theirs[1]}, this process Ray {version} on Python "
            f"{platform.python_version()}; Ray needs the same versions on both sides"
        )


def _ask(match: re.Match[str], question: tuple[str, bytes], token: str | None) -> Answer:
    return ask(match["host"].strip("[]"), int(match["port"]), question, token)


def explain_failure(text: str) -> str:
    """The first and the last line of one of Ray's errors, which surround its tracebacks."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "Ray gives no reason"
    if len(lines) == 1 or "Version mismatch" in lines[0]:
        return " ".join(lines)
    return f"{lines[0]} {lines[-1]}"
