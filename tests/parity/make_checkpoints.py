"""Write the checkpoints: tiny priors, trained for a few steps and saved by DALLE2-pytorch's own trainer.

Run it in the peers' environment (`tests/peers/requirements.txt`), which takes a minute:

    .venv-peers/bin/python tests/parity/make_checkpoints.py

1.15.6 is the installed package. Of 0.23.10, which no longer imports, the definitions of the prior and of its trainer
are taken from its wheel, and run with the `packaging` of its time, whose pickled versions differ from today's.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script: name the package that the relative imports start from
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "parity"

from . import seeded
from .checkpoints import BATCH, CHECKPOINTS, FOLDER, Checkpoint, save_expected
from .make_goldens import INSTALLED, namespace_of

STEPS = 5
PACKAGING = "21.3"
"""Of August 2022, when 0.23.10 was released."""
AVERAGE = {"ema_update_every": 1, "ema_update_after_step": 1, "ema_beta": 0.9}
"""The averaged weights differ from the trained ones from the third step on."""


def train(checkpoint: Checkpoint, namespace: dict[str, Any]) -> dict[str, Any]:
    """Train and save a checkpoint; returns the outputs of its networks by kind of weights."""
    import torch

    torch.manual_seed(0)
    random.seed(0)  # the coin of self-conditioning
    torch.set_num_threads(1)
    arguments = {name: value for name, value in checkpoint.prior.items() if name not in ("net", "clip")}
    prior = namespace["DiffusionPrior"](net=namespace["DiffusionPriorNetwork"](**checkpoint.prior["net"]), **arguments)
    trainer = namespace["DiffusionPriorTrainer"](prior, **AVERAGE, **checkpoint.trainer)
    given = {name: torch.from_numpy(value) for name, value in checkpoint.inputs().items()}
    states = {"text_encodings": given["token_states"]} if "token_states" in given else {}
    for step in range(STEPS):
        image_embed = seeded.unit_rows(step, f"{checkpoint.name}/image", (BATCH, checkpoint.prior["net"]["dim"]))
        trainer(text_embed=given["text_embed"], image_embed=torch.from_numpy(image_embed), **states)
        trainer.update()
    progress = {"epoch": 1, "samples_seen": STEPS * BATCH, "best_validation_loss": 0.5}  # as the training script does
    trainer.save(checkpoint.pth, **progress)

    networks = {"online": prior.net}
    if checkpoint.trainer.get("use_ema", True):
        networks["ema"] = trainer.ema_diffusion_prior.ema_model.net
    self_cond = {"self_cond": given["self_cond"]} if "self_cond" in given else {}
    with torch.no_grad():
        return {
            f"{checkpoint.name}/{weights}": network.eval()(
                given["noisy_image_embed"], given["timesteps"], text_embed=given["text_embed"], **states, **self_cond
            ).numpy()
            for weights, network in networks.items()
        }


@contextlib.contextmanager
def sources_of(release: str, sources: Path | None) -> Iterator[Path]:
    """A folder that holds `RELEASE/dalle2_pytorch`: the one given, or a wheel unpacked."""
    if sources is not None:
        yield sources
        return
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
        subprocess.run([*pip, f"dalle2-pytorch=={release}"], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(Path(folder) / release)
        yield Path(folder)


def old_namespace(release: str, sources: Path) -> dict[str, Any]:
    """The names of an old release's prior and of its trainer."""
    import torch
    from accelerate import Accelerator, DistributedType
    from ema_pytorch import EMA
    from packaging import version

    namespace = namespace_of(release, sources)
    namespace |= {
        "Accelerator": Accelerator, "DistributedType": DistributedType, "EMA": EMA, "version": version, "np": np,
        "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "GradScaler": torch.cuda.amp.GradScaler,
        "autocast": torch.cuda.amp.autocast,
    }  # fmt: skip
    for name in ("version", "optimizer", "trainer"):
        tree = ast.parse((sources / release / "dalle2_pytorch" / f"{name}.py").read_text(encoding="utf-8"))
        kept: list[ast.stmt] = []
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                source = getattr(node, "module", None) or node.names[0].name
                if source.partition(".")[0] in ("collections", "contextlib", "copy", "functools", "math", "pathlib"):
                    kept.append(node)
            elif getattr(node, "name", "") != "DecoderTrainer":
                kept.append(node)
        tree.body = kept
        exec(compile(tree, f"dalle2_pytorch {release} {name}", "exec"), namespace)
    assert namespace["__version__"] == release
    return namespace


def make_old(sources: Path, output: Path) -> None:
    """Write the checkpoints of old releases, and their outputs to `output`."""
    expected: dict[str, Any] = {}
    for checkpoint in CHECKPOINTS:
        if checkpoint.release != INSTALLED:
            expected |= train(checkpoint, old_namespace(checkpoint.release, sources))
    np.savez(output, **expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sources", type=Path, help="folder with VERSION/dalle2_pytorch; without it, pip downloads")
    parser.add_argument("--old", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if options.old is not None:
        make_old(options.sources, options.old)
        return

    import dalle2_pytorch
    from dalle2_pytorch.trainer import DiffusionPriorTrainer

    namespace = {**vars(dalle2_pytorch), "DiffusionPriorTrainer": DiffusionPriorTrainer}
    expected: dict[str, Any] = {}
    for checkpoint in CHECKPOINTS:
        if checkpoint.release == INSTALLED:
            expected |= train(checkpoint, namespace)
    with tempfile.TemporaryDirectory() as folder, sources_of("0.23.10", options.sources) as sources:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{folder}/packaging"]
        subprocess.run([*pip, f"packaging=={PACKAGING}"], check=True)
        output = Path(folder) / "expected.npz"
        # another process, since this one has imported today's packaging
        again = [sys.executable, __file__, "--sources", str(sources), "--old", str(output)]
        subprocess.run(again, check=True, env={**os.environ, "PYTHONPATH": f"{folder}/packaging"})
        with np.load(output) as stored:
            expected |= {name: stored[name] for name in stored.files}
    save_expected(expected)


if __name__ == "__main__":
    main()
