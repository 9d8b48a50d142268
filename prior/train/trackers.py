"""Where metrics are shown besides `metrics.jsonl`: TensorBoard and Weights & Biases, each an extra.

A run that goes on from a checkpoint makes some steps again. TensorBoard is told to hide what it had of them; W&B, which
cannot, is given no step that it has had.
"""

from __future__ import annotations

import importlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...pipeline.contract.storage import Store, atomic_file
from ...pipeline.errors import SettingsError
from .settings import TrainSettings

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
_DEFAULT_FOLDER = "trackers"


class Tracker(Protocol):
    """Takes metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All of one step; the steps of a process rise."""

    def close(self) -> None:
        """Write what is left."""


def check_trackers(settings: TrainSettings, prior: Store) -> Path | None:
    """The folder that trackers write to; None if there are none.

    Raises:
        SettingsError: a tracker is not installed, or there is no local folder for it.
    """
    if not settings.trackers:
        return None
    for name in settings.trackers:
        try:
            importlib.import_module(_MODULES[name])
        except ImportError as error:
            raise SettingsError(
                f"train.trackers: {name} is not installed ({error}): pip install 'priorkit[{name}]', or leave it out"
            ) from error
    if settings.tracker_folder is None and not prior.is_local:
        raise SettingsError(
            f"train.trackers: {', '.join(settings.trackers)} write to a local folder, and {prior.url} is none: set "
            "train.tracker_folder"
        )
    return Path(settings.tracker_folder or f"{prior.root}/{_DEFAULT_FOLDER}").absolute()


def open_trackers(
    settings: TrainSettings, prior: Store, name: str, described: dict[str, Any], step: int
) -> Sequence[Tracker]:
    """The trackers that are asked for.

    Args:
        name: tells this training from others.
        described: its settings.
        step: steps that are done already.
    """
    folder = check_trackers(settings, prior)
    if folder is None:
        return []
    makers: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {
        "tensorboard": TensorBoard, "wandb": WeightsAndBiases
    }  # fmt: skip
    return [makers[tracker](folder / tracker, name, described, step) for tracker in settings.trackers]


class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, folder: Path, name: str, described: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B, which goes on under the same name. Online or offline as `WANDB_MODE` says."""

    def __init__(self, folder: Path, name: str, described: dict[str, Any], step: int) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._mark = folder / f"{name}.json"
        if step == 0:
            self._mark.unlink(missing_ok=True)
        marked: dict[str, Any] = json.loads(self._mark.read_text()) if self._mark.exists() else {}
        self._id: str = marked.get("id", uuid.uuid4().hex[:8])
        self._last: int = marked.get("step", 0)
        self._run = wandb.init(
            project="priorkit", id=self._id, dir=str(folder), config=described, resume="allow",
            settings=wandb.Settings(console="off", x_disable_stats=True, save_code=False, disable_git=True),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if step <= self._last:
            return
        self._run.log(dict(values), step=step, commit=True)
        self._last = step
        with atomic_file(self._mark, durable=False) as file:
            file.write(json.dumps({"id": self._id, "step": step}).encode())

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()
