"""Evaluation of a briefly trained prior on the synthetic problem, whose answer is known."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from priorkit.pipeline.compute.settings import ComputeSettings
from priorkit.pipeline.contract.manifest import fingerprint
from priorkit.pipeline.errors import FolderError, InputError, SettingsError
from priorkit.pipeline.read.dataset import EmbeddingDataset, Split
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate import rows as evaluated_rows
from priorkit.prior.evaluate.evaluation import Evaluation, compute_metrics
from priorkit.prior.evaluate.folder import read_metrics, rows_name
from priorkit.prior.evaluate.rows import EvaluatedRows
from priorkit.prior.evaluate.scoring import Scorer, timestep_losses
from priorkit.prior.evaluate.settings import BASELINES, EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate, plan_evaluate
from priorkit.prior.interchange.load import load_prior
from priorkit.prior.sampling.settings import SampleSettings
from priorkit.prior.train.stage import train

from .synthetic import SMALL_TRAIN, changed, write_embeddings

READ = ReadSettings(validation_fraction=0.05, test_fraction=0.25)
SETTINGS = EvaluateSettings(threads=1, draws=8, sample=SampleSettings(steps=12), bootstrap_samples=200)
PREDICTORS = ("prior", *BASELINES)
QUICK = EvaluateSettings(
    threads=1, draws=2, max_rows=150, sample=SampleSettings(steps=2), bootstrap_samples=100, device="cpu"
)


def found_in(metrics: dict[str, Any], name: str = "prior", split: str = "test") -> dict[str, Any]:
    """What is said of a predictor."""
    by_name: dict[str, dict[str, Any]] = {found["name"]: found for found in metrics["splits"][split]["predictors"]}
    return by_name[name]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def computed(prior: Path, dataset: EmbeddingDataset, settings: EvaluateSettings = SETTINGS) -> Evaluation:
    loaded = load_prior(str(prior))
    return compute_metrics(dataset, settings, lambda: Scorer(dataset, settings, lambda weights: loaded))


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 rows, about 250 of them for testing; for reading only."""
    return write_embeddings(tmp_path_factory.mktemp("synthetic") / "embeddings", rows=1000)


@pytest.fixture(scope="module")
def prior(embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of 150 steps; for reading only."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained") / "prior"
    settings = changed(SMALL_TRAIN, steps=150, checkpoint_every=150, validate_every=150, log_every=150)
    train(str(embeddings), str(folder), settings, READ)
    return folder


@pytest.fixture(scope="module")
def metrics(prior: Path, embeddings: Path) -> dict[str, Any]:
    """Result of `evaluate`. Tests must not change it."""
    return computed(prior, EmbeddingDataset(str(embeddings), READ)).metrics


@pytest.fixture(scope="module")
def quick_metrics(prior: Path, embeddings: Path) -> dict[str, Any]:
    """Result of `evaluate` with the settings `QUICK`. Tests must not change it."""
    return computed(prior, EmbeddingDataset(str(embeddings), READ), QUICK).metrics


# what is found


def test_the_prior_beats_blind_baselines_on_the_energy_score(metrics: dict[str, Any]) -> None:
    score = {name: found_in(metrics, name)["metrics"]["energy_score"] for name in PREDICTORS}
    blind = ("text embedding", "mean shift", "random training image")
    for name in blind:
        assert score["prior"]["high"] < score[name]["low"], name
    cosine = {name: found_in(metrics, name)["metrics"]["cosine_to_image"]["value"] for name in PREDICTORS}
    assert all(cosine["prior"] > cosine[name] + 0.2 for name in blind)
    assert score["prior"]["value"] < score["nearest neighbour"]["value"]
    # the problem is linear with normal noise: the linear models know it, and the mean wins on cosine, not on energy
    assert cosine["ridge regression"] > cosine["linear-Gaussian"]
    assert score["linear-Gaussian"]["high"] < score["ridge regression"]["low"]
    recall = {name: found_in(metrics, name)["metrics"]["recall_at_10"]["value"] for name in PREDICTORS}
    assert recall["prior"] > 2 * max(recall[name] for name in blind)


def test_metrics_say_what_they_are_of(metrics: dict[str, Any], embeddings: Path) -> None:
    rows = len(EmbeddingDataset(str(embeddings), READ).rows("test"))
    assert 200 < rows < 300
    assert (metrics["seed"], metrics["read"]) == (0, {"validation_fraction": 0.05, "test_fraction": 0.25})
    test = metrics["splits"]["test"]
    assert (test["rows"], test["gallery"], test["distance_rows"]) == (rows, rows, rows)
    assert test["real_against_real_rows"] == rows
    points = ("text embedding", "mean shift", "ridge regression")
    assert {found["name"]: found["draws"] for found in test["predictors"]} == {
        name: 1 if name in points else 8 for name in PREDICTORS
    }
    assert found_in(metrics)["sample"]["steps"] == 12
    assert [found["name"] for found in test["predictors"]] == list(PREDICTORS)
    for found in test["predictors"]:
        assert set(found["distances"]) == {"frechet_distance", "energy_distance", "mmd"}
        for value in (*found["metrics"].values(), *found["distances"].values()):
            assert value["low"] <= value["value"] <= value["high"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_baselines_have_the_scores_that_are_known(metrics: dict[str, Any], embeddings: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    batch = dataset.take(dataset.rows("test"))
    image, text = batch.image_embed.astype(np.float64), batch.text_embed.astype(np.float64)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    found = found_in(metrics, "text embedding")["metrics"]
    assert found["energy_score"]["value"] == pytest.approx(np.linalg.norm(image - text, axis=1).mean(), abs=1e-9)
    assert found["cosine_to_image"]["value"] == pytest.approx((image * text).sum(axis=1).mean(), abs=1e-9)
    assert found["cosine_to_text"]["value"] == pytest.approx(1)
    assert found["difference_from_baseline"]["value"] == pytest.approx(1 - (image * text).sum(axis=1).mean(), abs=1e-9)
    # a random image: E|X - y| - E|X - X'| / 2 for X, X', y alike is half the mean distance of two images
    distances = np.linalg.norm(image[:, None] - image[None], axis=-1)
    expected = distances.sum() / (len(image) * (len(image) - 1)) / 2
    blind = found_in(metrics, "random training image")
    assert blind["metrics"]["energy_score"]["value"] == pytest.approx(expected, rel=0.05)
    recall = blind["metrics"]["recall_at_10"]
    assert recall["low"] <= 10 / len(image) <= recall["high"]
    # blind to captions, and yet as near to the real distribution as real images are
    floor = metrics["splits"]["test"]["real_against_real"]["energy_distance"]
    assert blind["distances"]["energy_distance"]["low"] <= floor["high"]


def oracles(text: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions for captions `[N, D]` by what the problem is known to be, `[N, K, D]` each."""
    rotation = np.linalg.qr(np.random.default_rng(1234).standard_normal((16, 16)))[0]
    random = np.random.default_rng(0)
    mean = (text @ rotation)[:, None]
    drawn = mean + random.standard_normal((len(text), 8, 16)) * 0.5 / 4
    return {
        "true conditional": drawn,
        "its mean": mean,
        "shuffled": np.roll(drawn, 1, axis=0),
        "random training image": known[random.integers(0, len(known), (len(text), 8))],
    }


@pytest.fixture(scope="module")
def of_oracles(embeddings: Path) -> dict[str, dict[str, Any]]:
    """What the very evaluator that priors get finds of each."""
    dataset = EmbeddingDataset(str(embeddings), READ)
    everything = dataset.take(np.arange(dataset.count))
    known = everything.image_embed[dataset.rows("train")]
    settings = SETTINGS.model_copy(update={"bootstrap_samples": 100, "baselines": ()})
    found = {}
    for name, predictions in oracles(everything.text_embed, known).items():
        maker = functools.partial(Scorer, dataset, settings, None, predictions)
        made = compute_metrics(dataset, settings, maker, given=True)
        found[name] = found_in(made.metrics, "given predictions")
    found["floor"] = {"distances": made.metrics["splits"]["test"]["real_against_real"]}
    return found


def test_oracles_are_ranked_as_they_must_be(of_oracles: dict[str, dict[str, Any]], embeddings: Path) -> None:
    score = {name: found["metrics"]["energy_score"] for name, found in of_oracles.items() if "metrics" in found}
    order = ("true conditional", "its mean", "random training image", "shuffled")  # the last is sure of what is wrong
    for better, worse in itertools.pairwise(order):
        assert score[better]["high"] < score[worse]["low"], worse
    of = {name: {n: v["value"] for n, v in of_oracles[name]["metrics"].items()} for name in score}
    assert of["its mean"]["cosine_to_image"] > of["true conditional"]["cosine_to_image"]
    assert of["its mean"]["recall_at_1"] >= of["true conditional"]["recall_at_1"]
    assert of["its mean"]["diversity"] == pytest.approx(0)
    assert of["true conditional"]["diversity"] > 0.1
    rows = len(EmbeddingDataset(str(embeddings), READ).rows("test"))
    for name in ("shuffled", "random training image"):
        assert of[name]["recall_at_10"] == pytest.approx(10 / rows, abs=0.04)
    floor = of_oracles["floor"]["distances"]
    for name in ("true conditional", "shuffled", "random training image"):
        for distance in ("frechet_distance", "energy_distance"):
            assert of_oracles[name]["distances"][distance]["low"] < floor[distance]["high"], (name, distance)


SHOWN = ("energy_score", "cosine_to_image", "recall_at_1", "diversity")


def test_the_table_of_oracles_in_the_documentation_is_what_is_found(of_oracles: dict[str, dict[str, Any]]) -> None:
    text = (Path(__file__).parents[2] / "docs/pages/evaluation.md").read_text()
    for name, found in of_oracles.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        shown = [float(cell.replace("*", "")) for cell in line.split("|")[2:-1] if cell.strip()]
        values = [found["metrics"][metric]["value"] for metric in SHOWN if "metrics" in found]
        values += [found["distances"][distance]["value"] for distance in ("frechet_distance", "energy_distance")]
        assert shown == pytest.approx(values, abs=0.002), name


def test_captions_of_one_image_are_one_image_to_intervals(tmp_path: Path) -> None:
    """Five captions of an image tell less than five images: intervals are as wide as its rows are alike."""
    embeddings = write_embeddings(tmp_path / "embeddings", rows=1000, captions=5)
    dataset = EmbeddingDataset(str(embeddings), READ)
    predictions = dataset.take(np.arange(dataset.count) // 5 * 5).text_embed  # the same for all captions of an image
    settings = SETTINGS.model_copy(update={"baselines": ()})
    made = compute_metrics(
        dataset, settings, functools.partial(Scorer, dataset, settings, None, predictions), given=True
    )
    table = made.rows["test"]
    images = {row // 5 for row in EmbeddingDataset(str(embeddings), READ).rows("test").tolist()}
    assert len(set(table.column("group_id").to_pylist())) == len(images) > 40
    assert table.num_rows == 5 * len(images)
    score = table.column("given predictions/energy_score").to_numpy()
    found = found_in(made.metrics, "given predictions")["metrics"]["energy_score"]
    error = score.std() / np.sqrt(len(images))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_recall_is_among_images_and_not_among_their_captions(tmp_path: Path) -> None:
    """An image with five captions is one rival, not five; and none of its captions is unrelated to the others."""
    dataset = EmbeddingDataset(str(write_embeddings(tmp_path / "embeddings", rows=600, captions=5)), READ)
    predictions = np.random.default_rng(0).standard_normal((dataset.count, 16))
    settings = SETTINGS.model_copy(update={"baselines": (), "gallery_size": 20})
    made = compute_metrics(
        dataset, settings, functools.partial(Scorer, dataset, settings, None, predictions), given=True
    )
    evaluated = EvaluatedRows(dataset, "test", settings)
    images = evaluated.rows // 5
    first = list(dict.fromkeys(images.tolist()))  # in their order
    assert made.metrics["splits"]["test"]["gallery"] == 20 < len(first)
    truth = {image: dataset.take(np.array([image * 5])).image_embed[0].astype(np.float64) for image in first}
    nearer = []
    for row, image in zip(evaluated.rows, images, strict=True):
        rivals = [other for other in first[:20] if other != image][:19]
        cosines = [predictions[row] @ truth[one] / np.linalg.norm(truth[one]) for one in (image, *rivals)]
        nearer.append(sum(cosine > cosines[0] for cosine in cosines[1:]))
    for count in (1, 5, 10):
        found = made.rows["test"].column(f"given predictions/recall_at_{count}").to_numpy()
        assert np.array_equal(found, np.array(nearer) < count)
    assert (images[evaluated.unrelated] != images).all()


def test_broken_predictions_are_named_and_not_averaged(embeddings: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    good = np.random.default_rng(0).standard_normal((dataset.count, 16)).astype(np.float32)
    row = int(dataset.rows("test")[3])
    hole, zero = good.copy(), good.copy()
    hole[row, 3], zero[row] = np.nan, 0
    cases = {
        "not finite": hole,
        "norm 0, first for row": zero,
        "the same for every caption": np.repeat(good[:1], dataset.count, axis=0),
    }
    for message, predictions in cases.items():
        maker = functools.partial(Scorer, dataset, QUICK, None, predictions)
        made = compute_metrics(dataset, QUICK, maker, given=True)
        found = found_in(made.metrics, "given predictions")
        if message == "the same for every caption" or row in EvaluatedRows(dataset, "test", QUICK).rows:
            assert message in found["broken"]
            assert "metrics" not in found
            assert not [name for name in made.rows["test"].column_names if name.startswith("given")]
        assert "metrics" in found_in(made.metrics, "mean shift")


def test_every_way_that_is_asked_for_is_measured(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings.model_validate(
        QUICK.model_dump()
        | {"splits": ["test", "validation"], "weights": ["ema", "online"]}
        | {"sweep": {"steps": [2, 3], "samplers": ["ddpm"], "guidance_scales": []}}
    )
    evaluate(str(prior), str(embeddings), str(tmp_path / "evaluation"), settings)
    metrics = read_metrics(str(tmp_path / "evaluation"))
    names = ["prior", "prior, online weights", "prior, steps=3", "prior, sampler=ddpm", *BASELINES]
    for split in ("test", "validation"):
        found = metrics["splits"][split]
        assert [value["name"] for value in found["predictors"]] == names
        assert len({json.dumps(value["metrics"]) for value in found["predictors"]}) == len(names)
        for weights in ("ema", "online"):
            losses = found["losses"][weights]
            assert list(losses) == ["overall", *(f"{i}-{i + 9}" for i in range(0, 100, 10))]
            parts = [value["value"] for name, value in losses.items() if name != "overall"]
            assert losses["overall"]["value"] == pytest.approx(np.mean(parts))
            assert parts[-1] > parts[0]  # more noise is harder
        assert found["losses"]["ema"] != found["losses"]["online"]
    table = pq.read_table(tmp_path / "evaluation" / rows_name("test"))
    assert table.num_rows == metrics["splits"]["test"]["rows"]
    mean = table.column("prior/energy_score").to_numpy().mean()
    assert mean == pytest.approx(found_in(metrics)["metrics"]["energy_score"]["value"])


def test_losses_are_those_of_the_weights_that_are_named(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    copied = tmp_path / "prior"
    shutil.copytree(prior, copied)
    best = safetensors.torch.load_file(copied / "best.safetensors")
    with safetensors.safe_open(copied / "best.safetensors", "pt") as file:
        metadata = file.metadata()
    changed_weights = {name: value * 1.1 for name, value in best.items()}
    safetensors.torch.save_file(changed_weights, copied / "best.safetensors", metadata)
    names = ("ema", "online", "best")
    settings = EvaluateSettings.model_validate(QUICK.model_dump() | {"weights": names, "baselines": []})
    evaluate(str(copied), str(embeddings), str(tmp_path / "evaluation"), settings)
    losses = read_metrics(str(tmp_path / "evaluation"))["splits"]["test"]["losses"]
    dataset = EmbeddingDataset(str(embeddings), READ)
    rows = EvaluatedRows(dataset, "test", settings)
    for name in names:
        found = timestep_losses(load_prior(copied, weights=name), dataset.take(rows.rows), rows.ids, settings)
        assert losses[name]["overall"]["value"] == pytest.approx(np.mean(list(found.values())), rel=1e-4), name
    assert len({losses[name]["overall"]["value"] for name in names}) == 3


# sameness


def test_results_depend_on_the_seed_alone(prior: Path, embeddings: Path, quick_metrics: dict[str, Any]) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    torch.manual_seed(5)
    np.random.seed(5)
    assert computed(prior, dataset, QUICK).metrics == quick_metrics
    other = computed(prior, dataset, QUICK.model_copy(update={"seed": 1})).metrics
    for name in ("prior", "random training image"):
        scores = [found_in(metrics, name)["metrics"]["energy_score"] for metrics in (quick_metrics, other)]
        assert scores[0] != scores[1]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The numbers of a metrics file by where they stand."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}/{key}").items()}
    if isinstance(value, list):
        return flat({inner.get("name", i): inner for i, inner in enumerate(value)}, name)
    return {name: value}


def assert_near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), name


def test_the_order_of_shards_changes_no_number(
    prior: Path, embeddings: Path, quick_metrics: dict[str, Any], tmp_path: Path
) -> None:
    reordered = tmp_path / "embeddings"
    shutil.copytree(embeddings, reordered)
    (reordered / "manifest.json").unlink()
    for folder in ("shards", "selections", "failures", "stats", "token_states"):
        shutil.rmtree(reordered / folder, ignore_errors=True)
    for kind in ("img_emb", "text_emb", "metadata"):
        for path in sorted((reordered / kind).iterdir()):
            path.rename(path.with_name(path.name.replace("000", "9")))  # 0, 1, 2 -> 90, 91, 92
        first, last = (reordered / kind / f"{kind}_9{number}.{path.suffix[1:]}" for number in (0, 2))
        first.rename(first.with_name("other"))
        last.rename(first)
        first.with_name("other").rename(last)
    one, other = EmbeddingDataset(str(embeddings), READ), EmbeddingDataset(str(reordered), READ)
    assert other.count == one.count
    assert not np.array_equal(other.row_ids, one.row_ids)
    assert_near(computed(prior, other, QUICK).metrics, quick_metrics)
    assert other.content_fingerprint != one.content_fingerprint


def test_the_size_of_blocks_changes_no_number(
    prior: Path, embeddings: Path, quick_metrics: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    for rows in (40, 1000):
        monkeypatch.setattr(evaluated_rows, "BLOCK_ROWS", rows)
        assert_near(computed(prior, dataset, QUICK).metrics, quick_metrics)


@pytest.mark.slow
def test_workers_of_ray_give_the_numbers_of_one_process(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"max_rows": 300})
    evaluate(str(prior), str(embeddings), str(tmp_path / "one"), settings)
    compute = ComputeSettings(backend="ray", workers=2)
    evaluate(str(prior), str(embeddings), str(tmp_path / "two"), settings, compute=compute)
    assert_near(read_metrics(str(tmp_path / "two")), read_metrics(str(tmp_path / "one")))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_scores_of_a_row_do_not_change_with_the_rows_beside_it(prior: Path, embeddings: Path, sampler: Any) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    scores = []
    for rows in (150, 240):
        settings = QUICK.model_copy(update={"sample": SampleSettings(steps=4, sampler=sampler), "max_rows": rows})
        scores.append(computed(prior, dataset, settings).rows["test"].column("prior/energy_score").to_numpy())
    np.testing.assert_allclose(scores[0], scores[1][:150], atol=1e-5)


# the stage


def test_a_second_run_does_nothing_and_gives_the_same_file_anew(
    prior: Path, embeddings: Path, quick_metrics: dict[str, Any], tmp_path: Path, folder_bytes: Callable[[Path], Any]
) -> None:
    metrics = quick_metrics
    calls: list[tuple[int, int, str]] = []
    first = evaluate(
        str(prior), str(embeddings), str(tmp_path / "one"), QUICK, progress=lambda *told: calls.append(told)
    )
    rows = metrics["splits"]["test"]["rows"]
    assert first.done_now == first.rows == rows
    assert calls[-1][0] == calls[-1][1] == rows
    found = read_metrics(str(tmp_path / "one"))
    assert {name: found[name] for name in metrics} == metrics  # the split is the one of the training
    dataset = EmbeddingDataset(str(embeddings), READ)
    assert {name: value for name, value in found.items() if name not in metrics} == {
        "format_version": 4,
        "subject": {
            "path": str(prior), "kind": "prior, trained here", "training_rows": "held out",
            "content": fingerprint({name: sha256(prior / name) for name in ("config.json", "model.safetensors")}),
        },
        "embeddings": {
            "path": str(embeddings), "content": dataset.content_fingerprint, "clip": fingerprint("synthetic"),
            "embed_dim": 16,
        },
    }  # fmt: skip
    second = evaluate(str(prior), str(embeddings), str(tmp_path / "one"), QUICK)
    assert (second.done_now, second.rows) == (0, rows)
    before = folder_bytes(tmp_path / "one")
    (tmp_path / "one/metrics.json").unlink()
    assert evaluate(str(prior), str(embeddings), str(tmp_path / "one"), QUICK).done_now == rows
    assert folder_bytes(tmp_path / "one") == before


def test_a_new_prior_or_other_settings_make_it_stale(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    quick = EvaluateSettings(draws=2, max_rows=40, sample=SampleSettings(steps=2), bootstrap_samples=100)
    own, folder = tmp_path / "prior", str(tmp_path / "evaluation")
    settings = changed(SMALL_TRAIN, steps=2)
    train(str(embeddings), str(own), settings, READ)

    def pending() -> int:
        return plan_evaluate(str(own), str(embeddings), folder, quick).pending_units

    assert pending() == 40
    assert not Path(folder).exists()
    evaluate(str(own), str(embeddings), folder, quick)
    first = read_metrics(folder)
    assert pending() == 0
    train(str(embeddings), str(own), changed(settings, seed=1), READ, overwrite=True)
    assert pending() == 40
    assert evaluate(str(own), str(embeddings), folder, quick).done_now == 40
    second = read_metrics(folder)
    assert found_in(first) != found_in(second)
    assert found_in(first, "mean shift") == found_in(second, "mean shift")
    more = quick.model_copy(update={"draws": 3})
    assert evaluate(str(own), str(embeddings), folder, more).done_now == 40
    assert found_in(read_metrics(folder))["draws"] == 3
    assert evaluate(str(own), str(embeddings), folder, more, limit=10).rows == 10


def test_token_states_reach_the_evaluated_prior(tmp_path: Path) -> None:
    embeddings = write_embeddings(tmp_path / "embeddings", rows=200, token_states=True)
    settings = changed(SMALL_TRAIN, steps=2, network__max_text_len=3)
    train(str(embeddings), str(tmp_path / "prior"), settings, READ)
    quick = EvaluateSettings(draws=2, sample=SampleSettings(steps=2), bootstrap_samples=100)
    evaluate(str(tmp_path / "prior"), str(embeddings), str(tmp_path / "evaluation"), quick)
    blind = tmp_path / "blind"
    write_embeddings(blind, rows=200)
    with pytest.raises(InputError, match="stores no token states"):
        evaluate(str(tmp_path / "prior"), str(blind), str(tmp_path / "other"), quick)


# refusals


def test_another_clip_is_refused(prior: Path, tmp_path: Path) -> None:
    other = write_embeddings(tmp_path / "other", clip="another")
    with pytest.raises(InputError, match="embedded by another CLIP"):
        evaluate(str(prior), str(other), str(tmp_path / "evaluation"), SETTINGS)
    assert not (tmp_path / "evaluation/metrics.json").exists()


def test_a_split_that_is_too_small_is_refused(embeddings: Path, tmp_path: Path) -> None:
    none = ReadSettings(validation_fraction=0, test_fraction=0)
    train(str(embeddings), str(tmp_path / "prior"), changed(SMALL_TRAIN, steps=2), none)
    with pytest.raises(InputError, match=r"the test split has 0 rows, at least 2 .*read\.test_fraction"):
        evaluate(str(tmp_path / "prior"), str(embeddings), str(tmp_path / "evaluation"), SETTINGS)


def test_other_splits_than_those_of_the_training_are_refused(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="would mix in rows that it was trained on"):
        evaluate(str(prior), str(embeddings), str(tmp_path / "evaluation"), QUICK, ReadSettings(test_fraction=0.5))


def test_an_unfinished_or_missing_prior_is_refused(embeddings: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path / "prior"), SMALL_TRAIN, READ, limit=2)
    with pytest.raises(InputError, match="training has not ended"):
        evaluate(str(tmp_path / "prior"), str(embeddings), str(tmp_path / "evaluation"), SETTINGS)
    with pytest.raises(InputError, match="holds no result of `priorkit train`"):
        evaluate(str(tmp_path / "nowhere"), str(embeddings), str(tmp_path / "evaluation"), SETTINGS)
    with pytest.raises(InputError, match="was written by `priorkit embed`, not by `priorkit train`"):
        evaluate(str(embeddings), str(embeddings), str(tmp_path / "evaluation"), SETTINGS)


def test_a_folder_with_other_work_is_left_alone(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"other work .*notes\.txt"):
        evaluate(str(prior), str(embeddings), str(tmp_path), SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_prior_that_draws_nan_is_named(prior: Path, embeddings: Path) -> None:
    loaded, dataset = load_prior(str(prior)), EmbeddingDataset(str(embeddings), READ)
    with torch.no_grad():
        loaded.network.to_embed.weight[3] = float("nan")
    made = compute_metrics(dataset, QUICK, lambda: Scorer(dataset, QUICK, lambda weights: loaded))
    assert found_in(made.metrics)["broken"].startswith("not finite, or of norm 0, first for row ")
    assert json.loads(json.dumps(made.metrics, allow_nan=False)) == made.metrics


# other subjects


def test_a_prior_that_was_not_trained_here_is_evaluated_on_any_embeddings(
    prior: Path, embeddings: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(prior / name, other / name)
    evaluate(str(other), str(embeddings), str(tmp_path / "evaluation"), QUICK)
    evaluate(str(prior), str(embeddings), str(tmp_path / "same"), QUICK)
    found, same = (read_metrics(str(tmp_path / name)) for name in ("evaluation", "same"))
    assert found["splits"] == same["splits"]
    assert found["subject"] == {**same["subject"], "path": str(other), "kind": "prior"}
    foreign = tmp_path / "foreign"  # as of clip-retrieval: nothing says which CLIP
    foreign.mkdir()
    for kind in ("img_emb", "text_emb", "metadata"):
        shutil.copytree(embeddings / kind, foreign / kind)
    evaluate(str(other), str(foreign), str(tmp_path / "third"), QUICK, READ)
    third = read_metrics(str(tmp_path / "third"))
    assert third["splits"] == same["splits"]
    assert third["subject"]["training_rows"] == "of other embeddings"
    assert third["embeddings"]["clip"] is None


def test_given_predictions_are_evaluated(embeddings: Path, tmp_path: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    np.save(tmp_path / "predicted.npy", dataset.take(np.arange(dataset.count)).text_embed)
    path, folder = str(tmp_path / "predicted.npy"), str(tmp_path / "evaluation")
    evaluate(path, str(embeddings), folder, QUICK, READ)
    metrics = read_metrics(folder)
    assert (metrics["subject"]["kind"], metrics["subject"]["training_rows"]) == ("predictions", "unknown")
    found, baseline = found_in(metrics, "given predictions"), found_in(metrics, "text embedding")
    assert found["draws"] == 1
    assert {**found, "name": ""} == {**baseline, "name": ""}
    assert metrics["splits"]["test"]["losses"] == {}
    assert plan_evaluate(path, str(embeddings), folder, QUICK, READ).pending_units == 0
    np.save(tmp_path / "predicted.npy", np.zeros((7, 16), np.float32))
    with pytest.raises(InputError, match=r"has shape \[7, 16\], needed is \[1000, 16\] or \[1000, K, 16\]"):
        evaluate(path, str(embeddings), folder, QUICK, READ)
    with pytest.raises(InputError, match="cannot be read"):
        evaluate(str(tmp_path / "nothing.npy"), str(embeddings), folder, QUICK, READ)
    with fsspec.open("memory://predicted/remote.npy", "wb") as file:
        np.save(file, np.zeros((1000, 16), np.float32))
    with pytest.raises(InputError, match=r"remote\.npy is not on this machine, .*copy it here first"):
        evaluate("memory://predicted/remote.npy", str(embeddings), folder, QUICK, READ)


@pytest.mark.parametrize("value", [0, np.nan])
@pytest.mark.parametrize("split", ["train", "test"])
def test_embeddings_without_direction_are_named(split: Split, value: float, embeddings: Path, tmp_path: Path) -> None:
    row = int(EmbeddingDataset(str(embeddings), READ).rows(split)[5])

    def damage(image: np.ndarray) -> None:
        image[row] = value

    damaged = write_embeddings(tmp_path / "embeddings", rows=1000, damage=damage)
    np.save(tmp_path / "predicted.npy", np.random.default_rng(0).standard_normal((1000, 16)))
    settings = QUICK.model_copy(update={"max_rows": 1000})
    with pytest.raises(
        InputError, match=rf"rows {row}, keys {row:09d}: the image embedding (is all zeros|holds NaN); .*inspect"
    ):
        evaluate(str(tmp_path / "predicted.npy"), str(damaged), str(tmp_path / "evaluation"), settings, READ)


# the same again


def test_a_prior_that_was_moved_is_the_same_prior(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    quick = EvaluateSettings(draws=2, max_rows=40, sample=SampleSettings(steps=2), bootstrap_samples=100)
    evaluate(str(prior), str(embeddings), str(tmp_path / "evaluation"), quick)
    shutil.copytree(prior, tmp_path / "moved")
    assert evaluate(str(tmp_path / "moved"), str(embeddings), str(tmp_path / "evaluation"), quick).done_now == 0
