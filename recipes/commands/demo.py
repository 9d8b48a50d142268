"""The `priorkit demo` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import JsonOption, SetOption, expand_path
from .metrics import print_metrics


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for all files of the demo.", callback=expand_path)] = Path(
        "data/demo"
    ),
    port: Annotated[
        Optional[int],
        typer.Option(min=1, max=65535, show_default="47811", help="Port of this machine to serve the images on."),
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all stages offline on about 3,950 emoji, from a URL list to an evaluated prior.

    Then save a figure that shows a few captions and the images nearest to each of them.

    Example: priorkit demo --folder /tmp/demo
    """
    from ...pipeline.display.terminal import (
        print_json,
        print_line,
        print_result,
        progress_bar,
        reported_errors,
        stop_requests,
    )

    with reported_errors():
        from ...prior.evaluate.folder import read_metrics
        from ..demo_run import run_demo

        done = run_demo(
            folder, port, settings or [], lambda stage, unit: progress_bar(stage, unit, quiet=as_json), stop_requests
        )
        metrics = read_metrics(done.recipe.folders.evaluation)
        if as_json:
            stages = [result.to_json() for result in done.results]
            print_json({"stages": stages, "metrics": metrics, "picture": str(done.picture)})
            return
        for result in done.results:
            print_result(result)
        print_metrics(metrics)
        print_line(f"picture: {done.picture}")
        print_line(f'next: priorkit sample {folder / "prior"} "red heart"')
