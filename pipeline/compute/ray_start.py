"""Context manager that starts or joins a Ray cluster.

The `ray` module is passed as an argument, so that `parallel` is the only module that imports it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import PriorkitError
from .ray_address import (
    AUTO,
    ClusterAddress,
    cluster_address,
    explain_failure,
    find_running,
    own_environment,
    require_cluster,
)


@dataclass(frozen=True)
class Joined:
    """Address and node resources of a Ray cluster that this process has joined, and may have left since."""

    place: ClusterAddress
    nodes: list[dict[str, float]]
    """Resources of each node that was alive when this process joined."""


JOINED: dict[str | None, Joined] = {}
"""Most recently joined cluster for each value of `compute.address`, keyed by that value. An entry is kept after this
process leaves the cluster, so that summaries can describe the cluster."""


@contextlib.contextmanager
def open_cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Context manager that joins or starts the Ray cluster for `address`.

    On exit, this process leaves the cluster. If priorkit started the cluster, the cluster is stopped.

    Args:
        ray: the `ray` module.
        address: value of the setting `compute.address`.

    Raises:
        PriorkitError: the cluster does not exist, cannot be started, or does not let this process join.
    """
    place, is_ours = cluster_address(address), False
    if place.address == AUTO:
        place, is_ours = find_running(place, _running_heads(ray))
    environment = own_environment() if place.is_own else require_cluster(place, ray.__version__, is_ours=is_ours)
    with _ray_environment(ray, environment):
        try:
            _start(ray, place)
            JOINED[address] = Joined(place, [node["Resources"] for node in ray.nodes() if node["Alive"]])
            yield
        finally:
            ray.shutdown()


def _start(ray: Any, place: ClusterAddress) -> None:
    """Start a Ray cluster on this machine if the address is `local`; otherwise, join the cluster at the address.

    Ray installs its own handler for SIGTERM. The previous handler is restored before the function returns.

    Raises:
        PriorkitError: the cluster cannot be started or joined.
    """
    previous_handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=place.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many exception types, including its own
        if isinstance(error, OSError) and "AF_UNIX" in str(error):
            raise PriorkitError(
                f"the paths of Ray's sockets are too long ({str(error).rpartition(': ')[2]}); set RAY_TMPDIR to a "
                "short local folder, such as /tmp"
            ) from None
        reason = explain_failure(str(error.__cause__ or error))
        if place.is_own and "timed out" in reason:
            raise PriorkitError(
                f"Ray did not start on this machine in the time that it gives itself ({reason}); run the same command "
                "again when the machine is less busy, or leave --workers out (compute.backend=local)"
            ) from error
        if place.is_own:
            raise PriorkitError(f"cannot start Ray on this machine: {type(error).__name__}: {reason}") from error
        raise place.error(reason) from error
    finally:
        # Ray's SIGTERM handler would end the process with a dump and exit code 15
        if previous_handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous_handler)


@contextlib.contextmanager
def _ray_environment(ray: Any, environment: dict[str, str]) -> Iterator[None]:
    """Context manager that sets environment variables and makes Ray's compiled code read them.

    On exit, the variables get their old values back, even if Ray has changed them. So do RAY_AUTH_MODE and
    RAY_AUTH_TOKEN, which Ray may set itself. Variables that were not set before are removed.
    """
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *environment)}
    os.environ.update(environment)
    _read_environment_again(ray)
    try:
        yield
    finally:
        for name, value in before.items():  # also removes values that Ray has set
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_environment_again(ray)


def _read_environment_again(ray: Any) -> None:
    """Make Ray read the authentication mode and token from the environment again, since Ray caches both.

    Do nothing in Ray versions without token authentication.
    """
    raylet = ray._raylet
    if hasattr(raylet, "AuthenticationTokenLoader"):
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def _running_heads(ray: Any) -> dict[str, bool]:
    """Return the head node addresses of the Ray clusters that have a node process (raylet) on this machine.

    The addresses are taken from the command lines of the raylets.

    Returns:
        Mapping from the address of each head node to True if this user runs at least one raylet of its cluster on this
        machine, otherwise to False.
    """
    heads: dict[str, bool] = {}
    for process in ray._private.services.psutil.process_iter(["cmdline", "uids"]):
        command, uids = process.info["cmdline"] or [""], process.info["uids"]
        head = re.search(r"--gcs-address=(\S+)", " ".join(command))
        if head is not None and os.path.basename(command[0].split(" ")[0]) == "raylet":
            heads[head[1]] = heads.get(head[1], False) or (uids is not None and uids.real == os.getuid())
    return heads
