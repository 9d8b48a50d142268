"""The `priorkit recipes` commands `list`, `copy`, `validate` and `from-dalle2`.

Heavy dependencies are imported only when a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import JsonOption, SetOption, expand_path
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
    destination: Annotated[Path, typer.Argument(help="File or folder to write to.", callback=expand_path)] = Path("."),
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
        from ..recipe import declared_clip, load_recipe

        loaded = load_recipe(recipe, settings or [])
        from ...pipeline.clip.encoder import check_clip  # takes seconds to import, and wrong settings fail without it

        if loaded.first_stage != "train" or declared_clip(loaded) is not None:
            check_clip(loaded.embed.clip)
        chosen = loaded.described()
        if as_json:
            print_json(chosen)
        else:
            print_text(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=False))
            print(f"{clean(recipe)}: valid", file=StandardError())  # standard output contains only the recipe


@recipes.command("from-dalle2")
def from_dalle2(
    config: Annotated[
        str, typer.Argument(help="JSON of dalle2-pytorch's training script, or laion-model-card.", callback=expand_path)
    ],
    destination: Annotated[
        Optional[Path],
        typer.Argument(help="File to write.", show_default="CONFIG.yaml, in this folder", callback=expand_path),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a recipe from the configuration of DALLE2-pytorch's training script, and list what it does not apply.

    Example: priorkit recipes from-dalle2 train_config.json
    """
    from ...pipeline.display.terminal import print_json, print_line, print_notes, print_table, reported_errors

    with reported_errors():
        from ..from_dalle2 import write_recipe

        target = destination or Path(f"{config.rstrip('/').rpartition('/')[2].removesuffix('.json')}.yaml")
        done = write_recipe(config, target)
        if as_json:
            print_json({"recipe": str(target), "not_applied": done.not_applied, "notes": done.notes})
            return
        if done.not_applied:
            print_table("not applied", ("key", "reason"), list(done.not_applied.items()))
        print_notes(done.notes)
        print_line(f"wrote {target}")
