"""The command that writes a report of an evaluation. Heavy imports happen when it runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..pipeline.commands import JsonOption


def report(
    evaluation: Annotated[str, typer.Argument(help="Folder of an evaluation.")] = "data/evaluation",
    prior: Annotated[
        str, typer.Option(help="The prior that was evaluated, or the .npy of predictions.")
    ] = "data/prior",
    embeddings: Annotated[str, typer.Option(help="The embeddings that it was evaluated on.")] = "data/embeddings",
    images: Annotated[str, typer.Option(help="Folder of the images, for the gallery.")] = "data/images",
    output: Annotated[
        Optional[str], typer.Option(metavar="FILE", show_default="EVALUATION.html", help="Page to write.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an evaluation as one HTML page: curves, metrics, a projection and a gallery.

    Example: priorkit report data/evaluation --output report.html
    """
    from ..pipeline.terminal import print_json, print_line, progress_bar, reported_errors

    with reported_errors():
        from .report import write_report

        with progress_bar("report", "rows", quiet=as_json) as progress:
            written = write_report(evaluation, prior, embeddings, images, output, progress=progress)
        if as_json:
            print_json({"report": written.path, "bytes": written.bytes, "missing": list(written.missing)})
            return
        for sentence in written.missing:
            print_line(f"missing: {sentence}")
        print_line(f"report: {written.path} ({written.bytes / 1e6:.1f} MB)")
