"""Embeddings of a problem that is solved by a rotation: what a prior can learn within seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from priorkit.pipeline.contract.commit import ShardCommit, StageFolder, open_stage
from priorkit.pipeline.contract.empty_inputs import EmptyInputs, write_empty_inputs
from priorkit.pipeline.contract.manifest import Manifest, embedding_shard_name, fingerprint
from priorkit.pipeline.contract.storage import Store
from priorkit.prior.network.prior_transformer.settings import PriorTransformerSettings
from priorkit.prior.network.settings import NetworkSettings
from priorkit.prior.objective.settings import DiffusionSettings
from priorkit.prior.train.settings import OptimiserSettings, TrainSettings

D, W, T = 16, 6, 5
"""Embedding size, token width, most token states of a caption."""

SPREAD = 0.5
"""Norm of the noise between a rotated text embedding and its image embedding."""


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def write_embeddings(
    folder: Path,
    rows: int = 480,
    *,
    token_states: bool = False,
    raw: bool = False,
    captions: int = 1,
    seed: int = 0,
    clip: str = "synthetic",
    damage: Callable[[np.ndarray], None] | None = None,
) -> Path:
    """A folder as `embed` writes it, in 3 shards: image = rotation of text + noise, which token states give away.

    Args:
        raw: also write norms, those of images from 4 to 16, and what the CLIP makes of empty inputs.
        captions: so many rows in a row are of one image.
        damage: changes the image embeddings `[rows, D]` before they are written.
    """
    rotation = np.linalg.qr(np.random.default_rng(1234).standard_normal((D, D)))[0]  # the same for every seed
    random = np.random.default_rng(seed)
    text = unit(random.standard_normal((rows, D)))
    noise = random.standard_normal((rows, D)) * SPREAD / np.sqrt(D)
    image = unit(text @ rotation + noise)[np.arange(rows) // captions * captions]
    if damage is not None:
        damage(image)
    lengths = random.integers(1, T + 1, rows)
    norms = {"image_norm": 8 * 2 ** np.tanh(2 * text[:, 0]), "text_norm": 6 + np.tanh(text[:, 1])} if raw else {}
    manifest = Manifest("embed", {"token_states": token_states}, input={})
    with open_stage(Store(str(folder)), manifest) as stage:
        width = W if token_states else None
        source = {"model": clip, "pretrained": "none"}
        weights = fingerprint(clip)
        identity = {
            "source": source, "weights_sha256": weights, "dtype": "float32", "embed_dim": D, "token_width": width
        }  # fmt: skip
        stage.describe(clip=identity, clip_settings=source)
        if raw:
            empty = EmptyInputs(np.ones(D, np.float32), np.ones(D, np.float32), np.ones((2, W), np.float32))
            stage.describe(**write_empty_inputs(stage.store, empty))
        for index, part in enumerate(np.array_split(np.arange(rows), 3)):
            states = None
            if token_states:
                # the token state says what the noise was, in the first W coordinates
                states = np.concatenate([np.tile(noise[row, :W] * 4, (lengths[row], 1)) for row in part])
            write_shard(
                stage, index, part, part // captions, image[part], text[part], states, lengths[part],
                {name: values[part].astype(np.float32) for name, values in norms.items()},
            )  # fmt: skip
        stage.finish()
    return folder


def write_shard(
    stage: StageFolder,
    index: int,
    rows: np.ndarray,
    images: np.ndarray,
    image: np.ndarray,
    text: np.ndarray,
    states: np.ndarray | None,
    lengths: np.ndarray,
    norms: dict[str, np.ndarray],
) -> None:
    """`images` numbers the image of each row."""
    name = embedding_shard_name(index)
    commit = ShardCommit(stage.store, name, input=f"input {index}", settings=stage.manifest.settings_fingerprint)
    arrays = {"img_emb": image.astype(np.float16), "text_emb": text.astype(np.float16)}
    if states is not None:
        arrays["token_states"] = states.astype(np.float16)
    for kind, values in arrays.items():
        with commit.create(f"{kind}/{kind}_{name}.npy") as file:
            np.save(file, values)
    if states is not None:
        with commit.create(f"token_states/offsets_{name}.npy") as file:
            np.save(file, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    keys = [f"{row:09d}" for row in rows]
    metadata = pa.table(
        {
            "image_path": keys,
            "caption": [f"caption {row}" for row in rows],
            "key": keys,
            "url": [f"http://example.com/{image}" for image in images],
            **norms,
        }
    )
    with commit.create(f"metadata/metadata_{name}.parquet") as file:
        pq.write_table(metadata, file)
    stage.add(commit.commit(rows=len(rows)))


SMALL_TRAIN = TrainSettings(
    network=NetworkSettings(width=32, depth=2, heads=2),
    diffusion=DiffusionSettings(timesteps=100),
    optimiser=OptimiserSettings(learning_rate=3e-3, warmup_steps=10, ema_decay=0.97),
    steps=30,
    batch_size=64,
    device="cpu",
    threads=1,
    log_every=5,
    validate_every=10,
    checkpoint_every=4,
)
"""A training of 30 steps that takes a fraction of a second."""

SMALL_RAW = SMALL_TRAIN.model_copy(
    update={
        "network": PriorTransformerSettings(
            num_attention_heads=2, attention_head_dim=16, num_layers=2, num_embeddings=T
        ),
        "diffusion": DiffusionSettings(timesteps=100, normaliser="clip_stats"),
    }
)
"""The same for a prior of the family `prior-transformer`, which needs `raw` embeddings with token states."""


def changed(settings: TrainSettings, **values: Any) -> TrainSettings:
    """Settings with dotted names (`network__ff_dropout`) replaced, validated again."""
    dumped = settings.model_dump()
    for name, value in values.items():
        *outer, last = name.split("__")
        section = dumped
        for part in outer:
            section = section[part]
        section[last] = value
    return TrainSettings.model_validate(dumped)
