"""Amount of computation that a CLIP model needs, counted from its config without loading its weights."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .convert.load import build_model
from .convert.transformers_config import read_config
from .errors import silence_library_logs
from .files import CONFIG_NAME
from .plan import hub_config
from .settings import ClipSettings
from .source import HUB_PREFIX, LOCAL_PREFIX, ClipSource


@dataclass(frozen=True)
class ClipCost:
    """Floating-point operations of the towers of a CLIP model."""

    image_flops: float
    """Operations per image."""
    text_flops: float
    """Operations per caption that fills the context length."""
    context_length: int
    """Maximum number of tokens per caption."""
    can_cut: bool
    """True if captions are not padded to the context length, so that short captions need fewer operations."""

    def flops_of_caption(self, tokens: int) -> float:
        """Return the operations for a caption with the given number of tokens."""
        return self.text_flops * (min(1.0, tokens / self.context_length) if self.can_cut else 1.0)


def count_cost(settings: ClipSettings, source: ClipSource, library: Any) -> ClipCost | None:
    """Build a CLIP model without memory for its weights, and count the operations of its towers.

    Return None if the model cannot be built from its config alone, for example because the config is on the Hugging
    Face Hub and there is no network, or because the weights of OpenAI's package have no config.

    Args:
        settings: settings of the model.
        source: source of the weights, from `parse_source`.
        library: the open_clip module.
    """
    size = None if settings.preprocess is None else settings.preprocess.size
    options: dict[str, Any] = {} if size is None else {"force_image_size": size}
    try:
        with torch.device("meta"), warnings.catch_warnings(), silence_library_logs():
            warnings.simplefilter("ignore")
            if source.kind == "transformers" and source.folder is not None:
                model = _transformers_model(source.folder, size, library)
            else:
                with _config_name(settings, source, library) as name:
                    if name.startswith(LOCAL_PREFIX):  # open_clip 2 has neither these names nor this option
                        options["load_weights"] = False
                    model = library.create_model(name, device="meta", pretrained_hf=False, **options)
            model.eval()
            side = model.visual.image_size
            height, width = side if isinstance(side, tuple | list) else (side, side)
            length = int(model.context_length)
            images = _count(lambda: model.encode_image(torch.zeros(1, 3, height, width)))
            texts = _count(lambda: model.encode_text(torch.zeros(1, length, dtype=torch.int64)))
    except Exception:  # open_clip lets any exception propagate, and an estimate must not stop a plan
        return None
    tower = model if hasattr(model, "ln_final") else getattr(model, "text", model)
    pooling = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    return ClipCost(images, texts, length, pooling in ("argmax", "eos"))


def _transformers_model(folder: Path, size: int | None, library: Any) -> Any:
    """Build a model of transformers from the config in its folder, with images of the given size if it is not None."""
    _, config = read_config(folder)
    if size is not None:
        config["vision_cfg"]["image_size"] = size
    return build_model(config, library, torch.float32, "meta")


@contextmanager
def _config_name(settings: ClipSettings, source: ClipSource, library: Any) -> Iterator[str]:
    """Context manager that yields a model name from which open_clip can build the model without its weights.

    For a model on the Hugging Face Hub, open_clip would download the weights. Its config is therefore copied to a
    temporary folder.
    """
    if source.kind != "hub":
        yield settings.model if source.folder is None else f"{LOCAL_PREFIX}{source.folder}"
        return
    config = hub_config(settings.model.removeprefix(HUB_PREFIX), library)
    with tempfile.TemporaryDirectory(prefix="priorkit-clip-") as folder:
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        yield f"{LOCAL_PREFIX}{folder}"


def _count(work: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
