"""Reference outputs of DALLE2-pytorch's prior, one `Golden` per configuration of a release.

`make_goldens.py` wrote them. Only the outputs are stored, with what cannot be drawn again. `seeded.py` draws weights
and inputs on either side.

`goldens/goldens.json` holds `schedule_buffers` (names in the order of the stacked arrays) and `goldens`, a list of the
fields of `Golden` without `expected`, plus `loss`. `goldens/goldens.npz` holds, as float32:

- `NAME/output`, `NAME/ddpm`, `NAME/ddim`: `[B, D]` for the golden of that name, where not in `absent`
- `schedule/KIND/T`: `[13, T]`, the noise scheduler's buffers
- `freqs/N`: `[N]`, the rotary frequencies
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import seeded

FOLDER = Path(__file__).resolve().parent / "goldens"
BATCH = 4

FloatArray = NDArray[np.float32]


def release_key(release: str) -> tuple[int, ...]:
    """A release as numbers, so that 1.10.2 comes after 1.9.0."""
    return tuple(int(part) for part in release.split("."))


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One configuration of one release: what goes in, and what upstream returned."""

    name: str
    """Release and number, such as `1.15.6-07`."""
    release: str
    seed: int
    """Of the weights and inputs, for `seeded`."""
    network: dict[str, Any]
    """Keyword arguments of upstream's DiffusionPriorNetwork."""
    prior: dict[str, Any]
    """Keyword arguments of upstream's DiffusionPrior, besides `net`."""
    times: list[int]
    """Timestep of each row, for `output` and `loss`: 0 and T - 1 are among them."""
    token_rows: int | None
    """Rows of the text encodings, padding included; None without text encodings."""
    token_lengths: list[int] | None
    """Rows of each caption that are not padding."""
    token_gap: int | None
    """This row is zero too, in every caption: padding in the middle."""
    text_keep: list[bool]
    """For `loss`: whose text is kept (upstream's mask, or all True where its probability of a drop is 0)."""
    image_keep: list[bool]
    """For `loss`: whose noisy image is kept. Unused before 1.9.0, as are the text's."""
    self_conditioned: bool
    """For `loss`: whether it conditions on a first prediction, made without drops. Without effect in 1.6.1."""
    cond_scale: float
    """Of `ddpm` and `ddim`."""
    ddim_steps: int
    """Upstream's `timesteps` argument for `ddim`."""
    shapes: dict[str, list[int]] = field(default_factory=dict)
    """Shapes of the state dict, without the schedule's buffers; `*` stands for the number of every layer."""
    absent: dict[str, str] = field(default_factory=dict)
    """Outputs that upstream cannot give, and why."""
    amplification: dict[str, float] = field(default_factory=dict)
    """By how much an output's relative error exceeds that of the network's predictions: a tolerance's factor if > 1."""
    expected: dict[str, FloatArray] = field(default_factory=dict)
    """`output` `[B, D]`, `loss` `[]`, `ddpm` `[B, D]`, `ddim` `[B, D]`, without those in `absent`.

    - `output`: the network on `noisy_image_embed` at `times`, with `self_cond` and without drops.
    - `loss`: `p_losses` of `image_embed` times the scale, at `times`, with `loss_noise`: a mean over batch and D.
    - `ddpm`, `ddim`: `p_sample_loop`, divided by the image embeddings' scale, which upstream itself does since 1.6.5.
    """

    @property
    def dim(self) -> int:
        """D, the size of an embedding."""
        return int(self.network["dim"])

    @property
    def timesteps(self) -> int:
        """T, the timesteps of the noise schedule."""
        return int(self.prior["timesteps"])

    @property
    def image_embed_scale(self) -> float:
        """What upstream multiplies unit image embeddings by."""
        scale = self.prior["image_embed_scale"]
        return float(self.dim**0.5 if scale is None else scale)

    @property
    def image_embed(self) -> FloatArray:
        """`[B, D]`, of norm 1."""
        return seeded.unit_rows(self.seed, "image_embed", (BATCH, self.dim))

    @property
    def noisy_image_embed(self) -> FloatArray:
        """`[B, D]`, the network's input for `output`."""
        return seeded.uniform(self.seed, "noisy_image_embed", (BATCH, self.dim))

    @property
    def self_cond(self) -> FloatArray | None:
        """`[B, D]`, the network's self-conditioning for `output`; None where the release or the switch has none."""
        if not self.network.get("self_cond") or release_key(self.release) < (1, 6, 2):
            return None
        return seeded.uniform(self.seed, "self_cond", (BATCH, self.dim))

    @property
    def text_embed(self) -> FloatArray:
        """`[B, D]`, of norm 1."""
        return seeded.unit_rows(self.seed, "text_embed", (BATCH, self.dim))

    @property
    def text_encodings(self) -> FloatArray | None:
        """`[B, token_rows, D]`: a row of zeros is padding. May be longer than the network's `max_text_len`."""
        if self.token_rows is None or self.token_lengths is None:
            return None
        encodings = seeded.uniform(self.seed, "text_encodings", (BATCH, self.token_rows, self.dim))
        for row, length in enumerate(self.token_lengths):
            encodings[row, length:] = 0.0
        if self.token_gap is not None:
            encodings[:, self.token_gap] = 0.0
        return encodings

    @property
    def loss_noise(self) -> FloatArray:
        """`[B, D]`, the noise of `loss`."""
        return seeded.uniform(self.seed, "loss_noise", (BATCH, self.dim))

    @property
    def noise(self) -> list[FloatArray]:
        """T + 1 tensors `[B, D]` for either sampler, in the order of use.

        The first is the initial noise, the next that of the first step. `ddpm` uses them all, the last times 0. `ddim`
        uses one per evaluation, but none where the next timestep is 0 or less: the last evaluation, and since 1.10.3
        the one before it if that steps to 0.
        """
        shape = (BATCH, self.dim)
        return [seeded.uniform(self.seed, f"noise/{i}", shape) for i in range(self.timesteps + 1)]

    def parameter(self, name: str, shape: Sequence[int]) -> FloatArray:
        """A parameter's values, by its name in the state dict."""
        # Before 1.4.3 the logits were multiplied by 128 after the bias was added: a larger bias hides queries and keys.
        position_bias = 0.5 / 128.0 if release_key(self.release) < (1, 4, 3) else 0.5
        return seeded.parameter(self.seed, name, shape, position_bias=position_bias)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the state dict, without the schedule's buffers, one entry per layer."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            for layer in range(self.network["depth"] if "*" in name else 1):
                shapes[name.replace("*", str(layer))] = tuple(shape)
        return shapes

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """All of upstream's `DiffusionPrior.state_dict()`, made anew at each call."""
        schedule = _arrays()[f"schedule/{self.prior['beta_schedule']}/{self.timesteps}"]
        state = {f"noise_scheduler.{name}": row.copy() for name, row in zip(_buffers(), schedule, strict=True)}
        for name, shape in self.parameter_shapes().items():
            if name.endswith("rotary_emb.freqs"):
                state[name] = _arrays()[f"freqs/{shape[0]}"].copy()
            else:
                state[name] = self.parameter(name, shape)
        return state


def load_goldens(release: str | None = None) -> list[Golden]:
    """The committed goldens, of all releases or of one."""
    arrays = _arrays()
    goldens = []
    for stored in _document()["goldens"]:
        fields = {name: value for name, value in stored.items() if name != "loss"}
        if release not in (None, fields["release"]):
            continue
        expected = {"loss": np.float32(stored["loss"]).reshape(())}
        for output in ("output", "ddpm", "ddim"):
            if output not in fields["absent"]:
                expected[output] = arrays[f"{fields['name']}/{output}"]
        goldens.append(Golden(**fields, expected=expected))
    return goldens


def save_goldens(goldens: list[Golden], buffers: list[str], constants: dict[str, FloatArray]) -> None:
    """Write both files.

    Args:
        buffers: names of the noise scheduler's buffers.
        constants: the arrays `schedule/KIND/T` and `freqs/N`.
    """
    lines, arrays = [], dict(constants)
    for golden in goldens:
        fields = {f.name: getattr(golden, f.name) for f in dataclasses.fields(golden) if f.name != "expected"}
        lines.append(json.dumps({**fields, "loss": float(golden.expected["loss"])}))
        for output in golden.expected.keys() - {"loss"}:
            arrays[f"{golden.name}/{output}"] = golden.expected[output]
    body = ",\n".join(lines)
    FOLDER.mkdir(exist_ok=True)
    text = f'{{"schedule_buffers": {json.dumps(buffers)},\n"goldens": [\n{body}\n]}}\n'
    (FOLDER / "goldens.json").write_text(text, encoding="utf-8")
    np.savez_compressed(FOLDER / "goldens.npz", **{name: arrays[name] for name in sorted(arrays)})
    _document.cache_clear()
    _arrays.cache_clear()


@functools.cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / "goldens.json").read_text(encoding="utf-8"))
    return document


@functools.cache
def _arrays() -> dict[str, FloatArray]:
    with np.load(FOLDER / "goldens.npz") as stored:
        return {name: stored[name] for name in stored.files}


def _buffers() -> list[str]:
    names: list[str] = _document()["schedule_buffers"]
    return names
