"""The `priorkit inspect` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .options import JsonOption, expand_path

if TYPE_CHECKING:
    from ..inspect.findings import Inspection


def inspect(
    path: Annotated[
        str, typer.Argument(help="Folder of any stage, ours, img2dataset's or clip-retrieval's.", callback=expand_path)
    ],
    html: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Write a page with plots to this file.", callback=expand_path)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the content of a folder and check it for damage. Exit with code 1 if the folder is damaged.

    Example: priorkit inspect data/embeddings --html inspection.html
    """
    from dataclasses import asdict

    from ..display.page import page_target, write_page
    from ..display.terminal import EXIT_FAILURE, print_error, print_json, progress_bar, reported_errors
    from ..inspect.folder import inspect_folder
    from ..inspect.page import inspection_page

    with reported_errors():
        target = page_target("--html", html, [path]) if html is not None else None
        with progress_bar("inspect", "shards", quiet=as_json) as progress:
            inspection = inspect_folder(path, progress)
        if as_json:
            print_json(asdict(inspection))
        else:
            _show_inspection(inspection)
        if target is not None:
            write_page(target, inspection_page(inspection))
        if inspection.problem_count:
            print_error(f"{inspection.folder} is damaged: {inspection.problem_count:,} problems")
            raise typer.Exit(EXIT_FAILURE)


def _show_inspection(inspection: Inspection) -> None:
    """Print an inspection as tables, with at most 20 problems and 20 notes.

    With `--json`, the command does not call this function, and prints up to 1,000 of each.
    """
    from ..display.terminal import print_table
    from ..inspect import page as rows

    print_table(inspection.folder, ("", ""), [*rows.summary_rows(inspection), *rows.setting_rows(inspection)])
    if inspection.errors:
        print_table("failures", ("message", "rows"), rows.error_rows(inspection))
    if inspection.looked_at:
        print_table("looked at", ("", ""), rows.looked_at_rows(inspection))
    if inspection.distributions:
        print_table("distributions", rows.DISTRIBUTION_HEADER, rows.distribution_rows(inspection))
    health = [("health", rows.health(inspection))]
    health += [("problem", problem) for problem in rows.listed(inspection.problems, inspection.problem_count, 20)]
    health += [("note", note) for note in rows.listed(inspection.notes, inspection.note_count, 20)]
    print_table("", ("", ""), health)
