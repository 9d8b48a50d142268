"""What a training is to do, checked and in full: what every process of it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...pipeline.clip.settings import ClipSettings
from ...pipeline.compute.device import resolve
from ...pipeline.compute.settings import ComputeSettings
from ...pipeline.contract.file_marks import FileMark, from_json, to_json
from ...pipeline.contract.manifest import Manifest, fingerprint
from ...pipeline.contract.storage import Store
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.read.dataset import EmbeddingDataset
from ...pipeline.read.settings import ReadSettings
from ..model.config import PriorConfig, TrainedOn
from ..model.text_encoder import find_text_encoder
from .settings import TrainSettings
from .start import check_start, has_unknown_clip, load_start, start_fingerprint, starting_from
from .trackers import check_trackers

STAGE = "train"


@dataclass(frozen=True)
class TrainJob:
    """One training."""

    embeddings: str
    read: ReadSettings
    prior: str
    """URL of the prior's folder."""
    settings: TrainSettings
    """Resolved, and with the network and diffusion of the prior to start from, if there is one."""
    config: PriorConfig
    identity: dict[str, Any]
    """What the result depends on: the settings of its manifest."""
    input: str
    """Fingerprint of the embeddings."""
    input_files: dict[str, FileMark]
    """Marks of the files of embeddings without a manifest."""
    limit: int | None = None
    """Steps to stop after, with a checkpoint."""
    notes: tuple[str, ...] = ()
    """What a user should know about the prior to start from, a sentence each."""
    best_since: int = 0
    """Step after which validation losses are comparable, since all are of the same rows."""

    @property
    def last_step(self) -> int:
        """Where this run ends."""
        return self.settings.steps if self.limit is None else min(self.limit, self.settings.steps)

    @property
    def record_input(self) -> str:
        """Fingerprint of what the finished prior follows from beside its identity."""
        return fingerprint([self.input, self.settings.steps]) if self.settings.steps_may_change else self.input

    @property
    def fingerprint(self) -> str:
        """Of all that the result depends on; checkpoints of others are of no use."""
        return self.manifest().settings_fingerprint

    def open_embeddings(self) -> EmbeddingDataset:
        """The embeddings, in whatever process.

        Raises:
            InputError: they are not there, or have changed.
        """
        dataset = EmbeddingDataset(self.embeddings, self.read, known_files=self.input_files)
        if dataset.content_fingerprint != self.input:
            raise InputError(
                f"{self.embeddings} is not the same here as where the training was started; give all nodes one folder"
            )
        return dataset

    def manifest(self) -> Manifest:
        """The manifest before any work; other embeddings count as other settings."""
        files = {"files": to_json(self.input_files)} if self.input_files else {}
        return Manifest(STAGE, self.identity, input={"sha256": self.input, **files})


def recorded_files(manifest: Manifest | None) -> dict[str, FileMark]:
    """Marks of the files of embeddings without a manifest, as the manifest of a training records them."""
    return from_json(manifest.input.get("files")) if manifest is not None and manifest.stage == STAGE else {}


def make_job(
    dataset: EmbeddingDataset,
    prior: Store,
    settings: TrainSettings,
    compute: ComputeSettings,
    clip: ClipSettings | None,
    limit: int | None = None,
) -> TrainJob:
    """The training of a prior on some embeddings.

    Args:
        clip: made the embeddings, where their folder does not say which did.

    Raises:
        InputError: the embeddings lack what the settings ask for, or the prior to start from does not fit them.
        SettingsError: settings do not fit each other, or a tracker is not installed.
    """
    notes: tuple[str, ...] = ()
    settings = resolve_training(settings, compute)
    identity = resolved_identity(settings, dataset.settings)
    config = _prior_config(dataset, settings, clip)
    if settings.init_from is not None:
        start = load_start(settings.init_from)
        check_start(start, dataset, settings.init_from.path, config)
        if has_unknown_clip(start.config):
            notes = (
                f"train.init_from {settings.init_from.path} does not name its CLIP, so it is not known whether it was "
                "trained with the one that made these embeddings",
            )
        settings = starting_from(settings, start)
        made = {"clip": config.clip, "clip_settings": config.clip_settings, "trained_on": config.trained_on}
        own = {"network": settings.network, "diffusion": settings.diffusion}
        config = start.config.model_copy(update={**own, **made})
        identity["train"] = settings.identity()
        identity["init_from"] = {"sha256": start_fingerprint(start)}
    identity["embeddings"] = {"rows": dataset.count, "sha256": dataset.content_fingerprint}
    if not dataset.clip_if_known:
        identity["clip"] = config.clip_settings
    _check_text(dataset, settings, config)
    check_trackers(settings, prior)
    return TrainJob(
        embeddings=dataset.store.url, read=dataset.settings, prior=prior.url, settings=settings, config=config,
        identity=identity, input=dataset.content_fingerprint, input_files=dataset.file_marks, limit=limit, notes=notes,
    )  # fmt: skip


def resolve_training(settings: TrainSettings, compute: ComputeSettings) -> TrainSettings:
    """Settings with a device and a number of threads; on Ray a worker has as many threads as CPUs are its own."""
    threads = max(1, int(compute.cpus_per_worker)) if compute.backend == "ray" else None
    return resolve(settings, "train", compute, threads=threads)


def resolved_identity(settings: TrainSettings, read: ReadSettings) -> dict[str, Any]:
    """What of a training's identity resolved settings say."""
    return {"train": settings.identity(), "read": read.identity()}


def _prior_config(dataset: EmbeddingDataset, settings: TrainSettings, clip: ClipSettings | None) -> PriorConfig:
    """Of a new prior: its CLIP is the one that made the embeddings."""
    identity, location = dataset.clip_if_known, _clip_settings(dataset, clip)
    width = dataset.token_width
    if settings.text_condition == "online":
        if not identity:
            # only its identity is wanted here, perhaps on the head of a cluster whose workers alone have GPUs
            here = settings if torch.cuda.is_available() else settings.model_copy(update={"device": "cpu"})
            identity = find_text_encoder(location, {}, "that made the embeddings", here).identity
        width = identity["token_width"]
    return PriorConfig(
        embed_dim=dataset.embed_dim,
        token_width=width if settings.network.max_text_len else None,
        network=settings.network,
        diffusion=settings.diffusion,
        clip=identity,
        clip_settings=location,
        trained_on=TrainedOn(embeddings=dataset.content_fingerprint, read=dataset.settings.identity()),
    )


def _clip_settings(dataset: EmbeddingDataset, clip: ClipSettings | None) -> dict[str, Any]:
    from ...pipeline.clip.encoder import check_clip, clip_location

    if dataset.clip_if_known:
        return dataset.clip_settings
    if clip is None:
        raise InputError(
            f"{dataset.store.url} does not name its CLIP: it has no manifest. To train on it, say in the recipe which "
            "CLIP made it (embed.clip), or make the embeddings with `priorkit embed`"
        )
    check_clip(clip)
    return clip_location(clip)


def _check_text(dataset: EmbeddingDataset, settings: TrainSettings, config: PriorConfig) -> None:
    """Refuse a text condition that the embeddings, or the prior to start from, cannot have."""
    most, known = config.network.max_text_len, dataset.clip_if_known
    takes_states = most > 0 and (config.token_width is not None or settings.init_from is None)
    if settings.text_condition == "online":
        dataset.metadata(np.arange(1), ["caption"])
        if takes_states and config.token_width is None:
            raise InputError(
                f"train.text_condition=online: the CLIP {config.clip_settings['model']} gives no token states; set "
                "train.network.max_text_len=0"
            )
    elif takes_states and settings.text_condition == "pooled":
        raise SettingsError("train.text_condition=pooled: the prior to start from takes token states; leave it out")
    elif takes_states and dataset.token_width is None:
        raise InputError(
            f"train.network.max_text_len={most}, but {dataset.store.url} stores no token states; embed with "
            "token_states: true, take train.text_condition=online, or set max_text_len: 0"
        )
    if takes_states and known and config.token_width != known.get("token_width"):
        raise InputError(
            f"the prior to start from takes token states of {config.token_width}, those of {dataset.store.url} are of "
            f"{known.get('token_width')}"
        )
