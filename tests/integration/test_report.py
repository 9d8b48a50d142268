"""The report of a small run, and of evaluations that lack this or that."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from priorkit.cli import app
from priorkit.pipeline.errors import InputError
from priorkit.pipeline.read.dataset import EmbeddingDataset
from priorkit.pipeline.read.settings import ReadSettings
from priorkit.prior.evaluate.predictors import PriorPredictor
from priorkit.prior.evaluate.settings import EvaluateSettings
from priorkit.prior.evaluate.stage import evaluate
from priorkit.prior.interchange.load import convert, load_prior
from priorkit.prior.report import gallery_section as report_gallery
from priorkit.prior.report.report import Written, write_report
from priorkit.prior.report.source import ReportSource
from priorkit.prior.sampling.settings import SampleSettings
from priorkit.prior.train.stage import train

from .conftest import Workspace
from .synthetic import SMALL_TRAIN, changed, write_embeddings

pytestmark = pytest.mark.slow
READ = ReadSettings(validation_fraction=0.1, test_fraction=0.2)
SETTINGS = EvaluateSettings.model_validate(
    {"threads": 1, "draws": 2, "bootstrap_samples": 100, "device": "cpu", "sample": {"steps": 2}}
    | {"sweep": {"steps": [2, 3], "guidance_scales": [1, 2]}, "weights": ["ema", "online"]}
)
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(1)"> & $\\frac{$'
SECTIONS = [
    "What was evaluated", "Training", "Metrics, test split", "Loss by timestep", "Steps and guidance",
    "Histograms of cosines", "Projection", "Captions and the images they find",
]  # fmt: skip


class Page(HTMLParser):
    """The elements of a page by section, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.content = path.read_bytes()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.figures: dict[str, int] = {}
        self.text: dict[str, str] = {}
        self._section, self._in_heading = "", False
        self.feed(self.content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._in_heading = tag == "h2"
        if tag == "figure":
            self.figures[self._section] = self.figures.get(self._section, 0) + 1

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self._section, self._in_heading = data, False
        self.text[self._section] = self.text.get(self._section, "") + data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("synthetic") / "embeddings")


@pytest.fixture(scope="module")
def prior(embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained") / "prior"
    train(str(embeddings), str(folder), SMALL_TRAIN, READ)
    return folder


@pytest.fixture(scope="module")
def evaluation(prior: Path, embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For reading only."""
    folder = tmp_path_factory.mktemp("evaluated") / "evaluation"
    evaluate(str(prior), str(embeddings), str(folder), SETTINGS)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image for every row but those whose number ends in 7, each of one colour that says which it is."""
    folder = tmp_path_factory.mktemp("images")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for row in range(480):
            if row % 10 == 7:
                continue
            file = io.BytesIO()
            Image.new("RGB", (300, 200), (row // 256 * 100, row % 256, 0)).save(file, "PNG")
            info = tarfile.TarInfo(f"{row:09d}.png")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)
    return folder


def foreign(source: Path, target: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """The embeddings as another tool leaves them, without a manifest and with other metadata."""
    for kind in ("img_emb", "text_emb", "metadata"):
        shutil.copytree(source / kind, target / kind)
    for path in (target / "metadata").iterdir():
        pq.write_table(change(pq.read_table(path)), path)
    return target


def written(
    target: Path, evaluation: Path, prior: Path, embeddings: Path, images: Any = "none"
) -> tuple[Written, Page]:
    done = write_report(str(evaluation), str(prior), str(embeddings), str(images), str(target))
    assert Path(done.path) == target
    return done, Page(target)


def test_a_run_has_a_report_by_the_real_command(holding: Callable[..., Workspace]) -> None:
    workspace = holding()
    before = workspace.committed()
    said = workspace.run("report", "data/evaluation").stdout
    path = workspace.data / "evaluation.html"
    assert f"report: {path}" in said
    page = Page(path)
    assert [name for name in page.text if name][-len(SECTIONS) :] == SECTIONS
    first = path.read_bytes()
    assert len(first) < 15_000_000
    assert len(page.of("img")) == 12 * 11
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.of("img"))
    assert len([image for image in page.of("img") if image.get("class") == "marked"]) > 0
    assert "http://127.0.0.1" in page.of("a")[0]["href"]
    assert "square, number" in page.text[SECTIONS[-1]]
    assert workspace.committed() == before
    again = workspace.json("report")
    assert (again["report"], again["bytes"]) == (str(path), len(first))
    assert path.read_bytes() == first
    assert [sentence for sentence in again["missing"] if "sweep" not in sentence and "too few" not in sentence] == []


def test_every_plot_is_there(prior: Path, embeddings: Path, evaluation: Path, images: Path, tmp_path: Path) -> None:
    done, page = written(tmp_path / "report.html", evaluation, prior, embeddings, images)
    expected = {
        "Training": 3, "Metrics, test split": 4, "Loss by timestep": 1, "Steps and guidance": 4,
        "Histograms of cosines": 2, "Projection": 2,
    }  # fmt: skip
    assert page.figures == expected
    assert len(page.of("svg")) == sum(expected.values())
    metrics = json.loads((evaluation / "metrics.json").read_text())["splits"]["test"]
    score = metrics["predictors"][0]["metrics"]["energy_score"]
    assert f"{score['value']:.4f} [{score['low']:.4f},\u00a0{score['high']:.4f}]" in page.text["Metrics, test split"]
    for predictor in metrics["predictors"]:
        assert predictor["name"] in page.text["Metrics, test split"]
    # 480 images are searched, and a tenth of them are lacking
    assert "among 480 of 480" in page.text[SECTIONS[-1]]
    assert len(done.missing) == 1
    assert "images that are shown" in done.missing[0]


def test_the_gallery_shows_the_nearest_images(
    prior: Path, embeddings: Path, evaluation: Path, images: Path, tmp_path: Path
) -> None:
    """Against a search by hand; by the colours of the pictures and by their labels."""
    _, page = written(tmp_path / "report.html", evaluation, prior, embeddings, images)
    dataset = EmbeddingDataset(str(embeddings), READ)
    everything = dataset.take(np.arange(dataset.count))
    ids = pq.read_table(evaluation / "rows_test.parquet").column("row_id").to_numpy()[:12]
    place = {int(row_id): row for row, row_id in enumerate(dataset.row_ids)}
    expected = []
    for row in (place[int(row_id)] for row_id in ids):
        order = np.argsort(-(everything.image_embed @ everything.text_embed[row]))[:5].tolist()
        expected += [row, *order]
    shown, at = [], 0
    for tag, attributes in page.tags:
        if tag == "img":
            shown.append(attributes)
    by_text = [image["alt"] for image in shown]
    wanted = [f"caption {row}" for row in expected if row % 10 != 7]
    for label in wanted:  # in this order, those of the prior in between
        at = by_text.index(label, at) + 1
    for image in shown[:20]:
        row = int(image["alt"].split()[1])
        pixels = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        assert max(pixels.size) == 128
        red, green, blue = pixels.convert("RGB").getpixel((5, 5))  # type: ignore[misc]
        assert abs(red - row // 256 * 100) < 8
        assert abs(green - row % 256) < 8
        assert blue < 8


def test_what_is_hostile_is_text(
    prior: Path, embeddings: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(table: pa.Table) -> pa.Table:
        captions = [f"{caption} {HOSTILE}" for caption in table.column("caption").to_pylist()]
        urls = [f"javascript:alert({row})//{url}" for row, url in enumerate(table.column("url").to_pylist())]
        return table.set_column(table.column_names.index("caption"), "caption", [captions]).set_column(
            table.column_names.index("url"), "url", [urls]
        )

    strange = foreign(embeddings, tmp_path / "embeddings", change)
    evaluate(str(prior), str(strange), str(tmp_path / "ev"), SETTINGS)
    _, page = written(tmp_path / "report.html", tmp_path / "ev", prior, strange, images)
    assert not {"script", "iframe", "link", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.of("a") == []
    assert page.text[SECTIONS[-1]].count("<script>alert(1)</script>") >= 12
    assert page.text[SECTIONS[-1]].count("javascript:") == 12  # as text
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    assert "default-src 'none'" in page.content.decode()


def test_what_is_missing_is_said(prior: Path, embeddings: Path, evaluation: Path, images: Path, tmp_path: Path) -> None:
    # a prior that was not trained here, and no images
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(prior / name, bare)
    done, page = written(tmp_path / "report.html", evaluation, bare, embeddings, tmp_path / "nothing")
    assert "has no metrics.jsonl" in page.text["Training"]
    assert "There are no images to show" in page.text[SECTIONS[-1]]
    assert page.figures["Projection"] == 2
    assert len(done.missing) == 2
    # neither a prior nor embeddings
    done, page = written(tmp_path / "report.html", evaluation, tmp_path / "none", embeddings, images)
    assert "There are no predictions to show" in page.text["Projection"]
    assert page.figures["Projection"] == 1
    assert len(page.of("img")) > 50
    done, page = written(tmp_path / "report.html", evaluation, prior, tmp_path / "none", images)
    assert "There are no embeddings to show" in page.text["Projection"]
    assert page.figures["Metrics, test split"] == 4
    # a log of which the end is lost
    (bare / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n{"step": 1')
    done, page = written(tmp_path / "report.html", evaluation, bare, embeddings, images)
    assert "is damaged" in page.text["Training"]


def test_embeddings_without_captions_have_a_gallery_without_them(
    prior: Path, embeddings: Path, images: Path, tmp_path: Path
) -> None:
    strange = foreign(embeddings, tmp_path / "embeddings", lambda table: table.select(["key"]))
    evaluate(str(prior), str(strange), str(tmp_path / "ev"), SETTINGS)
    done, page = written(tmp_path / "report.html", tmp_path / "ev", prior, strange, images)
    assert "holds no captions" in page.text[SECTIONS[-1]]
    assert "which has no caption" in page.text[SECTIONS[-1]]
    assert len(page.of("img")) > 50
    without = foreign(
        embeddings, tmp_path / "without", lambda table: table.select([]).append_column("x", [[0] * len(table)])
    )
    evaluate(str(prior), str(without), str(tmp_path / "ev2"), SETTINGS)
    done, page = written(tmp_path / "report.html", tmp_path / "ev2", prior, without, images)
    assert [sentence.rpartition(" holds ")[2] for sentence in done.missing] == [
        "no captions.",
        "no keys to find images by.",
    ]
    assert page.of("img") == []


def test_given_predictions_have_a_report(embeddings: Path, images: Path, prior: Path, tmp_path: Path) -> None:
    rotation = np.linalg.qr(np.random.default_rng(1234).standard_normal((16, 16)))[0]
    dataset = EmbeddingDataset(str(embeddings), READ)
    np.save(tmp_path / "given.npy", dataset.take(np.arange(dataset.count)).text_embed @ rotation)
    evaluate(str(tmp_path / "given.npy"), str(embeddings), str(tmp_path / "ev"), SETTINGS, READ)
    _, page = written(tmp_path / "report.html", tmp_path / "ev", tmp_path / "given.npy", embeddings, images)
    assert page.figures == {"Metrics, test split": 4, "Histograms of cosines": 2, "Projection": 2}
    assert "nearest by the prediction" in page.text[SECTIONS[-1]]
    # the mean of the true conditional finds the true image where the raw text does not
    marked = [image for image in page.of("img") if image.get("class") == "marked"]
    assert len(marked) >= 6
    assert "On which rows it was trained is not known" in page.text["What was evaluated"]
    with pytest.raises(InputError, match=r"prior is not what .*ev is of: that was .*given\.npy \(predictions, "):
        written(tmp_path / "report.html", tmp_path / "ev", prior, embeddings)


def test_what_is_broken_is_named_and_not_drawn(embeddings: Path, images: Path, tmp_path: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    np.save(tmp_path / "same.npy", np.ones((dataset.count, 16), np.float32))
    evaluate(str(tmp_path / "same.npy"), str(embeddings), str(tmp_path / "ev"), SETTINGS, READ)
    done, page = written(tmp_path / "report.html", tmp_path / "ev", tmp_path / "same.npy", embeddings, images)
    assert "given predictions is broken and not shown: the same for every caption" in page.text["Metrics, test split"]
    assert page.figures["Projection"] == 1
    assert "given predictions" not in page.content.decode().partition("Histograms of cosines")[2].partition("<h2>")[0]
    assert any("broken" in sentence for sentence in done.missing)
    alone = SETTINGS.model_copy(update={"baselines": ()})
    evaluate(str(tmp_path / "same.npy"), str(embeddings), str(tmp_path / "alone"), alone, READ)
    done, page = written(tmp_path / "report.html", tmp_path / "alone", tmp_path / "same.npy", embeddings, images)
    assert "No baseline was evaluated" in page.text["Metrics, test split"]
    assert "Nothing that is not broken has cosines" in page.text["Histograms of cosines"]


def test_a_search_is_of_a_part_of_many_rows(
    prior: Path, embeddings: Path, evaluation: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("priorkit.prior.report.sections.SEARCHED_ROWS", 40)
    monkeypatch.setattr("priorkit.prior.report.sections.PROJECTED_ROWS", 20)
    _, page = written(tmp_path / "report.html", evaluation, prior, embeddings, images)
    assert "among 40 of 480" in page.text[SECTIONS[-1]]
    assert "20 rows on the two principal axes" in page.text["Projection"]
    assert report_gallery.SEARCHED_ROWS == 20_000


def test_what_does_not_belong_together_is_refused(
    prior: Path, embeddings: Path, evaluation: Path, tmp_path: Path
) -> None:
    other = write_embeddings(tmp_path / "other", seed=5)
    target = tmp_path / "report.html"
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((target, evaluation, prior, other), "name the embeddings that were evaluated with --embeddings"),
        ((target, tmp_path / "none", prior, embeddings), "run that first"),
        ((target, prior, prior, embeddings), "was written by `priorkit train`"),
        (
            (target, evaluation, tmp_path / "x.npy", embeddings),
            r"x\.npy is not what .*prior \(prior, trained here, ",
        ),
        ((evaluation / "report.html", evaluation, prior, embeddings), "is inside .*whose files are recorded"),
        ((prior / "report.html", evaluation, prior, embeddings), "is inside"),
        ((tmp_path, evaluation, prior, embeddings), "is no name of a file"),
        ((tmp_path / "none/report.html", evaluation, prior, embeddings), "there is no folder"),
    ]
    np.save(tmp_path / "x.npy", np.ones((480, 16), np.float32))
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            written(*arguments)
    with pytest.raises(InputError, match="is not on this machine"):
        write_report("memory://somewhere/evaluation")
    damaged = tmp_path / "damaged"
    shutil.copytree(evaluation, damaged)
    (damaged / "metrics.json").write_text((damaged / "metrics.json").read_text().replace("0.1", "0.2"))
    with pytest.raises(InputError, match="differs from what was written; run `priorkit evaluate` again"):
        written(target, damaged, prior, embeddings)
    assert not target.exists()
    assert sorted(path.name for path in tmp_path.glob("*tmp")) == []


def test_the_prior_that_was_evaluated_is_found_and_another_is_refused(
    prior: Path, embeddings: Path, evaluation: Path, images: Path, tmp_path: Path
) -> None:
    done = write_report(str(evaluation), images=str(images), output=str(tmp_path / "report.html"))
    page = Page(tmp_path / "report.html")
    assert len(done.missing) == 1
    assert page.figures["Projection"] == 2
    about = page.text["What was evaluated"].replace("\n", "")
    for said in (f"evaluated{prior}", "kindprior, trained here", f"embeddings{embeddings}", "draws for each caption2"):
        assert said in about
    assert "On which rows" not in about
    assert "drawsenergy score" in page.text["Metrics, test split"].replace("\n", "")
    own = tmp_path / "own"
    train(str(embeddings), str(own), changed(SMALL_TRAIN, seed=1), READ)
    message = r"own is not what .* is of: that was .*prior .*name it with --prior, or run `priorkit evaluate` again"
    with pytest.raises(InputError, match=message):
        written(tmp_path / "other.html", evaluation, own, embeddings, images)
    # one that was trained anew where it was, of which no part is drawn, even without embeddings
    evaluate(str(own), str(embeddings), str(tmp_path / "ev"), SETTINGS)
    train(str(embeddings), str(own), changed(SMALL_TRAIN, seed=2), READ, overwrite=True)
    with pytest.raises(InputError, match="own is not what"):
        write_report(str(tmp_path / "ev"), embeddings=str(tmp_path / "none"), output=str(tmp_path / "other.html"))
    assert not (tmp_path / "other.html").exists()


def test_a_checkpoint_has_a_report(embeddings: Path, images: Path, tmp_path: Path) -> None:
    train(str(embeddings), str(tmp_path / "prior"), changed(SMALL_TRAIN, steps=5, network__width=16), READ)
    pth, config = str(tmp_path / "prior.pth"), str(tmp_path / "prior.json")
    convert(str(tmp_path / "prior"), pth)
    evaluate(pth, str(embeddings), str(tmp_path / "ev"), SETTINGS, READ, config=config)
    write_report(str(tmp_path / "ev"), images=str(images), output=str(tmp_path / "report.html"))
    page = Page(tmp_path / "report.html")
    assert page.figures["Projection"] == 2
    assert "no prior was trained there" in page.text["Training"]
    shutil.copy(pth, tmp_path / "moved.pth")
    arguments = ["report", str(tmp_path / "ev"), "--prior", str(tmp_path / "moved.pth"), "--images", str(images)]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "moved.pth: give config=" in refused.stderr
    arguments += ["--config", config]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    for options in (arguments, [arguments[0], arguments[1]]):
        assert "is not what" in CliRunner().invoke(app, [*options, "--function-version", "1.14.2"]).stderr


def test_predictions_are_drawn_with_the_seed_of_the_evaluation(prior: Path, embeddings: Path, tmp_path: Path) -> None:
    dataset = EmbeddingDataset(str(embeddings), READ)
    rows = dataset.rows("test")[:4]
    for seed in (0, 3):
        settings = SETTINGS.model_copy(update={"seed": seed, "baselines": ()})
        evaluate(str(prior), str(embeddings), str(tmp_path / f"ev{seed}"), settings)
        found, _ = ReportSource(str(tmp_path / f"ev{seed}")).predicted(dataset, rows)
        predictor = PriorPredictor(load_prior(str(prior)), SampleSettings(steps=2), 1, seed)
        expected = predictor(dataset.take(rows), dataset.row_ids[rows])[:, 0]
        np.testing.assert_allclose(found, expected, atol=1e-6)  # type: ignore[arg-type]


def test_a_floor_of_fewer_rows_says_so(embeddings: Path, images: Path, tmp_path: Path) -> None:
    """Where there are fewer training rows than evaluated ones."""
    read = ReadSettings(validation_fraction=0.0, test_fraction=0.8)
    dataset = EmbeddingDataset(str(embeddings), read)
    np.save(tmp_path / "given.npy", dataset.take(np.arange(dataset.count)).text_embed)
    evaluate(str(tmp_path / "given.npy"), str(embeddings), str(tmp_path / "ev"), SETTINGS, read)
    found = json.loads((tmp_path / "ev/metrics.json").read_text())["splits"]["test"]
    train_rows = len(dataset.rows("train"))
    assert found["distance_rows"] == len(dataset.rows("test")) > train_rows > 40
    assert found["real_against_real_rows"] == train_rows
    assert set(found["real_against_real"]) == {"energy_distance", "mmd"}
    assert set(found["predictors"][0]["distances"]) == {"frechet_distance", "energy_distance", "mmd"}
    write_report(str(tmp_path / "ev"), images=str(images), output=str(tmp_path / "report.html"))
    text = Page(tmp_path / "report.html").text["Metrics, test split"]
    assert f"There are {train_rows} training rows for the distances of real against real." in text


def test_the_way_of_drawing_is_the_one_that_was_evaluated(
    prior: Path, embeddings: Path, evaluation: Path, images: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"sample": SampleSettings(steps=5, guidance_scale=3.0)})
    evaluate(str(prior), str(embeddings), str(tmp_path / "ev"), settings)
    one, other = (
        written(tmp_path / f"{number}.html", folder, prior, embeddings, images)[1]
        for number, folder in enumerate((evaluation, tmp_path / "ev"))
    )

    def projected(page: Page) -> str:
        return page.content.decode().partition("<h2>Projection</h2>")[2].partition("<h2>")[0]

    assert projected(one) != projected(other)
    assert "guidance scale3.0" in other.text["What was evaluated"].replace("\n", "")
