"""Suggestions for unknown keys."""

from __future__ import annotations

import pytest

from priorkit.pipeline.nearest import suggest

KNOWN = [
    ("train",), ("train", "steps"), ("train", "learning_rate"), ("train", "batch_size"), ("embed",),
    ("embed", "batch_size"), ("embed", "clip"), ("embed", "clip", "model"), ("network", "depth"),
    ("compute", "workers"), ("embed", "read_threads"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("train.stepz", "did you mean 'steps'?"),
        ("train.lr", "did you mean 'learning_rate'?"),
        ("train.Batch-Size", "did you mean 'batch_size'?"),
        ("train.rate_learning", "did you mean 'learning_rate'?"),
        ("batch_size", "did you mean 'embed.batch_size' or 'train.batch_size'?"),
        ("embed.model", "did you mean 'embed.clip.model'?"),
        ("train.n_layers", "did you mean 'network.depth'?"),
        ("num_workers", "did you mean 'compute.workers' or 'embed.read_threads'?"),
        ("train.epochs", "training is counted in optimiser steps: 'steps'"),
        ("epochs", "training is counted in optimiser steps: 'train.steps'"),
        ("embed.epochs", "training is counted in optimiser steps: 'train.steps'"),
        ("train.colour", None),
        ("train." + "steps" * 21, None),
    ],
)
def test_the_nearest_key_is_suggested(key: str, suggestion: str | None) -> None:
    assert suggest(key.split("."), KNOWN) == suggestion


def test_at_most_three_names_are_suggested() -> None:
    known = [(section, "threads") for section in "abcd"]
    assert suggest(["threads"], known) == "did you mean 'a.threads', 'b.threads' or 'c.threads'?"
