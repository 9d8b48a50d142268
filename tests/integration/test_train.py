"""Training on synthetic embeddings: it learns, it repeats, and whatever interrupts it leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from priorkit.pipeline.errors import FolderError, InputError, Interrupted, PriorkitError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.train import validation
from priorkit.prior.train.settings import TrainSettings
from priorkit.prior.train.stage import plan_train, train
from priorkit.prior.train.step import Learner

from .synthetic import SMALL_TRAIN, changed, write_embeddings

FolderBytes = Callable[[Path], dict[str, bytes]]

GOLDEN = Path(__file__).parents[1] / "unit" / "prior" / "golden_losses.json"
"""Losses of the first 20 steps. To write them anew after an intended change of the function:
`PRIORKIT_WRITE_GOLDEN=1 python -m pytest tests/integration/test_train.py -k golden`."""


@pytest.fixture(scope="module")
def synthetic_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 rows without token states, for reading only."""
    return write_embeddings(tmp_path_factory.mktemp("synthetic") / "embeddings")


@pytest.fixture(scope="module")
def small_train() -> TrainSettings:
    """14 steps, with validation after steps 10 and 14."""
    return changed(SMALL_TRAIN, steps=14)


@pytest.fixture(scope="module")
def with_dropout(small_train: TrainSettings) -> TrainSettings:
    """14 steps that use torch's random generator."""
    return changed(small_train, network__attn_dropout=0.1, network__ff_dropout=0.1)


@pytest.fixture(scope="module")
def finished(synthetic_embeddings: Path, small_train: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training with `small_train` that was never interrupted; for reading only."""
    return finish(synthetic_embeddings, tmp_path_factory.mktemp("finished") / "prior", small_train)


@pytest.fixture(scope="module")
def finished_with_dropout(
    synthetic_embeddings: Path, with_dropout: TrainSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a training with `with_dropout` that was never interrupted; for reading only."""
    return finish(synthetic_embeddings, tmp_path_factory.mktemp("dropout") / "prior", with_dropout)


def finish(embeddings: Path, folder: Path, settings: TrainSettings) -> Path:
    """Train a prior in one run."""
    torch.set_num_threads(1)
    train(str(embeddings), str(folder), settings)
    return folder


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final_state(folder: Path) -> bytes:
    return sorted((folder / "state").iterdir())[-1].read_bytes()


# learning


def test_the_loss_falls_and_the_prior_is_there(
    synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path
) -> None:
    settings = changed(small_train, steps=60, log_every=1, checkpoint_every=50, validate_every=20)
    seen: list[tuple[int, int]] = []
    result = train(
        str(synthetic_embeddings),
        str(tmp_path),
        settings,
        progress=lambda done, total, note: seen.append((done, total)),
    )
    assert (result.stage, result.units, result.done_now, result.unit) == ("train", 60, 60, "steps")
    assert seen[0] == (0, 60)
    assert seen[-1] == (60, 60)
    log = log_of(tmp_path)
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 60
    assert np.mean(losses[:10]) > 0.95  # coordinates have variance 1
    assert np.mean(losses[-30:]) < 0.75 * np.mean(losses[:10])
    assert all(line["grad_norm"] > 0 for line in log if "loss" in line)
    validation = [line["validation_loss"] for line in log if "validation_loss" in line]
    assert len(validation) == 3
    assert validation[-1] < 0.8 * validation[0]
    prior = load_prior(str(tmp_path))
    assert prior.config.clip["embed_dim"] == 16
    drawn = prior.sample(text_embed=torch.randn(3, 16), steps=4)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_other_predictions_learn_too(
    synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path, prediction: str
) -> None:
    settings = changed(
        small_train, steps=60, log_every=1, checkpoint_every=60, validate_every=60, diffusion__prediction=prediction
    )
    train(str(synthetic_embeddings), str(tmp_path), settings)
    losses = [line["loss"] for line in log_of(tmp_path) if "loss" in line]
    assert np.mean(losses[-20:]) < 0.85 * np.mean(losses[:10])


def test_token_states_condition_the_prior(small_train: TrainSettings, tmp_path: Path) -> None:
    """They say what the text embedding does not, and here a prior without them cannot know it."""
    token_embeddings = write_embeddings(tmp_path / "embeddings", rows=1000, token_states=True)
    validation = {}
    for name, max_text_len in (("with", 3), ("without", 0)):
        settings = changed(
            small_train, steps=80, network__max_text_len=max_text_len, validate_every=80, checkpoint_every=80
        )
        train(str(token_embeddings), str(tmp_path / name), settings, ReadSettings(validation_fraction=0.2))
        validation[name] = log_of(tmp_path / name)[-1]["validation_loss"]
    assert validation["with"] < 0.9 * validation["without"]
    prior = load_prior(str(tmp_path / "with"))
    assert prior.config.token_width == 6
    assert load_prior(str(tmp_path / "without")).config.token_width is None
    text = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    once, other = (prior.sample(text_embed=text, token_states=torch.full((2, 2, 6), v), steps=4) for v in (-1.0, 1.0))
    assert (once - other).abs().max() > 0.01


# sameness


def test_golden_losses(small_train: TrainSettings, tmp_path: Path) -> None:
    """The same seed gives the same losses, from one version of the code to the next."""
    embeddings = write_embeddings(tmp_path / "embeddings", token_states=True)
    settings = changed(small_train, steps=20, log_every=1, network__max_text_len=3)
    train(str(embeddings), str(tmp_path / "prior"), settings)
    losses = [line["loss"] for line in log_of(tmp_path / "prior") if "loss" in line]
    if os.environ.get("PRIORKIT_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text()), rtol=1e-5)


def test_a_run_repeats_and_its_seed_matters(
    synthetic_embeddings: Path, with_dropout: TrainSettings, finished_with_dropout: Path, tmp_path: Path,
    folder_bytes: FolderBytes,
) -> None:  # fmt: skip
    torch.manual_seed(3)
    torch.randn(3)
    train(str(synthetic_embeddings), str(tmp_path / "again"), with_dropout)
    assert folder_bytes(tmp_path / "again") == folder_bytes(finished_with_dropout)
    assert final_state(tmp_path / "again") == final_state(finished_with_dropout)
    train(str(synthetic_embeddings), str(tmp_path / "other"), changed(with_dropout, seed=1))
    folders = (finished_with_dropout, tmp_path / "other")
    weights = [safetensors.torch.load_file(folder / "model.safetensors") for folder in folders]
    assert not torch.equal(weights[0]["query"], weights[1]["query"])


def test_how_often_it_checkpoints_changes_nothing(
    synthetic_embeddings: Path, small_train: TrainSettings, finished: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    seldom = changed(small_train, checkpoint_every=1000, keep_checkpoints=1)
    train(str(synthetic_embeddings), str(tmp_path), seldom)
    assert folder_bytes(finished) == folder_bytes(tmp_path)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step_000000014.safetensors"]
    assert len(list((finished / "state").iterdir())) == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_stopped_and_resumed_is_bitwise_uninterrupted(
    synthetic_embeddings: Path, with_dropout: TrainSettings, finished_with_dropout: Path, tmp_path: Path,
    folder_bytes: FolderBytes, seed: int,
) -> None:  # fmt: skip
    """With dropout, so that the state of torch's generator is part of it."""
    random = np.random.default_rng(seed)
    stops = 0
    while True:
        left = int(random.integers(0, 6))

        def should_stop() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        try:
            train(str(synthetic_embeddings), str(tmp_path), with_dropout, should_stop=should_stop)
        except Interrupted:
            stops += 1
        else:
            break
    assert stops >= 3
    assert folder_bytes(tmp_path) == folder_bytes(finished_with_dropout)
    assert final_state(tmp_path) == final_state(finished_with_dropout)


def test_limited_and_resumed_is_bitwise_uninterrupted(
    synthetic_embeddings: Path, small_train: TrainSettings, finished: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    done = [
        train(str(synthetic_embeddings), str(tmp_path), small_train, limit=limit).done_now
        for limit in (1, 5, 5, 9, 4, None)
    ]
    assert done == [1, 4, 0, 4, 0, 5]
    assert folder_bytes(tmp_path) == folder_bytes(finished)
    assert final_state(tmp_path) == final_state(finished)


def test_a_log_that_ran_ahead_of_its_checkpoint_is_cut(
    synthetic_embeddings: Path, small_train: TrainSettings, finished: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    """What a kill between the two leaves."""
    train(str(synthetic_embeddings), str(tmp_path), small_train, limit=7)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "loss": 9.0}) + "\n")
    train(str(synthetic_embeddings), str(tmp_path), small_train)
    assert folder_bytes(tmp_path) == folder_bytes(finished)


def test_a_stop_says_how_to_go_on(synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped after step 0 of 14; the same command resumes from there"):
        train(str(synthetic_embeddings), str(tmp_path), small_train, should_stop=lambda: True)


def test_a_limited_run_is_no_prior_yet(synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path) -> None:
    train(str(synthetic_embeddings), str(tmp_path), small_train, limit=3)
    with pytest.raises(InputError, match="its training has not ended"):
        load_prior(str(tmp_path))


KILLER = """
    # Trains in child processes, of which the first ones are killed. Prints how many died.
    import json, os, random, signal, sys, time
    import torch._dynamo  # the first optimiser of a process imports it, which takes two seconds
    from priorkit.prior.train.settings import TrainSettings
    from priorkit.prior.train.stage import train

    embeddings, whole, parts, settings, kills = sys.argv[1:]
    settings, kills = TrainSettings(**json.loads(settings)), int(kills)

    def checkpoints():
        state = f"{parts}/state"
        return os.path.isdir(state) and sorted(os.listdir(state))

    def runs(child):
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    def start(folder):
        child = os.fork()
        if child == 0:
            try:
                train(embeddings, folder, settings)
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
        return child

    begin = time.monotonic()
    assert os.waitpid(start(whole), 0)[1] == 0
    seconds = time.monotonic() - begin
    died = 0
    random.seed(kills)
    for kill in range(kills):
        before = checkpoints()
        child = start(parts)
        while kill % 2 and checkpoints() == before and runs(child):  # every other kill comes after a new checkpoint
            time.sleep(0.001)
        time.sleep(random.uniform(0, 8 * seconds / settings.steps))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        died += os.WIFSIGNALED(status)
    assert os.waitpid(start(parts), 0)[1] == 0
    print(died)
"""


def kill_and_compare(
    embeddings: Path, settings: TrainSettings, folder: Path, folder_bytes: FolderBytes, kills: int
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", textwrap.dedent(KILLER), str(embeddings), str(folder / "whole")),
            *(str(folder / "parts"), settings.model_dump_json(), str(kills)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills / 2
    assert folder_bytes(folder / "parts") == folder_bytes(folder / "whole")
    assert final_state(folder / "parts") == final_state(folder / "whole")
    assert not list((folder / "parts").rglob("*tmp"))


@pytest.mark.slow
def test_killed_twenty_times_and_resumed_is_bitwise_uninterrupted(
    small_train: TrainSettings, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings")
    settings = changed(small_train, steps=120, network__attn_dropout=0.1, network__ff_dropout=0.1, checkpoint_every=3)
    kill_and_compare(embeddings, settings, tmp_path, folder_bytes, kills=20)


def test_a_second_run_does_nothing_and_a_lost_file_is_restored(
    synthetic_embeddings: Path, small_train: TrainSettings, finished: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "prior"))
    before = folder_bytes(folder)
    assert train(str(synthetic_embeddings), str(folder), small_train).done_now == 0
    assert folder_bytes(folder) == before
    (folder / "model.safetensors").unlink()
    train(str(synthetic_embeddings), str(folder), small_train)
    assert folder_bytes(folder) == before


# data order


def test_every_row_once_an_epoch_in_a_seeded_order(
    synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ReadSettings(validation_fraction=0)
    rows = EmbeddingDataset(str(synthetic_embeddings), read).rows("train")
    batches = len(rows) // 160 + 1
    assert len(rows) % 160
    taken: list[np.ndarray] = []
    backward = Learner.backward

    def spy(self: Learner, step: int, batch: Any, *others: Any) -> Any:
        taken.append(batch.rows)
        return backward(self, step, batch, *others)

    monkeypatch.setattr(Learner, "backward", spy)
    settings = changed(small_train, batch_size=160, steps=2 * batches)

    def order(name: str, settings: TrainSettings, limit: int | None = None) -> list[np.ndarray]:
        taken.clear()
        train(str(synthetic_embeddings), str(tmp_path / name), settings, read, limit=limit)
        return list(taken)

    whole = order("whole", settings)
    assert [len(batch) for batch in whole] == ([160] * (batches - 1) + [len(rows) % 160]) * 2
    first, second = np.concatenate(whole[:batches]), np.concatenate(whole[batches:])
    assert np.array_equal(np.sort(first), rows)
    assert np.array_equal(np.sort(second), rows)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, rows)
    parts = order("parts", settings, limit=batches + 1) + order("parts", settings)
    assert all(np.array_equal(a, b) for a, b in zip(parts, whole, strict=True))
    other = np.concatenate(order("other", changed(settings, seed=1))[:batches])
    assert not np.array_equal(other, first)


def test_test_and_validation_rows_are_never_trained_on(
    synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ReadSettings(validation_fraction=0.1, test_fraction=0.2)
    dataset = EmbeddingDataset(str(synthetic_embeddings), read)
    trained_on: list[np.ndarray] = []
    validated_on: list[np.ndarray] = []
    backward, validate = Learner.backward, validation.timestep_losses

    def spy_step(self: Learner, step: int, batch: Any, *others: Any) -> Any:
        trained_on.append(batch.rows)
        return backward(self, step, batch, *others)

    def spy_validation(prior: Any, batch: Any, *others: Any) -> Any:
        validated_on.append(batch.rows)
        return validate(prior, batch, *others)

    monkeypatch.setattr(Learner, "backward", spy_step)
    monkeypatch.setattr(validation, "timestep_losses", spy_validation)
    train(str(synthetic_embeddings), str(tmp_path), small_train, read)
    trained, validated = np.unique(np.concatenate(trained_on)), np.unique(np.concatenate(validated_on))
    assert np.array_equal(trained, dataset.rows("train"))
    assert np.array_equal(validated, dataset.rows("validation"))
    assert len(dataset.rows("test")) > 50


# refusals


@pytest.fixture
def limited(synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path) -> Path:
    """Folder of a training that has done 2 steps."""
    train(str(synthetic_embeddings), str(tmp_path / "limited"), small_train, limit=2)
    return tmp_path / "limited"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimiser__learning_rate": 1e-3}, r"train\.optimiser\.learning_rate: 0\.003 -> 0\.001"),
        ({"network__depth": 3}, r"train\.network\.depth: 2 -> 3"),
        ({"steps": 15}, r"train\.steps: 14 -> 15"),
        ({"seed": 1}, r"train\.seed: 0 -> 1"),
    ],
)
def test_changed_settings_are_refused_by_name(
    synthetic_embeddings: Path, small_train: TrainSettings, limited: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(FolderError, match=f"{message}.*--overwrite"):
        train(str(synthetic_embeddings), str(limited), changed(small_train, **values))


def test_changed_splits_and_embeddings_are_refused(
    synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path
) -> None:
    folder = str(tmp_path / "prior")
    train(str(synthetic_embeddings), folder, small_train, limit=2)
    with pytest.raises(FolderError, match=r"read\.test_fraction: 0\.05 -> 0\.1"):
        train(str(synthetic_embeddings), folder, small_train, ReadSettings(test_fraction=0.1))
    other = write_embeddings(tmp_path / "other", rows=300, seed=5)
    with pytest.raises(FolderError, match=r"\(480 rows\).*\(300 rows\).*`priorkit train RECIPE --overwrite`"):
        train(str(other), folder, small_train)


def test_overwrite_trains_anew(
    synthetic_embeddings: Path, small_train: TrainSettings, finished: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    shutil.copytree(finished, tmp_path / "used")
    other = changed(small_train, seed=3, steps=6)
    result = train(str(synthetic_embeddings), str(tmp_path / "used"), other, overwrite=True)
    assert result.done_now == 6
    train(str(synthetic_embeddings), str(tmp_path / "fresh"), other)
    assert folder_bytes(tmp_path / "used") == folder_bytes(tmp_path / "fresh")
    states = [sorted(path.name for path in (tmp_path / name / "state").iterdir()) for name in ("used", "fresh")]
    assert states[0] == states[1]


def test_a_folder_with_other_work_is_left_alone(
    synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FolderError, match=r"holds other work .*thesis\.tex"):
            train(str(synthetic_embeddings), str(tmp_path), small_train, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_passed_over_and_named_if_it_is_the_last(
    synthetic_embeddings: Path, small_train: TrainSettings, finished: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    train(str(synthetic_embeddings), str(tmp_path / "damaged"), small_train, limit=5)
    older, newest = (tmp_path / f"damaged/state/step_00000000{step}.safetensors" for step in (4, 5))
    newest.write_bytes(newest.read_bytes()[:-10])
    train(str(synthetic_embeddings), str(tmp_path / "damaged"), small_train, limit=5)
    for state in (older, newest):
        state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"step_00000000.\.safetensors is not a whole safetensors file"):
        train(str(synthetic_embeddings), str(tmp_path / "damaged"), small_train)
    older.unlink()
    newest.unlink()
    train(str(synthetic_embeddings), str(tmp_path / "damaged"), small_train)
    assert folder_bytes(tmp_path / "damaged") == folder_bytes(finished)


def test_token_states_that_are_not_stored_are_refused(
    synthetic_embeddings: Path, small_train: TrainSettings, tmp_path: Path
) -> None:
    settings = changed(small_train, network__max_text_len=4)
    for start in (train, plan_train):
        with pytest.raises(InputError, match=r"up to 4 token states, .* stores none; .*token_states: true"):
            start(str(synthetic_embeddings), str(tmp_path), settings, ReadSettings())  # type: ignore[operator]


def test_no_rows_to_train_on_are_refused(small_train: TrainSettings, tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", rows=3)
    read = ReadSettings(validation_fraction=0.49, test_fraction=0.5)
    assert len(EmbeddingDataset(str(embeddings), read).rows("train")) == 0
    with pytest.raises(InputError, match="no row is left to train on; lower the fractions"):
        train(str(embeddings), str(tmp_path / "prior"), small_train, read)


def test_missing_embeddings_are_refused(small_train: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere holds no result of `priorkit embed`"):
        train(str(tmp_path / "nowhere"), str(tmp_path / "prior"), small_train)
    assert not (tmp_path / "prior").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_unsound_embeddings_are_named_by_key(small_train: TrainSettings, tmp_path: Path, value: float) -> None:
    """Rows of every split are unsound, but only the ones trained on can be met; the first is named."""
    bad = [7, 200, 333]

    def damage(image: np.ndarray) -> None:
        image[bad, 3] = value

    embeddings = write_embeddings(tmp_path / "embeddings", damage=damage)
    read = ReadSettings(validation_fraction=0, test_fraction=0)
    with pytest.raises(PriorkitError, match=r"keys 0000(00007|00200|00333).* are not unit vectors"):
        train(str(embeddings), str(tmp_path / "prior"), changed(small_train, batch_size=100), read)


def test_unsound_validation_rows_are_named_by_key(small_train: TrainSettings, tmp_path: Path) -> None:
    read = ReadSettings(validation_fraction=0.2, test_fraction=0)
    sound = EmbeddingDataset(str(write_embeddings(tmp_path / "sound")), read)
    bad = int(sound.rows("validation")[3])

    def damage(image: np.ndarray) -> None:
        image[bad] = np.nan

    embeddings = write_embeddings(tmp_path / "embeddings", damage=damage)  # split by URL, so the rows are the same
    with pytest.raises(PriorkitError, match=f"{bad:09d}"):
        train(str(embeddings), str(tmp_path / "prior"), small_train, read)


# plans


def test_a_plan_counts_what_is_left(
    synthetic_embeddings: Path, small_train: TrainSettings, finished: Path, tmp_path: Path
) -> None:
    def plan() -> tuple[int, int, bool]:
        planned = plan_train(str(synthetic_embeddings), str(tmp_path / "prior"), small_train, ReadSettings())
        return planned.units, planned.pending_units, planned.bytes_needed > 0

    assert plan() == (14, 14, True)
    assert not (tmp_path / "prior").exists()
    train(str(synthetic_embeddings), str(tmp_path / "prior"), small_train, limit=5)
    assert plan() == (14, 9, True)
    shutil.rmtree(tmp_path / "prior")
    shutil.copytree(finished, tmp_path / "prior")
    assert plan() == (14, 0, False)
    again = plan_train(str(synthetic_embeddings), str(tmp_path / "prior"), small_train, ReadSettings(), overwrite=True)
    assert again.pending_units == 14


def test_nothing_of_a_trained_prior_needs_pickle(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        if path.suffix == ".safetensors":
            assert safetensors.torch.load_file(path)
        else:
            assert all(json.loads(line) for line in path.read_text().splitlines()) if path.suffix == ".jsonl" else True
