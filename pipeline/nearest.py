"""Suggestions for unknown keys. A suggestion names the settings or sections that are most similar to the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SIBLING_SCORE = 0.74
"""Minimum similarity for suggesting a key in the same section as the unknown key. For example, the similarity of
`stepz` and `steps` is 0.8."""
_DISTANT_SCORE = 0.85
"""Minimum similarity for suggesting a key in another section. It is higher than `_SIBLING_SCORE`, because the other
sections have more keys, so more of them are similar by chance."""
_SIBLING_BONUS = 0.1
"""Bonus added to the similarity of a key in the same section, to rank this key higher."""
_PREFIX_BONUS = 0.02
"""Bonus added to the similarity of a key in another section, for each leading section that its path shares with the
path of the unknown key."""
_TIE = 0.01
"""Maximum distance from the best score. Keys within this distance are suggested together with the best key. A key's
score is its similarity plus its bonus."""
_MAX_NAMES = 3
"""Maximum number of names in a suggestion."""

_ALIASES: dict[str, tuple[str, ...]] = {
    "accumulation": ("accumulate",),
    "amp": ("dtype",),
    "attn_dropout": ("dropout",),
    "bbox_col": ("bbox_column",),
    "blurring_bbox_col": ("bbox_column",),
    "bs": ("batch_size",),
    "caption_col": ("caption_column",),
    "cfg_scale": ("guidance_scale",),
    "cond_scale": ("guidance_scale",),
    "depth": ("num_layers",),
    "dim_head": ("attention_head_dim",),
    "disable_all_reencoding": ("encode_format",),
    "eval_every": ("validate_every",),
    "ff_dropout": ("dropout",),
    "grad_clip": ("max_grad_norm",),
    "gradient_accumulation_steps": ("accumulate",),
    "heads": ("num_attention_heads",),
    "hidden_dim": ("width",),
    "hidden_size": ("width",),
    "iterations": ("steps",),
    "layers": ("depth", "num_layers"),
    "lr": ("learning_rate",),
    "max_iters": ("steps",),
    "max_steps": ("steps",),
    "max_text_len": ("num_embeddings",),
    "n_heads": ("heads", "num_attention_heads"),
    "n_layers": ("depth", "num_layers"),
    "num_heads": ("heads", "num_attention_heads"),
    "num_layers": ("depth",),
    "num_steps": ("steps",),
    "num_workers": ("workers", "read_threads"),
    "number_sample_per_shard": ("rows_per_shard",),
    "precision": ("dtype",),
    "processes_count": ("workers",),
    "save_every": ("checkpoint_every",),
    "skip_reencode": ("encode_format",),
    "thread_count": ("concurrency",),
    "url_col": ("url_column",),
    "wd": ("weight_decay",),
}
"""Names of settings in other tools and other network families, mapped to the corresponding names in priorkit."""
_EPOCHS = frozenset({"epoch", "epochs", "max_epochs", "n_epochs", "num_epochs"})
_MAX_KEY_CHARACTERS = 100
"""Maximum length, in characters, of an unknown key's last name for which similar keys are searched. The search time
grows with the square of the length."""


def suggest(key: Sequence[str], known: Iterable[Sequence[str]]) -> str | None:
    """Return a suggestion for an unknown key, such as `did you mean 'steps'?`; None if no name is similar.

    The suggestion contains up to three names. Names that other tools use for a setting, such as `lr`, are recognised.
    Return None if the last name in `key` has more than `_MAX_KEY_CHARACTERS` characters.

    Args:
        key: path of the unknown key, outermost section first.
        known: paths of all settings and sections.
    """
    if len(key[-1]) > _MAX_KEY_CHARACTERS:
        return None
    paths = [tuple(path) for path in known]
    outer, name = tuple(key[:-1]), _plain(key[-1])
    if name in _EPOCHS:
        steps = [path for path in paths if path[-1] == "steps" and path[:-1] in (outer, ("train",))]
        return f"training is counted in optimiser steps: {_quoted(steps, outer)}" if steps else None
    aliases = _ALIASES.get(name, ())
    scores = {}
    for path in paths:
        score = 1.0 if path[-1] in aliases else _similarity(name, _plain(path[-1]))
        sibling = path[:-1] == outer
        if score >= (_SIBLING_SCORE if sibling else _DISTANT_SCORE):
            shared = next((i for i, (a, b) in enumerate(zip(path, outer, strict=False)) if a != b), len(outer))
            scores[path] = score + (_SIBLING_BONUS if sibling else _PREFIX_BONUS * shared)
    if not scores:
        return None
    best = max(scores.values())
    nearest = sorted((path for path in scores if scores[path] >= best - _TIE), key=lambda path: (-scores[path], path))
    if nearest[0][:-1] == outer:
        nearest = nearest[:1]
    return f"did you mean {_quoted(nearest, outer)}?"


def _quoted(paths: Sequence[tuple[str, ...]], outer: tuple[str, ...]) -> str:
    """Format up to three paths for a message, such as `'steps' or 'train.steps'`.

    A path in section `outer` is shortened to its last name. Any other path is shown in full, joined by dots.
    """
    names = [repr(path[-1] if path[:-1] == outer else ".".join(path)) for path in paths[:_MAX_NAMES]]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _similarity(one: str, other: str) -> float:
    """Return the similarity of two names, from 0 to 1.

    The similarity is the ratio of matching characters (`difflib.SequenceMatcher.ratio`). It is increased if each word
    of one name is similar to a word of the other name.
    """
    ratio = difflib.SequenceMatcher(None, one, other).ratio()
    fewer, more = sorted((one.split("_"), other.split("_")), key=len)
    if all(len(word) > 2 and any(_same_word(word, candidate) for candidate in more) for word in fewer):
        return max(ratio, 0.6 + 0.35 * ratio)
    return ratio


def _same_word(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    if len(shorter) >= 4 and longer.startswith(shorter):
        return True
    return difflib.SequenceMatcher(None, one, other).ratio() >= 0.8
