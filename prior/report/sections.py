"""Sections of a report, each with a heading and HTML fragments.

If the training log, images or captions are missing, a sentence replaces the part of the report that needs them. Inputs
that do not match the evaluation, such as embeddings that were not evaluated, raise an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...pipeline.compute.stage import ProgressCallback, no_progress
from ...pipeline.contract.storage import Store
from ...pipeline.display import page
from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingDataset
from ..evaluate.predictors import as_units
from ..evaluate.scoring import is_one_space
from ..evaluate.settings import BASELINES
from ..evaluate.subject import TRAINING_ROWS_WARNINGS
from ..train.output import LOG_NAME, read_log
from . import plots as draw
from .gallery_section import CAPTIONS, SEARCHED_ROWS, find_rows, gallery, projection
from .source import ReportSource

PROJECTED_ROWS = 1000
"""Maximum number of rows in the plots of projected embeddings. More points would overlap too much."""
_NAMES = {
    "energy_score": "energy score", "cosine_to_image": "cosine to true image", "cosine_to_text": "cosine to its text",
    "cosine_to_unrelated_caption": "cosine to an unrelated caption",
    "difference_from_baseline": "difference from baseline", "recall_at_1": "recall@1", "recall_at_5": "recall@5",
    "recall_at_10": "recall@10", "diversity": "diversity", "frechet_distance": "Frechet distance",
    "energy_distance": "energy distance", "mmd": "MMD",
}  # fmt: skip
"""Display names of metrics for headings, tables and plots."""
_SWEPT = {"steps": ("steps", "steps=[4,16,64]"), "guidance_scale": ("guidance scale", "guidance_scales=[1,1.5,3]")}
"""Sampling settings whose sweeps are plotted, each with its axis label and an example sweep.

If only one value of a setting was evaluated, the report suggests the example sweep, such as
`--set evaluate.sweep.steps=[4,16,64]`.
"""
_REAL = "(real against real)"
"""Label used in tables and plots for the distances between training images and real images of the split."""

Section = tuple[str, list[str]]
"""Heading and HTML fragments of a section."""


class Sections:
    """Builder for all sections of a report.

    Args:
        source: finished evaluation, and the prior or predictions that were evaluated.
        images: folder with the images, as webdataset shards.
        progress: callback, called while embeddings are predicted for the plots.
    """

    def __init__(self, source: ReportSource, images: str, progress: ProgressCallback = no_progress) -> None:
        self._source, self._images, self._progress = source, images, progress
        self.missing: list[str] = []
        """Sentences that replace missing parts in the sections built so far."""

    def all_sections(self) -> list[Section]:
        """Return all sections in page order."""
        return [
            self._about(), self._training(), *(self._metrics(split) for split in self._source.splits), self._losses(),
            self._sweeps(), self._cosines(), *self._projection_and_gallery(),
        ]  # fmt: skip

    def _missing_part(self, sentence: str) -> str:
        """Add a sentence to `missing`, and return it as an HTML paragraph to show in place of the missing part."""
        self.missing.append(sentence)
        return page.paragraph(sentence)

    def _about(self) -> Section:
        subject, embeddings = self._source.metrics["subject"], self._source.metrics["embeddings"]
        about: list[tuple[str, object]] = [("evaluation", self._source.evaluation), ("evaluated", subject["path"])]
        about += [(name, subject[name]) for name in ("kind", "config", "function_version") if subject.get(name)]
        about += [("content", subject["content"]), ("embeddings", embeddings["path"])]
        about.append(("content of the embeddings", embeddings["content"]))
        about += [(f"rows of the {split} split", f"{found['rows']:,}") for split, found in self._source.splits.items()]
        about += [("draws for each caption", self._source.main["draws"]), ("seed", self._source.metrics["seed"])]
        about += [(name.replace("_", " "), value) for name, value in self._source.main.get("sample", {}).items()]
        body = [page.table(("", ""), about)]
        if warning := TRAINING_ROWS_WARNINGS.get(subject["training_rows"]):
            body.append(page.paragraph(warning))
        return "What was evaluated", body

    def _training(self) -> Section:
        heading = "Training"
        if self._source.is_given:
            return heading, [
                self._missing_part("Predictions were given in place of a prior: there is no training to show.")
            ]
        if self._source.subject is None:
            return heading, [self._missing_part(f"There is no training to show: {self._source.no_subject}")]
        store = Store(self._source.prior.path)
        if self._source.subject.kind == "checkpoint" or store.size(LOG_NAME) is None:
            return heading, [self._missing_part(f"{store.url} has no {LOG_NAME}: no prior was trained there.")]
        try:
            log = read_log(store)
        except InputError as error:
            return heading, [self._missing_part(f"There are no curves: {error}.")]
        series = {
            name: [(int(line["step"]), float(line[name])) for line in log if name in line]
            for name in ("loss", "validation_loss", "grad_norm", "learning_rate")
        }
        losses = {"training": series["loss"], "validation, averaged weights": series["validation_loss"]}
        drawn = [("Loss", "loss", {name: points for name, points in losses.items() if points})]
        drawn += [("Norm of the gradient", "norm", {"norm": series["grad_norm"]})]
        drawn += [("Learning rate", "learning rate", {"rate": series["learning_rate"]})]
        return heading, [
            page.plots(draw.curves(title, "step", y, lines) for title, y, lines in drawn if any(lines.values())),
            page.paragraph("Training losses are of batches with dropped texts; validation drops nothing."),
        ]

    def _metrics(self, split: str) -> Section:
        found = self._source.splits[split]
        broken = [p for p in found["predictors"] if "broken" in p]
        sound = {p["name"]: p for p in found["predictors"] if "broken" not in p}
        shown = {name: p for name, p in sound.items() if name in BASELINES or "=" not in name}
        body = [page.paragraph(
            f"{found['rows']:,} rows, 95% intervals. The energy score is the headline: lower is better, and only the "
            f"true distribution is best, whatever the number of draws. Recall: the true image among "
            f"{found['gallery']:,}. Distances of distributions are over {found['distance_rows']:,} rows."
        )]  # fmt: skip
        body += [page.paragraph(f"{p['name']} is broken and not shown: {p['broken']}.") for p in broken]
        if not any(p["name"] in BASELINES for p in found["predictors"]):
            body.append(
                self._missing_part(f"No baseline was evaluated on the {split} split; evaluate.baselines names some.")
            )
        metrics = {name: p["metrics"] for name, p in sound.items()}
        distances = {name: p["distances"] for name, p in sound.items() if p["distances"]}
        if found["real_against_real"]:
            distances[_REAL] = found["real_against_real"]
        if (floor := found["real_against_real_rows"]) < found["distance_rows"]:
            body.append(page.paragraph(f"There are {floor:,} training rows for the distances of real against real."))
        notes = {"energy_score": "lower is better", "energy_distance": "lower is better"}
        drawn = []
        for name in ("energy_score", "cosine_to_image", "recall_at_10", "energy_distance"):
            source = distances if name == "energy_distance" else metrics
            values = {n: v[name] for n, v in source.items() if n in shown or n == _REAL}
            if values:
                title = _NAMES[name][:1].upper() + _NAMES[name][1:]
                drawn.append(draw.intervals(f"{title}, {split}", notes.get(name, "higher is better"), values))
        if drawn:
            body.append(page.plots(drawn))
        draws = {name: p["draws"] for name, p in sound.items()}
        body += [_table(metrics, draws), _table(distances)] if distances else [_table(metrics, draws)]
        if not distances:
            body.append(self._missing_part(f"The {split} split has too few rows for distances of distributions."))
        return f"Metrics, {split} split", body

    def _losses(self) -> Section:
        body, drawn = [], []
        for split, found in self._source.splits.items():
            sound = {weights: value for weights, value in found["losses"].items() if "broken" not in value}
            broken = [weights for weights in found["losses"] if weights not in sound]  # in the order of the settings
            body += [
                page.paragraph(f"{split}: the loss of {weights} weights is {found['losses'][weights]['broken']}.")
                for weights in broken
            ]
            if sound:
                drawn.append(draw.losses_by_timestep(f"Loss by timestep, {split}", sound))
        if drawn:
            body.append(page.plots(drawn))
        if not body:
            body.append(self._missing_part("Predictions were given in place of a prior: there is no loss by timestep."))
        return "Loss by timestep", body

    def _sweeps(self) -> Section:
        if self._source.is_given:
            return "Steps and guidance", [self._missing_part("Predictions were given: there is nothing to vary.")]
        drawn: list[str] = []
        lacking: list[str] = []
        for setting, (label, option) in _SWEPT.items():
            before = len(drawn)
            for split, found in self._source.splits.items():
                values = sweep_values(found["predictors"], setting)
                for name in ("energy_score", "cosine_to_image") if len(values) > 1 else ():
                    points = {value: metrics[name] for value, metrics in values.items()}
                    title = f"{_NAMES[name].capitalize()} against {label}, {split}"
                    drawn.append(draw.swept(title, label, _NAMES[name], points))
            if len(drawn) == before:
                advice = f"`priorkit evaluate --set evaluate.sweep.{option}` would"
                lacking.append(self._missing_part(f"No other {label} was evaluated; {advice}."))
        return "Steps and guidance", [*([page.plots(drawn)] if drawn else []), *lacking]

    def _cosines(self) -> Section:
        drawn = []
        for split, rows in self._source.rows.items():
            name = self._source.main["name"]
            columns = {
                "To the true image": {n: f"{n}/cosine_to_image" for n in (name, "text embedding", BASELINES[-1])},
                f"Of {name}": {
                    "to its text": f"{name}/cosine_to_text", "to the true image": f"{name}/cosine_to_image",
                    "to an unrelated caption": f"{name}/cosine_to_unrelated_caption",
                },
            }  # fmt: skip
            for title, wanted in columns.items():
                values = {n: rows.column(c).to_numpy() for n, c in wanted.items() if c in rows.column_names}
                if values:
                    drawn.append(draw.histograms(f"{title}, {split}", "cosine", values))
        if not drawn:
            return "Histograms of cosines", [self._missing_part("Nothing that is not broken has cosines.")]
        note = page.paragraph("A row counts once, with the mean of its draws.")
        return "Histograms of cosines", [page.plots(drawn), note]

    def _projection_and_gallery(self) -> list[Section]:
        headings = ("Projection", "Captions and the images they find")
        try:
            dataset = EmbeddingDataset(self._source.embeddings)
        except InputError as error:
            return [
                (heading, [self._missing_part(f"There are no embeddings to show: {error}.")]) for heading in headings
            ]
        ids = self._source.rows[self._source.first_split].column("row_id").to_numpy()[:PROJECTED_ROWS]
        order = np.argsort(dataset.row_ids, kind="stable")
        rows = find_rows(dataset.row_ids, order, ids)
        if (rows < 0).any():
            raise InputError(
                f"{dataset.store.url}: {int((rows < 0).sum()):,} of {len(rows):,} rows of {self._source.evaluation} "
                "are not there; name the embeddings that were evaluated with --embeddings"
            )
        predicted, reason = self._source.predicted(dataset, rows, self._progress)
        batch = dataset.take(rows)
        notes = [] if predicted is not None else [self._missing_part(f"There are no predictions to show: {reason}")]
        text = as_units(batch.text_embed) if is_one_space(dataset) else None
        if text is None:
            sentence = "Source and target are in different spaces: sources cannot be shown among targets."
            notes.append(self._missing_part(sentence))
        projected = projection(as_units(batch.image_embed), text, predicted, self._source.first_split)
        shown = rows[:CAPTIONS]
        queries = {} if text is None else {"nearest by the raw text": text[:CAPTIONS]}
        if predicted is not None:
            subject = "prediction" if self._source.is_given else "prior"
            queries[f"nearest by the {subject}"] = predicted[:CAPTIONS]
        searched = np.concatenate([shown, order[~np.isin(order, shown)]])[:SEARCHED_ROWS]
        cards, missing = gallery(dataset, self._images, shown, searched, queries)
        about = f"The first {len(shown)} rows of the {self._source.first_split} split."
        return [
            (headings[0], [*notes, *projected]),
            (headings[1], [page.paragraph(about), *(self._missing_part(sentence) for sentence in missing), *cards]),
        ]


def sweep_values(predictors: Sequence[Mapping[str, Any]], setting: str) -> dict[float, Mapping[str, Any]]:
    """Return the metrics for each evaluated value of one sampling setting, keyed by that value.

    The metrics come from the first predictor and from all predictors that differ from it only in this setting.
    Predictors without sampling settings, such as baselines, and predictors marked as `broken` are left out.

    Args:
        predictors: entries of `metrics.json` for the predictors of a split.
        setting: name of the sampling setting.
    """
    first = predictors[0]

    def others(predictor: Mapping[str, Any]) -> Any:
        return predictor["weights"], {name: v for name, v in predictor["sample"].items() if name != setting}

    return {
        float(p["sample"][setting]): p["metrics"]
        for p in predictors
        if "sample" in p and "broken" not in p and others(p) == others(first)
    }


def _table(values: Mapping[str, Mapping[str, Mapping[str, float]]], draws: Mapping[str, int] | None = None) -> str:
    """Return an HTML table of values with 95% confidence intervals: one row per predictor, one column per metric.

    The columns are the metrics of the first predictor. A cell is empty if a predictor has no value for the metric.

    Args:
        values: values with confidence intervals, keyed by predictor and then by metric.
        draws: number of predicted embeddings per evaluated row, keyed by predictor; None to omit this column.
    """
    names = list(next(iter(values.values()), {}))
    rows: list[tuple[object, ...]] = []
    for predictor, metrics in values.items():
        cells = [
            f"{v['value']:.4f} [{v['low']:.4f},\u00a0{v['high']:.4f}]" if (v := metrics.get(name)) else ""
            for name in names
        ]
        rows.append((predictor, *([] if draws is None else [draws[predictor]]), *cells))
    header = ("", *([] if draws is None else ["draws"]), *(_NAMES.get(name, name) for name in names))
    return page.table(header, rows)
