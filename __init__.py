"""priorkit: from a list of image URLs to a trained, evaluated diffusion prior.

Functions and classes are loaded on first use, so `import priorkit` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline.adopt.settings import AdoptSettings
    from .pipeline.adopt.stage import adopt
    from .pipeline.clip.settings import ClipSettings, PreprocessSettings
    from .pipeline.compute.settings import ComputeSettings
    from .pipeline.compute.stage import StageResult
    from .pipeline.config import FolderSettings
    from .pipeline.download.settings import DownloadSettings, Img2datasetSettings
    from .pipeline.download.stage import download
    from .pipeline.embed.settings import EmbedSettings
    from .pipeline.embed.stage import embed
    from .pipeline.errors import FolderError, InputError, Interrupted, PriorkitError, SettingsError
    from .pipeline.read.dataset import EmbeddingDataset, read_embeddings
    from .pipeline.read.settings import ReadSettings
    from .prior.evaluate.settings import EvaluateSettings, SweepSettings
    from .prior.evaluate.stage import evaluate
    from .prior.interchange.export import export
    from .prior.interchange.load import convert, load_prior
    from .prior.model.prior import Prior
    from .prior.network.prior_transformer.settings import PriorTransformerSettings
    from .prior.network.settings import NetworkSettings
    from .prior.objective.settings import DiffusionSettings
    from .prior.sampling.settings import SampleSettings
    from .prior.train.settings import InitSettings, LoraSettings, OptimiserSettings, TrainSettings
    from .prior.train.stage import train
    from .recipes.chain import run
    from .recipes.recipe import Recipe, load_recipe

__version__ = "0.1.0"

_MODULES = {
    ".pipeline.adopt.settings": ("AdoptSettings",),
    ".pipeline.adopt.stage": ("adopt",),
    ".pipeline.clip.settings": ("ClipSettings", "PreprocessSettings"),
    ".pipeline.compute.settings": ("ComputeSettings",),
    ".pipeline.compute.stage": ("StageResult",),
    ".pipeline.config": ("FolderSettings",),
    ".pipeline.download.settings": ("DownloadSettings", "Img2datasetSettings"),
    ".pipeline.download.stage": ("download",),
    ".pipeline.embed.settings": ("EmbedSettings",),
    ".pipeline.embed.stage": ("embed",),
    ".pipeline.errors": ("FolderError", "InputError", "Interrupted", "PriorkitError", "SettingsError"),
    ".pipeline.read.dataset": ("EmbeddingDataset", "read_embeddings"),
    ".pipeline.read.settings": ("ReadSettings",),
    ".prior.evaluate.settings": ("EvaluateSettings", "SweepSettings"),
    ".prior.evaluate.stage": ("evaluate",),
    ".prior.interchange.export": ("export",),
    ".prior.interchange.load": ("convert", "load_prior"),
    ".prior.model.prior": ("Prior",),
    ".prior.network.prior_transformer.settings": ("PriorTransformerSettings",),
    ".prior.network.settings": ("NetworkSettings",),
    ".prior.objective.settings": ("DiffusionSettings",),
    ".prior.sampling.settings": ("SampleSettings",),
    ".prior.train.settings": ("InitSettings", "LoraSettings", "OptimiserSettings", "TrainSettings"),
    ".prior.train.stage": ("train",),
    ".recipes.chain": ("run",),
    ".recipes.recipe": ("Recipe", "load_recipe"),
}
"""Public names, grouped by the module that defines them."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AdoptSettings",
    "ClipSettings",
    "ComputeSettings",
    "DiffusionSettings",
    "DownloadSettings",
    "EmbedSettings",
    "EmbeddingDataset",
    "EvaluateSettings",
    "FolderError",
    "FolderSettings",
    "Img2datasetSettings",
    "InitSettings",
    "InputError",
    "Interrupted",
    "LoraSettings",
    "NetworkSettings",
    "OptimiserSettings",
    "PreprocessSettings",
    "Prior",
    "PriorTransformerSettings",
    "PriorkitError",
    "ReadSettings",
    "Recipe",
    "SampleSettings",
    "SettingsError",
    "StageResult",
    "SweepSettings",
    "TrainSettings",
    "__version__",
    "adopt",
    "convert",
    "download",
    "embed",
    "evaluate",
    "export",
    "load_prior",
    "load_recipe",
    "read_embeddings",
    "run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name], __name__), name)
