"""Download settings that img2dataset's downloader does not apply, and what it does instead.

If such a setting is given explicitly, it is refused. If it has its default value, the plan and the summary of a
download list it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

THREADS = 256
"""Number of URLs that one worker fetches at once if `download.concurrency` is not given: img2dataset's default."""


@dataclass(frozen=True)
class Limit:
    """Setting that img2dataset does not apply."""

    instead: str
    """Behaviour of img2dataset, as a clause for messages."""
    matching: tuple[Any, ...] = ()
    """Values of the setting that describe img2dataset's behaviour. They are accepted."""


LIMITS = {
    "hash_column": Limit("it compares one kind of hash, and fails rows without one", (None,)),
    "max_pixels": Limit("OpenCV decodes up to 2^30 pixels; max_image_area filters after decoding"),
    "decode_mode": Limit("it decodes at full size", ("exact",)),
    "exif_orientation": Limit("it stores pixels unrotated", ("ignore",)),
    "timeout_seconds": Limit("it limits each wait for a server, by img2dataset.timeout, not the whole fetch"),
    "max_bytes": Limit("it reads a body of any size"),
    "allow_private_addresses": Limit("it fetches from private addresses, and follows redirects to them", (True,)),
    "allow_addresses": Limit("it fetches from link-local and metadata addresses"),
    "allow_paths": Limit("it opens file:, ftp: and data: URLs, and no other paths"),
    "proxy": Limit("it takes the proxy from the environment (http_proxy, https_proxy, no_proxy)", (None,)),
    "user_agent": Limit("it sends the User-Agent of a browser, and img2dataset.user_agent_token"),
    "robots_txt": Limit("it ignores robots.txt", (False,)),
    "connections_per_host": Limit("it does not limit the connections to a host"),
    "decode_processes": Limit("one process of each worker decodes its images; compute.workers adds more"),
    "decode_timeout_seconds": Limit("it does not limit the time for an image"),
    "decode_memory_bytes": Limit("it does not limit the memory for an image"),
    "buffer_bytes": Limit("it holds up to twice download.concurrency bodies in memory"),
}
"""Settings that img2dataset does not apply, by name."""


def unapplied(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings whose values img2dataset does not apply.

    Args:
        values: value of each download setting, by name.
    """
    return [name for name, limit in LIMITS.items() if values[name] not in limit.matching]


def check_limits(values: Mapping[str, Any], given: Set[str]) -> None:
    """Check that img2dataset applies all settings that are given explicitly.

    Args:
        values: value of each download setting, by name.
        given: names of the settings that are given explicitly.

    Raises:
        ValueError: a given setting is not applied. The message says what img2dataset does instead.
    """
    if values["encode_format"] == "original":
        raise ValueError(
            "encode_format=original cannot be combined with engine=img2dataset: it stores all images in one format; "
            "use jpg, png or webp, or engine=native"
        )
    refused = [name for name in unapplied(values) if name in given]
    if not refused:
        return
    first, *others = refused
    also = f" (likewise {', '.join(others)})" if others else ""
    raise ValueError(
        f"{first}={values[first]} cannot be combined with engine=img2dataset: {LIMITS[first].instead}; "
        f"remove it, or use engine=native{also}"
    )


def describe_limits(values: Mapping[str, Any], given: Set[str]) -> list[str]:
    """Return one sentence for each default value that img2dataset does not apply.

    Args:
        values: value of each download setting, by name.
        given: names of the settings that are given explicitly.
    """
    notes = [
        f"engine=img2dataset does not apply download.{name}={_shown(values[name])}: {LIMITS[name].instead}"
        for name in unapplied(values)
    ]
    if "concurrency" not in given:
        notes.append(
            f"engine=img2dataset does not apply download.concurrency={values['concurrency']}: it fetches {THREADS} "
            "URLs at once unless the setting is given"
        )
    return notes


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else str(value)
