"""Optional metric trackers: TensorBoard and Weights & Biases (W&B).

Each tracker requires the priorkit extra (optional dependency group) of the same name.

A training run that resumes from a checkpoint may repeat steps. TensorBoard then hides the earlier values for these
steps. W&B cannot replace earlier values, so repeated steps are not sent to W&B.
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
from ...pipeline.json_text import parse_json
from .settings import TrainSettings

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
"""Python module that each tracker requires, by tracker name."""
_DEFAULT_FOLDER = "trackers"
"""Name of the default folder for tracker files, inside the prior folder."""


class Tracker(Protocol):
    """Object that sends training metrics to a tool such as TensorBoard or W&B."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step, by name. Within a process, `step` must increase with every call."""

    def close(self) -> None:
        """Write buffered metrics and close the tracker."""


def check_trackers(settings: TrainSettings, prior: Store) -> Path | None:
    """Check the tracker settings, and return the folder that trackers write to, or None if there are no trackers.

    Raises:
        SettingsError: a tracker is not installed, or has no local folder to write to.
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
    """Open the trackers named in the settings; return an empty sequence if there are none.

    Args:
        prior: prior folder.
        name: unique name of the training run, which stays the same when training resumes.
        described: settings of the training run, which W&B displays.
        step: number of steps completed before this run; above 0 if training resumes.
    """
    folder = check_trackers(settings, prior)
    if folder is None:
        return []
    makers: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {
        "tensorboard": TensorBoard, "wandb": WeightsAndBiases
    }  # fmt: skip
    return [makers[tracker](folder / tracker, name, described, step) for tracker in settings.trackers]


class TensorBoard:
    """Tracker that writes event files, which `tensorboard --logdir` displays."""

    def __init__(self, folder: Path, name: str, described: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write each metric to the event file as a scalar with the metric's name."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """Tracker that sends metrics to a W&B run. If training resumes, the tracker continues the existing W&B run.

    The ID of the W&B run is stored in the tracker folder. If training starts from step 0, a new W&B run is created. The
    environment variable `WANDB_MODE` selects the mode, `online` or `offline`.
    """

    def __init__(self, folder: Path, name: str, described: dict[str, Any], step: int) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._state_file = folder / f"{name}.json"
        if step == 0:
            self._state_file.unlink(missing_ok=True)
        state: dict[str, Any] = parse_json(self._state_file.read_text()) if self._state_file.exists() else {}
        self._id: str = state.get("id", uuid.uuid4().hex[:8])
        self._last: int = state.get("step", 0)
        self._run = wandb.init(
            project="priorkit", id=self._id, dir=str(folder), config=described, resume="allow",
            settings=wandb.Settings(console="off", x_disable_stats=True, save_code=False, disable_git=True),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics of a step to W&B.

        If metrics for this step or a later one have already been sent, do nothing.
        """
        if step <= self._last:
            return
        self._run.log(dict(values), step=step, commit=True)
        self._last = step
        with atomic_file(self._state_file, durable=False) as file:
            file.write(json.dumps({"id": self._id, "step": step}).encode())

    def close(self) -> None:
        """Finish the W&B run."""
        self._run.finish()
