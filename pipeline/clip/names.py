"""Names of CLIP models as other tools spell them, converted to the settings `model` and `pretrained`.

OpenAI's package, clip-retrieval and transformers name models in their own ways. Only the spelling is converted here;
nothing is loaded.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED_PREFIX = "priorkit:"
LOCAL_PREFIX = "local-dir:"
HUB_PREFIX = "hf-hub:"
TRANSFORMERS_PREFIX = "hf_clip:"
OPENAI_PREFIX = "openai_clip:"
_OPEN_CLIP_PREFIX = "open_clip:"
"""Prefixes of model names.

`BUNDLED_PREFIX` and `LOCAL_PREFIX` precede folders, in this package or anywhere else. `HUB_PREFIX` precedes open_clip's
models on the Hugging Face Hub, and `TRANSFORMERS_PREFIX` precedes those of transformers. clip-retrieval uses the last
three prefixes.
"""
_OPENAI_NAMES = {
    "RN50": "RN50", "RN101": "RN101", "RN50x4": "RN50x4", "RN50x16": "RN50x16", "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14", "ViT-L/14@336px": "ViT-L-14-336",
}  # fmt: skip
"""open_clip's name of each model of OpenAI, keyed by OpenAI's name."""
_OPENAI_TAG = "openai"
_OPENAI_ACTIVATION = "-quickgelu"
"""Suffix of open_clip's model names that select QuickGELU, which all models of OpenAI use."""
_EXAMPLES = (
    "open_clip:MODEL/TAG, openai_clip:ViT-B/32, hf_clip:ORG/NAME (transformers), hf-hub:ORG/NAME (open_clip), "
    "local-dir:FOLDER"
)
_OTHER_LOADERS = {
    "ja_clip": "a Japanese CLIP of rinna",
    "nm": "a quantised CLIP of DeepSparse",
    "hf": "a model of transformers; write hf_clip:ORG/NAME",
}
"""Descriptions of prefixes that other tools use, for error messages."""


def common_name(model: str, pretrained: str | None) -> tuple[str, str | None]:
    """Convert a CLIP model's name from any of the known spellings to the settings `model` and `pretrained`.

    Args:
        model: name of the model in any spelling.
        pretrained: open_clip tag or weight file, None if not given.

    Returns:
        The two settings, in open_clip's spelling if the model is one of open_clip's. Names that are already settings
        are returned unchanged.

    Raises:
        ValueError: the prefix is unknown, the name states its weights and `pretrained` does too, or an `open_clip:`
            name states no weights.
    """
    if model.startswith(_OPEN_CLIP_PREFIX):
        return _from_open_clip(model, pretrained)
    if model.startswith(OPENAI_PREFIX):
        name = model.removeprefix(OPENAI_PREFIX)
        if name not in _OPENAI_NAMES:
            return model, pretrained  # a file
        if pretrained not in (None, _OPENAI_TAG):
            raise ValueError(f"pretrained must be null: {model!r} brings its own weights")
        return _openai_weights(name)
    if "/" in model and model in _OPENAI_NAMES:
        return _openai_weights(model) if pretrained in (None, _OPENAI_TAG) else (_OPENAI_NAMES[model], pretrained)
    prefix, colon, _ = model.partition(":")
    known = (BUNDLED_PREFIX, LOCAL_PREFIX, HUB_PREFIX, TRANSFORMERS_PREFIX)
    if colon and not model.startswith(known):
        raise ValueError(_explain_prefix(model, prefix))
    return model, pretrained


def explain_name(model: str) -> str:
    """Return an error message that says what an unknown name seems to be, and what to write instead.

    Return an empty string if the name looks like a name of open_clip's that is misspelt.
    """
    if model.endswith((".pt", ".pth", ".bin", ".ckpt", ".safetensors")):
        return (
            f"a file, and this setting takes a name. Name its architecture (--model ViT-B-32 --pretrained {model}), or "
            f"write {OPENAI_PREFIX}{model} for weights of OpenAI's package"
        )
    if model.startswith((".", "/", "~")) or Path(model).is_dir():
        return f"a folder, and this setting takes a name; write {LOCAL_PREFIX}{model}"
    if model.count("/") == 1 and not model.startswith(("ViT-", "RN")):
        return (
            "open_clip has no such model; ORG/NAME looks like a repository of the Hugging Face Hub.\n"
            f"Write {TRANSFORMERS_PREFIX}{model} if it was made with transformers, or {HUB_PREFIX}{model} if it was "
            "made with open_clip"
        )
    return ""


def _from_open_clip(model: str, pretrained: str | None) -> tuple[str, str | None]:
    """Convert a name of the form `open_clip:MODEL/TAG`, as clip-retrieval takes it. TAG may be the path of a file."""
    rest = model.removeprefix(_OPEN_CLIP_PREFIX)
    if rest.startswith((HUB_PREFIX, LOCAL_PREFIX)):
        return rest, pretrained
    slashed = next((name for name in _OPENAI_NAMES if "/" in name and f"{rest}/".startswith(f"{name}/")), None)
    if slashed is not None:
        name, tag = _OPENAI_NAMES[slashed], rest[len(slashed) + 1 :]
    else:
        name, _, tag = rest.partition("/")
    if tag and pretrained not in (None, tag):
        raise ValueError(f"{model!r} names its weights, and pretrained={pretrained!r} names others; leave one out")
    weights = tag or pretrained
    if not weights:
        raise ValueError(f"{model!r} names no weights; write open_clip:{name}/TAG, with a tag of open_clip or a path")
    if weights == _OPENAI_TAG and name in _OPENAI_NAMES.values():
        name += _OPENAI_ACTIVATION
    return name, weights


def _openai_weights(name: str) -> tuple[str, str]:
    return f"{_OPENAI_NAMES[name]}{_OPENAI_ACTIVATION}", _OPENAI_TAG


def _explain_prefix(model: str, prefix: str) -> str:
    if prefix in _OTHER_LOADERS:
        return (
            f"{model!r} names {_OTHER_LOADERS[prefix]}, which priorkit does not load by this name. It loads {_EXAMPLES}"
        )
    return f"{model!r}: no CLIP names begin with {prefix}:; those with a prefix are {_EXAMPLES}"
