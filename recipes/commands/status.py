"""The `priorkit status` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import JsonOption, SetOption, expand_path


def status(
    recipe: Annotated[
        Optional[str],
        typer.Argument(
            show_default="default folders", help="Recipe to compare the folders with.", callback=expand_path
        ),
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the progress of each stage. If a recipe is given, also show which stages are not up to date.

    Example: priorkit status my_recipe.yaml
    """
    from ...pipeline.display.terminal import print_json, print_table, reported_errors

    with reported_errors():
        from ..recipe import load_recipe
        from ..status import stage_states

        states = stage_states(load_recipe(recipe, settings or []), plan_too=recipe is not None)
        if as_json:
            print_json([state.to_json() for state in states])
            return
        rows = [(state.stage, state.folder, f"{state.shards:,}", f"{state.rows:,}", state.state) for state in states]
        print_table("status", ("stage", "folder", "shards", "rows", "state"), rows)
