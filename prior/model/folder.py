"""Functions that read and write the files of a prior folder.

`config.json` and `model.safetensors` define the prior. `state/` contains the checkpoints from which training can be
resumed. If training validated the prior, `best.safetensors` contains the averaged weights with the lowest validation
loss. The folder contains no pickle files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import nn

from ...pipeline.contract.empty_inputs import EmptyInputs
from ...pipeline.contract.hashing import HashingFile
from ...pipeline.contract.storage import Store
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.json_text import parse_json
from ...pipeline.settings import parse_settings
from ..network.interface import Network
from ..network.lora import is_adapter_weight
from ..objective.normaliser import EmbeddingNormaliser
from .config import PriorConfig, build_network_with, build_normaliser, describe_network
from .empty import empty_tensors, take_empty_tensors
from .prior import Prior
from .tensor_file import TensorFile, write_tensors

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
BEST_NAME = "best.safetensors"
STATE_FOLDER = "state"
_FORMAT_VERSION = 2
"""Version of the `config.json` format that this release reads and writes."""
_NORMALISER = "normaliser."
"""Prefix of the names of the normaliser's tensors in `model.safetensors`."""

Create = Callable[[str], contextlib.AbstractContextManager[HashingFile]]
"""Function that takes a file name and returns a context manager. The context manager opens the file for writing in the
prior folder.

The file gets its final name only when it is complete.
"""


def save_prior(
    create: Create,
    config: PriorConfig,
    network: Network,
    normaliser: EmbeddingNormaliser,
    empty: EmptyInputs | None = None,
) -> None:
    """Write `model.safetensors` (weights and normaliser statistics) and `config.json` to a prior folder.

    `config.json` is written last. If writing is interrupted, its absence shows that the prior is incomplete.

    Args:
        create: function that opens a file in the folder for writing.
        config: configuration of the prior.
        network: network whose weights are written.
        normaliser: normaliser whose statistics, if any, are written.
        empty: outputs of the prior's CLIP model for empty inputs; None if they are unknown.
    """
    tensors = {**prior_tensors(network, normaliser), **empty_tensors(empty)}
    with create(WEIGHTS_NAME) as file:
        write_tensors(file, tensors)
    unused = {name for name in ("spaces", "image_norm", "lora") if not getattr(config, name)}
    described = {"format_version": _FORMAT_VERSION, **config.model_dump(mode="json", exclude=unused)}
    with create(CONFIG_NAME) as file:
        file.write((json.dumps(described, indent=1) + "\n").encode())


def prior_tensors(network: Network, normaliser: EmbeddingNormaliser) -> dict[str, torch.Tensor]:
    """Return the tensors of a prior, keyed by name: the network's weights and the normaliser's statistics, if any.

    The names of the statistics begin with `normaliser.`.
    """
    return {**network.state_dict(), **{f"{_NORMALISER}{k}": v for k, v in normaliser.state_dict().items()}}


def prior_fingerprint(prior: Prior) -> str:
    """Return the SHA-256 hash, in hexadecimal, of a prior's weights and normaliser statistics.

    The hash does not depend on the format of the file that the prior was loaded from. It depends on the precision of
    the weights in memory.
    """
    digest = hashlib.sha256()
    for name, value in sorted(prior_tensors(prior.network, prior.normaliser).items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_folder(path: str) -> Prior:
    """Load a prior onto the CPU from a local or remote folder.

    Raises:
        InputError: the folder contains no prior, the prior has not finished training, or a file is damaged.
    """
    store = Store(path)
    try:
        config = load_config(store)
        file = TensorFile(store, WEIGHTS_NAME)
        weights = file.read(list(file.entries))
    except (FileNotFoundError, NotADirectoryError):
        if steps := _state_steps(store):
            raise InputError(
                f"{path}: its training has not ended, {steps[-1]:,} steps are done; the same `priorkit train` command "
                "resumes from there, and publishes the prior after the last step"
            ) from None
        raise InputError(
            f"{path}: no prior is there ({CONFIG_NAME} and {WEIGHTS_NAME} are needed); run `priorkit train`"
        ) from None
    empty = take_empty_tensors(weights, store.path(WEIGHTS_NAME))
    normaliser = build_normaliser(config)
    statistics = {name: weights.pop(name) for name in list(weights) if name.startswith(_NORMALISER)}
    _check_weights(describe_network(config), weights, f"{path}/{WEIGHTS_NAME}")
    statistics = {name.removeprefix(_NORMALISER): value for name, value in statistics.items()}
    _check_weights(normaliser, statistics, f"{path}/{WEIGHTS_NAME}")
    normaliser.load_state_dict(statistics)
    return Prior(config, build_network_with(config, weights), normaliser, empty)


def load_config(store: Store) -> PriorConfig:
    """Read `config.json`.

    Raises:
        FileNotFoundError: the file is missing.
        InputError: the file is damaged or has an unsupported format.
    """
    described, source = store.read_json(CONFIG_NAME), f"{store.url}/{CONFIG_NAME}"
    version = described.pop("format_version", None) if isinstance(described, dict) else None
    if version != _FORMAT_VERSION:
        raise InputError(f"{source} has format version {version}; this priorkit reads {_FORMAT_VERSION}")
    try:
        return parse_settings(PriorConfig, described, source)
    except SettingsError as error:
        raise InputError(f"{error}; restore the file or train again") from None


@dataclass
class TrainState:
    """Training checkpoint: everything needed to resume training as if it had not been interrupted."""

    step: int
    """Number of completed steps."""
    network: dict[str, torch.Tensor]
    """Weights that the optimiser updates."""
    average: dict[str, torch.Tensor]
    """Exponential moving average (EMA) of the weights."""
    optimiser: dict[str, torch.Tensor]
    """Optimiser state, keyed by `<weight name>.<state key>`."""
    normaliser: dict[str, torch.Tensor]
    """Mean and scale of the training embeddings, used by the normaliser; empty if the normaliser uses no statistics."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors, keyed by name. Each name starts with the name of its field, such as `network.`."""
        return {f"{part}.{name}": value for part in _PARTS for name, value in getattr(self, part).items()}

    @staticmethod
    def from_tensors(step: int, tensors: Mapping[str, torch.Tensor]) -> TrainState:
        """Create a training state from a step number and named tensors. This is the inverse of `tensors`.

        Args:
            step: number of completed training steps.
            tensors: all tensors of the state, named as in the result of `tensors`.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        return TrainState(step=step, **parts)


_PARTS = ("network", "average", "optimiser", "normaliser")
"""Fields of `TrainState` that contain tensors."""


def save_state(store: Store, state: TrainState, settings_fingerprint: str, keep: int) -> None:
    """Write a checkpoint atomically as one file, then remove all but the newest `keep` checkpoints.

    Checkpoints of steps after `state.step` are also removed, because they come from a discarded training run.

    Args:
        settings_fingerprint: hash of the training settings, stored in the checkpoint and compared by `load_state`.
        keep: number of checkpoints to keep, including the new one.
    """
    # use a single metadata key, because safetensors writes several keys in an order that varies between runs
    metadata = {"priorkit": json.dumps({"step": state.step, "settings": settings_fingerprint})}
    with store.create(_state_name(state.step)) as file:
        file.write(safetensors.torch.save(_to_cpu(state.tensors()), metadata))
    steps = _state_steps(store)
    newest = [step for step in steps if step <= state.step][-keep:]
    for step in steps:
        if step not in newest:
            store.remove(_state_name(step))


def load_state(store: Store, settings_fingerprint: str) -> TrainState | None:
    """Read the newest undamaged checkpoint with the given settings fingerprint (hash of the training settings).

    Return None if no checkpoint has this fingerprint.

    Raises:
        InputError: at least one checkpoint is damaged, and no undamaged checkpoint has the given fingerprint.
    """
    damage: InputError | None = None
    for step in reversed(_state_steps(store)):
        try:
            with store.open(_state_name(step)) as file:
                tensors, stored = _read_tensors(file, store.path(_state_name(step)))
        except InputError as error:
            # raised only if no earlier checkpoint is usable; resuming from an earlier one repeats the same steps
            damage = error
            continue
        if stored.get("settings") == settings_fingerprint:
            return TrainState.from_tensors(stored["step"], tensors)
    if damage is not None:
        raise damage  # a silent restart from step 0 would lose the work
    return None


def newest_step(store: Store, settings_fingerprint: str) -> int | None:
    """Return the step of the newest undamaged checkpoint with the given settings fingerprint, or None if there is none.

    The fingerprint is a hash of the training settings. Only the headers of the checkpoint files are read.
    """
    for step in reversed(_state_steps(store)):
        if _described(store, _state_name(step)).get("settings") == settings_fingerprint:
            return step
    return None


def _described(store: Store, name: str) -> dict[str, Any]:
    """Return the dictionary that priorkit stored in the header of a checkpoint file: `step` and `settings`.

    `settings` is the fingerprint (hash) of the training settings. The tensors are not read.

    Returns:
        The dictionary. It is empty if the file is missing or truncated, or if its header is damaged.
    """
    start = bytearray(8)
    try:
        store.read_into(name, 0, memoryview(start))
        size = store.size(name) or 0
        header = bytearray(min(int.from_bytes(start, "little"), size))
        store.read_into(name, len(start), memoryview(header))
        content = parse_json(header)
        described = parse_json(content.pop("__metadata__")["priorkit"])
        end = max((entry["data_offsets"][1] for entry in content.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    is_whole = size == len(start) + len(header) + end
    return described if is_whole and isinstance(described, dict) else {}


def clear_states(store: Store) -> None:
    """Remove all training checkpoints, and the weights with the lowest validation loss (`best.safetensors`)."""
    for step in _state_steps(store):
        store.remove(_state_name(step))
    store.remove(BEST_NAME)


def save_best(store: Store, network: Network, step: int, loss: float, settings_fingerprint: str) -> None:
    """Write the weights of `network` to `best.safetensors`, replacing any previous file.

    Of a network with adapters, only the weights of the adapters are written.

    Args:
        network: network with the averaged weights (EMA), which have the lowest validation loss so far.
        step: number of completed training steps.
        loss: validation loss of the weights.
        settings_fingerprint: fingerprint of the training settings, which `load_best` compares.
    """
    metadata = {"priorkit": json.dumps({"step": step, "validation_loss": loss, "settings": settings_fingerprint})}
    weights = network.state_dict()
    if adapters := {name: value for name, value in weights.items() if is_adapter_weight(name)}:
        weights = adapters  # the other weights are not trained
    with store.create(BEST_NAME) as file:
        file.write(safetensors.torch.save(_to_cpu(weights), metadata))


def load_best(store: Store, settings_fingerprint: str) -> dict[str, torch.Tensor] | None:
    """Read the weights with the lowest validation loss from `best.safetensors`, keyed by name.

    They are averaged weights (EMA). Return None if the file is missing, or if it was saved with a different settings
    fingerprint (hash of the training settings).

    Raises:
        InputError: the file is damaged.
    """
    try:
        with store.open(BEST_NAME) as file:
            tensors, stored = _read_tensors(file, store.path(BEST_NAME))
    except FileNotFoundError:
        return None
    return tensors if stored.get("settings") == settings_fingerprint else None


def optimiser_tensors(optimiser: torch.optim.Optimizer, network: Network) -> dict[str, torch.Tensor]:
    """Return an optimiser's state as named tensors, for a checkpoint.

    Args:
        optimiser: optimiser of the network's weights.
        network: network whose weight names are used.

    Returns:
        Tensors keyed by `<weight name>.<state key>`, such as `query.exp_avg`.
    """
    return {
        f"{name}.{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimiser.state[parameter].items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, network: Network, tensors: dict[str, torch.Tensor]) -> None:
    """Restore the state of an optimiser from a checkpoint, in place.

    Args:
        optimiser: optimiser to change.
        network: network that the optimiser updates, with the same weight names as when the state was saved.
        tensors: result of `optimiser_tensors`.
    """
    parameters = dict(network.named_parameters())
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition(".")
        parameter = parameters[parameter_name]
        # AdamW keeps its step count on the CPU
        optimiser.state[parameter][key] = value if key == "step" else value.to(parameter.device)


def _state_name(step: int) -> str:
    return f"{STATE_FOLDER}/step_{step:09d}.safetensors"


def _state_steps(store: Store) -> list[int]:
    names = [name for name in store.names(STATE_FOLDER) if name.endswith(".safetensors")]
    return sorted(int(name.rpartition("_")[2].partition(".")[0]) for name in names)


def _to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _read_tensors(file: BinaryIO, source: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors in a safetensors file, and the dictionary that priorkit stored in its header, if any.

    Raises:
        InputError: the file is damaged.
    """
    data = file.read()
    try:
        tensors = safetensors.torch.load(data)
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        stored = parse_json(header.get("__metadata__", {}).get("priorkit", "{}"))
        if not isinstance(stored, dict) or ("settings" in stored and not isinstance(stored.get("step"), int)):
            raise ValueError(f"its metadata is {stored!r}"[:100])
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{source} is not a whole safetensors file ({error}); restore it or train again") from error
    return tensors, stored


def _check_weights(network: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Check that weights have the names and shapes of those of a network.

    Raises:
        InputError: they do not.
    """
    expected = network.state_dict()
    missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or extra:
        raise InputError(f"{source} does not fit its config: missing {missing[:3]}, unknown {extra[:3]}")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise InputError(f"{source}: {name} is {list(value.shape)}, its config says {list(expected[name].shape)}")
