"""The `report` command. Heavy modules are imported only when the command runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import JsonOption, expand_path
from .options import CheckpointConfigOption, FunctionOption


def report(
    evaluation: Annotated[
        str, typer.Argument(help="Folder of an evaluation.", callback=expand_path)
    ] = "data/evaluation",
    prior: Annotated[
        Optional[str],
        typer.Option(help="Where what was evaluated is now.", show_default="where it was", callback=expand_path),
    ] = None,
    config: CheckpointConfigOption = None,
    function_version: FunctionOption = None,
    embeddings: Annotated[
        Optional[str],
        typer.Option(help="Where the embeddings are now.", show_default="where they were", callback=expand_path),
    ] = None,
    images: Annotated[
        str, typer.Option(help="Folder of the images, for the gallery.", callback=expand_path)
    ] = "data/images",
    output: Annotated[
        Optional[str],
        typer.Option(metavar="FILE", show_default="EVALUATION.html", help="Page to write.", callback=expand_path),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an evaluation report as one HTML page with curves, metrics, a 2-D plot of embeddings and an image gallery.

    Example: priorkit report data/evaluation --output report.html
    """
    from ...pipeline.display.terminal import print_json, print_line, progress_bar, reported_errors

    with reported_errors():
        from ..report.report import write_report

        with progress_bar("report", "rows", quiet=as_json) as progress:
            written = write_report(
                evaluation, prior, embeddings, images, output,
                config=config, function_version=function_version, progress=progress,
            )  # fmt: skip
        if as_json:
            print_json({"report": written.path, "bytes": written.bytes, "missing": list(written.missing)})
            return
        for sentence in written.missing:
            print_line(f"missing: {sentence}")
        print_line(f"report: {written.path} ({written.bytes / 1e6:.1f} MB)")
