"""priorkit: from a list of image URLs to a trained, evaluated diffusion prior.

The functions below are loaded when they are first used, so that importing priorkit costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline.download.stage import download
    from .pipeline.embed.stage import embed
    from .pipeline.errors import FolderError, InputError, Interrupted, PriorkitError, SettingsError
    from .pipeline.read.dataset import read_embeddings
    from .prior.evaluate.stage import evaluate
    from .prior.interchange.load import convert, load_prior
    from .prior.train.stage import train
    from .recipes.chain import run
    from .recipes.recipe import load_recipe

__version__ = "0.1.0"

__all__ = [
    "FolderError",
    "InputError",
    "Interrupted",
    "PriorkitError",
    "SettingsError",
    "__version__",
    "convert",
    "download",
    "embed",
    "evaluate",
    "load_prior",
    "load_recipe",
    "read_embeddings",
    "run",
    "train",
]

_ERRORS = {"FolderError", "InputError", "Interrupted", "PriorkitError", "SettingsError"}
_HOMES = {
    "convert": ".prior.interchange.load",
    "download": ".pipeline.download.stage",
    "embed": ".pipeline.embed.stage",
    "evaluate": ".prior.evaluate.stage",
    "load_prior": ".prior.interchange.load",
    "load_recipe": ".recipes.recipe",
    "read_embeddings": ".pipeline.read.dataset",
    "run": ".recipes.chain",
    "train": ".prior.train.stage",
} | dict.fromkeys(_ERRORS, ".pipeline.errors")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
