"""The demo's training step alone and beside one busy process, with threads that sleep while they wait, or spin.

The network, batch and optimiser are those of the recipe `demo`, the rows are synthetic. A process in a busy loop is
pinned to one core. About 2 minutes on 2 cores that nothing else uses; exits with 1 above the bar.

    python tests/bench/bench_busy.py --no-page
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

BAR = 2.0
"""Time of a step beside one busy process, as a multiple of its time alone."""
EMBED_DIM = 128
"""Size of the demo's CLIP embeddings."""
STEPS = 3
"""Steps in one measurement."""
WAYS = {"priorkit": {}, "spinning": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}}
"""Environments of the trainers; the second has the default numbers of GNU's, and of Intel's and LLVM's runtimes."""
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY", "OMP_NUM_THREADS")


def train() -> None:
    """Take steps as asked on standard input: for each line print the seconds and a hash of the weights."""
    from priorkit.pipeline.compute.openmp import chosen, stop_spinning

    stop_spinning()  # before torch is loaded, as each command of priorkit does
    import numpy as np
    import torch

    from priorkit.pipeline.read.window import TrainBatch
    from priorkit.prior.model.config import PriorConfig
    from priorkit.prior.network.interface import Condition
    from priorkit.prior.train.ranks import Ranks
    from priorkit.prior.train.step import Learner
    from priorkit.recipes.recipe import load_recipe

    settings = load_recipe("demo").train
    torch.set_num_threads(int(sys.argv[2]))
    config = PriorConfig(
        embed_dim=EMBED_DIM, token_width=None, network=settings.network, diffusion=settings.diffusion, clip={},
        clip_settings={},
    )  # fmt: skip
    learner = Learner(config, settings, Ranks(0, 1, torch.device("cpu")))
    random = np.random.default_rng(0)
    text, image = (_unit(random.standard_normal((settings.batch_size, EMBED_DIM))) for _ in range(2))
    condition = Condition(torch.from_numpy(text), None)
    rows, done = np.arange(settings.batch_size), 0
    print(json.dumps(chosen(os.environ)), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(STEPS):
            batch = TrainBatch(rows, image, None, None, None, first=0, global_rows=len(rows))
            losses = learner.backward(done, batch, condition)
            learner.reduce(done, batch, losses, False)
            learner.update(done, batch)
            done += 1
        seconds = (time.perf_counter() - start) / STEPS
        digest = hashlib.sha256()
        for value in learner.network.parameters():
            digest.update(value.detach().numpy().tobytes())
        print(json.dumps([seconds, digest.hexdigest()]), flush=True)


def _unit(values: Any) -> Any:
    import numpy as np

    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


class Trainer:
    """A process that trains when it is asked to."""

    def __init__(self, way: str, threads: int) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
        self._child = subprocess.Popen(
            [sys.executable, __file__, "--train", str(threads)],
            env={**kept, **WAYS[way]},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.waiting: dict[str, str] = json.loads(self._answer())
        """Variables that the trainer runs with."""

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.kill()
        self._child.communicate()

    def step(self) -> tuple[float, str]:
        """Seconds of a step, and a hash of the weights after it."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        seconds, weights = json.loads(self._answer())
        return seconds, weights

    def _answer(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """One process in a busy loop, pinned to the last of this process's cores."""
    core = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            time.sleep(0.2)
            yield
        finally:
            process.kill()


def main() -> int:
    """Print the medians, their ratios and the bar."""
    import harness

    parser = harness.parser(__doc__ or "")
    parser.set_defaults(rounds=5)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    seconds: dict[tuple[str, str], list[float]] = {(way, beside): [] for way in WAYS for beside in ("alone", "busy")}
    with contextlib.ExitStack() as stack:
        trainers = {way: stack.enter_context(Trainer(way, arguments.threads)) for way in WAYS}
        assert trainers["priorkit"].waiting != trainers["spinning"].waiting
        for trainer in trainers.values():
            trainer.step()  # the first steps allocate
        for _ in range(arguments.rounds):
            for beside, load in (("alone", contextlib.nullcontext), ("busy", busy_process)):
                with load():
                    weights = set()
                    for way, trainer in trainers.items():
                        taken, found = trainer.step()
                        seconds[way, beside].append(taken)
                        weights.add(found)
                    assert len(weights) == 1, "the way of waiting has changed the weights"
    for way in WAYS:
        alone, busy = seconds[way, "alone"], seconds[way, "busy"]
        ratio = harness.median(busy) / harness.median(alone)
        harness.report(
            results, threads_wait=way, variables=trainers[way].waiting, alone=alone, busy=busy, ratio=ratio, bar=BAR
        )
    columns = {
        "threads": "{threads_wait}", "variables": "{variables}", "a step alone, s": "{alone:.3f}",
        "beside a busy process, s": "{busy:.3f}",
        "ratio": "{ratio:.2f}",
    }  # fmt: skip
    table = harness.table(results, columns)
    print(f"{table}\nbar: {BAR:g} for priorkit's; weights are equal bit by bit")
    if not arguments.no_page:
        harness.write_page(
            "busy", "Training beside a busy process", f"{table}\n\nThe bar is {BAR:g}.", results, ["torch"]
        )
    return int(results[0]["ratio"] > BAR)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train()
    else:
        sys.exit(main())
