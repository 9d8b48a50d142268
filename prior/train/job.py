"""Training job: the complete, validated description of a training run. Every training process receives a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...pipeline.clip.settings import ClipSettings
from ...pipeline.clip.source import clip_location
from ...pipeline.compute.device import resolve
from ...pipeline.compute.settings import ComputeSettings
from ...pipeline.contract.empty_inputs import EmptyInputs
from ...pipeline.contract.file_marks import FileMark, to_json
from ...pipeline.contract.manifest import Manifest, fingerprint
from ...pipeline.contract.storage import Store
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.read.dataset import EmbeddingDataset
from ...pipeline.read.settings import ReadSettings
from ..model.config import PriorConfig, TrainedOn
from ..model.folder import prior_fingerprint
from ..model.text_encoder import encode_empty_inputs, find_text_encoder
from ..model.train_manifest import STAGE
from .settings import TrainSettings
from .start import (
    check_lora,
    check_start,
    has_unknown_clip,
    load_start,
    require_states_condition,
    settings_of_start,
)
from .trackers import check_trackers


@dataclass(frozen=True)
class TrainJob:
    """Complete description of one training run. Every process that takes part in the training receives a copy."""

    embeddings: str
    """URL of the embeddings folder."""
    read: ReadSettings
    """Settings for reading and splitting the embeddings."""
    prior: str
    """URL of the prior folder."""
    settings: TrainSettings
    """Training settings, with `device: auto` and `threads: 0` replaced by the actual device and number of threads. If
    `init_from` is set, the network and diffusion settings are combined with those of the initial prior; see
    `settings_of_start`."""
    config: PriorConfig
    """Configuration of the prior to train."""
    identity: dict[str, Any]
    """Settings and fingerprints that determine the trained weights; stored as `settings` in the prior's manifest."""
    input: str
    """Fingerprint of the content of the embeddings."""
    input_files: dict[str, FileMark]
    """Hash, size and modification time of each embedding file, by file name. Empty if the embeddings folder has a
    manifest, which already records the hashes."""
    limit: int | None = None
    """Total number of steps after which to write a checkpoint and stop; None trains to the last step."""
    notes: tuple[str, ...] = ()
    """Notes for the user about the initial prior."""
    empty: EmptyInputs | None = None
    """Outputs of the CLIP model for empty inputs, from the embeddings folder or the initial prior; None if unknown."""
    best_since: int = 0
    """Step at which the setting `validation_rows` last changed; 0 if it has never changed.

    Earlier validation losses were computed on different rows, so they are ignored when choosing the best weights.
    """

    @property
    def last_step(self) -> int:
        """Number of completed steps at which this run ends: `limit` or `settings.steps`, whichever is smaller."""
        return self.settings.steps if self.limit is None else min(self.limit, self.settings.steps)

    @property
    def record_input(self) -> str:
        """Fingerprint of the inputs of this training run. The manifest record of the finished prior stores it.

        A later run compares the stored fingerprint with that of its own inputs to check whether training is complete.
        The fingerprint covers the content of the embeddings. If `settings.steps_may_change` is True, it also covers the
        setting `steps`: a finished prior then counts as unfinished after `steps` has been changed. The same holds for
        `patience`, if it is set.
        """
        steps = [self.settings.steps] if self.settings.steps_may_change else []
        patience = [{"patience": self.settings.patience}] if self.settings.patience is not None else []
        return fingerprint([self.input, *steps, *patience]) if steps or patience else self.input

    @property
    def fingerprint(self) -> str:
        """Hash of everything that affects the trained weights. Checkpoints with a different hash are ignored."""
        return self.manifest().settings_fingerprint

    def open_embeddings(self) -> EmbeddingDataset:
        """Open the embeddings, and check that their content has not changed since the job was created.

        Raises:
            InputError: the embeddings are missing or have changed.
        """
        dataset = EmbeddingDataset(self.embeddings, self.read, known_files=self.input_files)
        if dataset.content_fingerprint != self.input:
            raise InputError(
                f"{self.embeddings} is not the same here as where the training was started; give all nodes one folder"
            )
        return dataset

    def manifest(self) -> Manifest:
        """Return the manifest that describes this job, without the record that marks the prior as finished."""
        files = {"files": to_json(self.input_files)} if self.input_files else {}
        return Manifest(STAGE, self.identity, input={"sha256": self.input, **files})


def make_job(
    dataset: EmbeddingDataset,
    prior: Store,
    settings: TrainSettings,
    compute: ComputeSettings,
    clip: ClipSettings | None,
    limit: int | None = None,
) -> TrainJob:
    """Create and validate the job that trains a prior on the given embeddings.

    Args:
        prior: prior folder.
        clip: CLIP model that produced the embeddings; used only if the embeddings folder does not name a CLIP model.
        limit: total number of steps after which to write a checkpoint and stop; None trains to the last step.

    Raises:
        InputError: the embeddings lack data that the settings need, or do not fit the initial prior.
        SettingsError: settings contradict each other, or a tracker is not installed.
    """
    notes: tuple[str, ...] = ()
    empty = dataset.empty_inputs
    settings = resolve_training(settings, compute)
    identity = resolved_identity(settings, dataset.settings)
    start = None if settings.init_from is None else load_start(settings.init_from)
    if start is not None:
        settings = settings_of_start(settings, start)
    config = _prior_config(dataset, settings, clip)
    if start is not None and settings.init_from is not None:
        check_start(start, dataset.store.url, settings.init_from.path, config)
        check_lora(settings, start)
        if has_unknown_clip(start.config):
            notes = (
                f"train.init_from {settings.init_from.path} does not name its CLIP, so it is not known whether it was "
                "trained with the one that made these embeddings",
            )
        empty = empty or start.empty
        names = ("clip", "clip_settings", "spaces", "trained_on")
        data = {name: getattr(config, name) for name in names}
        function = {"network": settings.network, "diffusion": settings.diffusion}
        config = start.config.model_copy(update={**function, **data, "lora": settings.lora is not None})
        identity["train"] = settings.identity()
        identity["init_from"] = {"sha256": prior_fingerprint(start)}
    identity["embeddings"] = {"rows": dataset.count, "sha256": dataset.content_fingerprint}
    if not dataset.clip_if_known:
        identity["clip"] = config.clip_settings
    if settings.patience is not None and not dataset.settings.validation_fraction:
        raise SettingsError(
            f"train.patience={settings.patience} needs validation rows, and read.validation_fraction is 0; raise "
            "that, or leave patience out"
        )
    _check_norms(dataset, settings)
    _check_text(dataset, settings, config)
    empty = _empty_inputs(empty, dataset, settings, config)
    check_trackers(settings, prior)
    return TrainJob(
        embeddings=dataset.store.url, read=dataset.settings, prior=prior.url, settings=settings, config=config,
        identity=identity, input=dataset.content_fingerprint, input_files=dataset.file_marks, limit=limit, notes=notes,
        empty=empty,
    )  # fmt: skip


def resolve_training(settings: TrainSettings, compute: ComputeSettings) -> TrainSettings:
    """Return the settings with `device: auto` and `threads: 0` replaced by the values that training will use.

    On Ray, `threads: 0` becomes the number of CPUs per worker, but at least 1. Locally, it becomes the number of
    available CPU cores.
    """
    threads = max(1, int(compute.cpus_per_worker)) if compute.backend == "ray" else None
    return resolve(settings, "train", compute, threads=threads)


def resolved_identity(settings: TrainSettings, read: ReadSettings) -> dict[str, Any]:
    """Return the part of `TrainJob.identity` that can be computed without opening the embeddings.

    Args:
        settings: training settings from `resolve_training`.
    """
    return {"train": settings.identity(), "read": read.identity()}


def _prior_config(dataset: EmbeddingDataset, settings: TrainSettings, clip: ClipSettings | None) -> PriorConfig:
    """Build the configuration of a new prior from the training settings and the embeddings.

    It includes the identity of the CLIP model that produced the embeddings. If the embeddings folder does not record an
    identity and captions are encoded during training, the CLIP model is loaded to determine the identity.

    Args:
        clip: CLIP model that produced the embeddings; used only if the embeddings folder does not name a CLIP model.
    """
    identity, location = dataset.clip_if_known, _clip_settings(dataset, clip)
    width = dataset.token_width
    if settings.text_condition == "online":
        if dataset.spaces is not None:
            raise InputError(
                f"train.text_condition=online: no CLIP made {dataset.store.url}, which could encode captions; leave it "
                "out"
            )
        if "token_width" not in identity:  # unknown, or declared without loading the CLIP
            # load on the CPU if this machine, unlike the workers, has no GPU; only the identity is needed here
            local = settings if torch.cuda.is_available() else settings.model_copy(update={"device": "cpu"})
            identity = find_text_encoder(location, identity, "that made the embeddings", local).identity
        width = identity["token_width"]
    return PriorConfig(
        embed_dim=dataset.embed_dim,
        text_dim=None if dataset.text_dim == dataset.embed_dim else dataset.text_dim,
        token_width=width if settings.network.max_token_states else None,
        network=settings.network,
        diffusion=settings.diffusion,
        clip=identity,
        clip_settings=location,
        spaces=dataset.spaces,
        trained_on=TrainedOn(embeddings=dataset.content_fingerprint, read=dataset.settings.identity()),
    )


def _clip_settings(dataset: EmbeddingDataset, clip: ClipSettings | None) -> dict[str, Any]:
    """Return the settings needed to load the CLIP model that produced the embeddings; empty if no CLIP did.

    Args:
        clip: CLIP model that produced the embeddings; used only if the embeddings folder does not name a CLIP model.

    Raises:
        InputError: the embeddings folder does not name a CLIP model, and `clip` is None.
    """
    if dataset.spaces is not None:
        return {}
    if dataset.clip_if_known:
        return dataset.clip_settings
    if clip is None:
        raise InputError(
            f"{dataset.store.url} does not name its CLIP: it has no manifest. To train on it, say in the recipe which "
            "CLIP made it (embed.clip), or take it over with `priorkit adopt`"
        )
    from ...pipeline.clip.encoder import check_clip  # takes seconds to import

    check_clip(clip)
    return clip_location(clip)


def _check_text(dataset: EmbeddingDataset, settings: TrainSettings, config: PriorConfig) -> None:
    """Check that the text inputs selected by `text_condition` are available, and that the prior can use them.

    Raises:
        InputError: the embeddings folder lacks the captions or token states (per-token text-encoder outputs) to train
            on, its CLIP model cannot output token states, or the initial prior takes token states of another width.
        SettingsError: `text_condition` is `pooled`, but the initial prior takes token states.
    """
    most, known = config.network.max_token_states, dataset.clip_if_known
    takes_states = most > 0 and (config.token_width is not None or settings.init_from is None)
    if takes_states:
        require_states_condition(settings)
    if settings.text_condition == "online":
        dataset.metadata(np.arange(1), ["caption"])
        if takes_states and config.token_width is None:
            raise InputError(
                f"train.text_condition=online: the CLIP {config.clip_settings['model']} gives no token states; "
                + ("take another CLIP" if config.network.needs_token_states else "set train.network.max_text_len=0")
            )
    elif takes_states and dataset.token_width is None:
        raise InputError(
            f"the network takes up to {most} token states, but {dataset.store.url} stores none; embed with "
            "token_states: true, or take train.text_condition=online"
            + ("" if config.network.needs_token_states else ", or set train.network.max_text_len: 0")
        )
    if takes_states and known and config.token_width != known.get("token_width"):
        raise InputError(
            f"the prior to start from takes token states of {config.token_width}, those of {dataset.store.url} are of "
            f"{known.get('token_width')}"
        )


def _check_norms(dataset: EmbeddingDataset, settings: TrainSettings) -> None:
    """Check that the embeddings folder stores the norms that a prior of embeddings that are not normalised needs.

    Raises:
        InputError: it does not.
    """
    if settings.diffusion.takes_raw_images:
        dataset.norms("img_emb")
    if settings.network.takes_raw_text and settings.text_condition != "online":
        dataset.norms("text_emb")


def _empty_inputs(
    known: EmptyInputs | None, dataset: EmbeddingDataset, settings: TrainSettings, config: PriorConfig
) -> EmptyInputs | None:
    """Return the CLIP model's outputs for empty inputs; None if they are unknown and training does not need them.

    If captions are encoded during training, the CLIP model also encodes the empty text.

    Args:
        known: outputs from the embeddings folder or the initial prior.

    Raises:
        InputError: the encoding of the empty text is needed for dropped texts, but unknown.
    """
    has_empty_text = known is not None and known.token_states is not None
    if has_empty_text or not (settings.network.needs_empty_text and settings.diffusion.text_drop):
        return known
    if settings.text_condition == "online":
        return encode_empty_inputs(config.clip_settings, config.clip, settings)
    raise InputError(
        f"{dataset.store.url} does not store the CLIP's output for the empty text, which stands for dropped texts; run "
        "`priorkit embed` again to add it, or set train.diffusion.text_drop=0"
    )
