"""Command-line arguments shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

from ...pipeline.commands.options import expand_path

RecipeArgument = Annotated[
    str, typer.Argument(help="YAML file, or the name of a recipe that comes with priorkit.", callback=expand_path)
]
