"""The `priorkit recipes` commands `list`, `copy` and `validate`.

Heavy dependencies are imported only when a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...pipeline.commands.options import JsonOption, SetOption
from .options import RecipeArgument

recipes = typer.Typer(no_args_is_help=True, help="The recipes that come with priorkit, and checking your own.")


@recipes.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the recipes included in priorkit.

    Example: priorkit recipes list
    """
    from ...pipeline.display.terminal import print_json, print_table, reported_errors

    with reported_errors():
        from ..recipe import recipe_names, recipe_text

        described = {name: recipe_text(name).partition("\n")[0].lstrip("# ") for name in recipe_names()}
        if as_json:
            print_json(described)
        else:
            print_table("recipes", ("name", "what it is"), list(described.items()))


@recipes.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="Name as `recipes list` shows it.")],
    destination: Annotated[Path, typer.Argument(help="File or folder to write to.")] = Path("."),
) -> None:
    """Copy a built-in recipe to a new file for editing.

    Example: priorkit recipes copy custom my_recipe.yaml
    """
    from ...pipeline.display.terminal import print_line, reported_errors

    with reported_errors():
        from ..recipe import copy_recipe

        print_line(f"wrote {copy_recipe(name, destination)}")


@recipes.command("validate")
def validate(recipe: RecipeArgument, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Check every key and value in a recipe, and print the recipe with all defaults filled in.

    Example: priorkit recipes validate my_recipe.yaml
    """
    from ...pipeline.display.terminal import clean, print_json, print_text, reported_errors

    with reported_errors():
        import yaml

        from ...pipeline.display.streams import StandardError
        from ..recipe import load_recipe

        loaded = load_recipe(recipe, settings or [])
        from ...pipeline.clip.encoder import check_clip  # takes seconds to import, and wrong settings fail without it

        check_clip(loaded.embed.clip)
        chosen = loaded.model_dump(mode="json")
        if as_json:
            print_json(chosen)
        else:
            print_text(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=False))
            print(f"{clean(recipe)}: valid", file=StandardError())  # standard output contains only the recipe
