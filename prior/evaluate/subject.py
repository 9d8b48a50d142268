"""Subject of an evaluation: a prior in its training folder, another prior, or predictions from another program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...pipeline.clip.identity import compare_clips
from ...pipeline.contract.hashing import hash_file
from ...pipeline.contract.manifest import Manifest, differing_files, fingerprint, read_manifest, require_manifest
from ...pipeline.contract.storage import Store, open_location
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.read.dataset import EmbeddingDataset
from ...pipeline.read.settings import ReadSettings
from ...pipeline.settings import parse_settings
from ..interchange.diffusers.load import find_transformer, transformer_files
from ..interchange.load import is_pth, load_prior, read_config
from ..interchange.pth import find_pth
from ..model.config import TrainedOn
from ..model.folder import CONFIG_NAME, WEIGHTS_NAME, load_config
from ..model.prior import Prior
from ..model.settings import WeightsName
from ..model.text_encoder import match_clips
from ..model.train_manifest import RECORD, STAGE
from ..sampling.settings import SampleSettings

PREDICTIONS_SUFFIX = ".npy"
"""Extension of a file of predictions."""
Kind = Literal["prior, trained here", "prior", "checkpoint", "predictions"]
"""Kind of model or file that is evaluated, as stored in `metrics.json`.

`prior, trained here` is a prior in the folder where priorkit trained it, `prior` is any other folder of a prior,
`checkpoint` is a DALLE2-pytorch `.pth`, and `predictions` is a `.npy` file.
"""
TrainingRows = Literal["held out", "of other embeddings", "unknown"]
"""Relation between the evaluated rows and the rows that the prior was trained on, as stored in `metrics.json`.

`held out` means that the prior was not trained on the evaluated rows. `of other embeddings` means that it was trained
on a different set of embeddings, so the two sets of rows may overlap. `unknown` means that the training rows cannot be
determined.
"""
TRAINING_ROWS_WARNINGS: dict[TrainingRows, str] = {
    "of other embeddings": "It was trained on other embeddings: where images are in both, it may be evaluated on rows "
    "that it was trained on.",
    "unknown": "On which rows it was trained is not known: if these are among them, its scores are too good.",
}
"""Warnings to show with the scores if the prior may have been trained on evaluated rows, by `TrainingRows` value."""


@dataclass(frozen=True)
class PriorSource:
    """Location of the prior or predictions to evaluate, and the arguments that `load_prior` needs to load the prior."""

    path: str
    """Prior folder, folder of diffusers, DALLE2-pytorch `.pth` file, or `.npy` file of predictions."""
    config: str | None = None
    """Path or URL of the JSON settings of a `.pth`, or name of built-in settings; None for other paths."""
    function_version: str | None = None
    """DALLE2-pytorch release whose network implementation a `.pth` needs, as for `load_prior`."""

    @property
    def is_predictions(self) -> bool:
        """True if the path ends in `.npy`, the extension of a file of predictions."""
        return self.path.endswith(PREDICTIONS_SUFFIX)

    @property
    def is_pth(self) -> bool:
        """True if the path is a DALLE2-pytorch checkpoint (`.pth`).

        Raises:
            SettingsError: `config` is missing for a `.pth`, `config` or `function_version` is given for a path that is
                not a `.pth`, or the path is a file of an unsupported type.
        """
        return is_pth(self.path, config=self.config, function_version=self.function_version)

    def load(self, weights: WeightsName = "ema", device: str = "cpu") -> Prior:
        """Load the prior with the named weights (`ema`, `online` or `best`) onto a device."""
        return load_prior(
            self.path, device, config=self.config, weights=weights, function_version=self.function_version
        )


@dataclass(frozen=True)
class Subject:
    """Prior or predictions to evaluate, with a fingerprint of their content and the split settings to use."""

    source: PriorSource
    """Location of the prior or predictions."""
    kind: Kind
    """Kind of model or file that is evaluated; see `Kind`."""
    read: ReadSettings
    """Settings that assign rows to the training, validation and test splits."""
    content: str
    """Fingerprint of the evaluated files and loading options; an empty string if training has not finished."""
    trained_on: TrainedOn | None = None
    """Embeddings and splits that the prior was trained on; None if unknown."""
    trained: Manifest | None = None
    """Manifest of the training run; None unless the prior is in the folder where priorkit trained it."""

    @property
    def is_predictions(self) -> bool:
        """True for a file of predictions, False for a prior."""
        return self.source.is_predictions

    def parameters(self, weights: WeightsName) -> float:
        """Return the number of parameters of the prior's network.

        A `.pth`, or a folder of diffusers, is loaded with the named weights to count its parameters. For a prior
        folder, the number is estimated from the size of the weights file, with 4 bytes per parameter.
        """
        size = Store(self.source.path).size(WEIGHTS_NAME)
        # a checkpoint stores the weights several times, so its file size is no good estimate
        if self.kind == "checkpoint" or (self.kind == "prior" and size is None):
            return sum(value.numel() for value in self.source.load(weights).network.parameters())
        return (size or 0) / 4

    def require_finished(self) -> None:
        """Raise InputError if the prior has not finished training."""
        if not self.content:
            raise InputError(
                f"{self.source.path}: the prior's training has not ended; run `priorkit train` again, it resumes where "
                "it was, and can be evaluated after its last step"
            )

    def training_rows(self, dataset: EmbeddingDataset) -> TrainingRows:
        """Determine whether the prior may have been trained on evaluated rows; see `TrainingRows` for the results.

        Raises:
            SettingsError: the dataset is split differently than in training, so evaluated rows could be training rows.
        """
        if self.trained_on is None:
            return "unknown"
        if self.trained_on.embeddings != dataset.content_fingerprint:
            return "of other embeddings"
        splits, training = dataset.settings.splits(), _read_settings(self.trained_on, self.source.path).splits()
        if splits != training:
            raise SettingsError(
                f"read={splits}: {self.source.path} was trained with {training}; other splits "
                "would mix in rows that it was trained on; use the same"
            )
        return "held out"

    def described(self, dataset: EmbeddingDataset) -> dict[str, Any]:
        """Return the section of `metrics.json` that describes the evaluated prior or predictions."""
        source = self.source
        loaded = {"config": source.config, "function_version": source.function_version}
        return {
            "path": source.path,
            "kind": self.kind,
            **(loaded if self.kind == "checkpoint" else {}),
            "content": self.content,
            "training_rows": self.training_rows(dataset),
        }

    def check(
        self, dataset: EmbeddingDataset, samples: Sequence[SampleSettings], weights: Sequence[WeightsName]
    ) -> None:
        """Check before evaluation that the prior is intact, fits the embeddings and supports the sampling settings.

        If the subject is a file of predictions rather than a prior, this method does nothing, because
        `read_predictions` checks the file.

        Args:
            dataset: embeddings to evaluate on.
            samples: all sampling settings that the evaluation uses.
            weights: names of all weights that the evaluation loads.

        Raises:
            InputError: the prior is damaged, lacks one of `weights`, or differs from the embeddings in embedding size,
                CLIP model, or size of the token states (per-token text-encoder outputs).
            SettingsError: the prior does not support one of the sampling settings in `samples`.
        """
        if self.is_predictions:
            return
        path = self.source.path
        if self.trained is not None and (bad := differing_files(Store(path), self.trained.shards[RECORD])):
            raise InputError(f"{path}/{bad[0]} differs from what was trained; restore it, or train again")
        for name in weights:
            prior = self.source.load(name)
        config = prior.config
        for sample in samples:
            prior.check(sample)
        if config.embed_dim != dataset.embed_dim:
            raise InputError(
                f"{dataset.store.url} holds embeddings of {dataset.embed_dim}, {path} predicts {config.embed_dim}"
            )
        if prior.token_states_used and dataset.token_width != config.token_width:
            stored = "no token states" if dataset.token_width is None else f"token states of {dataset.token_width}"
            raise InputError(
                f"{dataset.store.url} stores {stored}, {path} takes those of {config.token_width}; embed with "
                "token_states: true and the CLIP that it was trained with"
            )
        if prior.network.text_dim != dataset.text_dim:
            raise InputError(
                f"{dataset.store.url} holds text embeddings of {dataset.text_dim}, {path} takes "
                f"{prior.network.text_dim}"
            )
        if match_clips(config, dataset) == "other" and (config.spaces or dataset.spaces):
            raise InputError(
                f"{dataset.store.url} has another source or target than {path} was trained with: "
                f"{_spaces(dataset.spaces)} instead of {_spaces(config.spaces)}"
            )
        if compare_clips(config.clip, config.clip_settings, dataset.clip_if_known, {}) == "other":
            raise InputError(f"{dataset.store.url} was embedded by another CLIP than the prior was trained with")


def find_subject(source: PriorSource, read: ReadSettings | None) -> Subject:
    """Describe the prior or predictions at a location: their kind, content fingerprint and split settings.

    The weights are not loaded.

    Args:
        source: location of the prior or predictions.
        read: settings that assign rows to splits. None uses the settings that the prior was trained with, or the
            defaults if those are unknown.

    Raises:
        InputError: the location contains nothing that can be evaluated.
        SettingsError: an option is missing or does not apply to this kind of file.
    """
    path = source.path
    if source.is_pth:
        assert source.config is not None
        loaded = [_sha256(*find_pth(path), path), read_config(source.config), source.function_version]
        return Subject(source, "checkpoint", read or ReadSettings(), fingerprint(loaded))
    if source.is_predictions:
        return Subject(source, "predictions", read or ReadSettings(), _sha256(*open_location(path), path))
    if (folder := find_transformer(path)) is not None:
        inner = folder.store
        hashes = {name: _sha256(inner.fs, inner.path(name), path) for name in transformer_files(folder)}
        return Subject(source, "prior", read or ReadSettings(), fingerprint([hashes, folder.scheduler]))
    store = Store(path)
    if read_manifest(store) is None and store.size(CONFIG_NAME) is not None:
        known = load_config(store).trained_on
        files = {name: _sha256(store.fs, store.path(name), path) for name in (CONFIG_NAME, WEIGHTS_NAME)}
        kind: Kind = "prior"
        trained = None
    else:
        trained, kind = require_manifest(store, STAGE), "prior, trained here"
        known = TrainedOn(embeddings=trained.settings["embeddings"]["sha256"], read=trained.settings["read"])
        record = trained.shards.get(RECORD)
        files = {} if record is None else {name: record.files[name].sha256 for name in (CONFIG_NAME, WEIGHTS_NAME)}
    chosen = read or (ReadSettings() if known is None else _read_settings(known, path))
    return Subject(source, kind, chosen, fingerprint(files) if files else "", known, trained)


def _spaces(spaces: dict[str, Any] | None) -> str:
    """Return the names and the model of a source and a target, for messages."""
    if spaces is None:
        return "text and images of a CLIP"
    names = [str(spaces.get(role, {}).get("name")) for role in ("source", "target")]
    return f"{' to '.join(names)} of {spaces.get('target', {}).get('model')}"


def _read_settings(trained_on: TrainedOn, path: str) -> ReadSettings:
    """Return the settings that assigned rows to splits in training, as recorded in `trained_on`.

    `path`, the location of the prior, is used only in error messages.
    """
    return parse_settings(ReadSettings, trained_on.read, f"{path}: what it was trained on")


def _sha256(fs: Any, location: str, path: str) -> str:
    """Return the SHA-256 of the file `location` in the file system `fs`.

    Raises:
        InputError: the file cannot be read. The message contains `path`, the location of the prior or predictions.
    """
    try:
        with fs.open(location, "rb") as file:
            return hash_file(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
