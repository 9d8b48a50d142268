"""Pages of the site that are generated from the program: every command, and every setting."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click
from typer.main import get_command

import priorkit
from priorkit.cli import app
from priorkit.pipeline.settings import Settings, settings_kinds
from priorkit.recipes.recipe import Recipe


def on_startup(**_: Any) -> None:
    """Copy the modules to a folder named after the package, because mkdocstrings finds packages by folder name."""
    package, copy = Path(priorkit.__file__).parent, Path(__file__).parents[1] / "build" / "api" / "priorkit"
    shutil.rmtree(copy, ignore_errors=True)
    folders = ("pipeline", "prior", "recipes")
    for module in [*package.glob("*.py"), *(path for folder in folders for path in package.glob(f"{folder}/**/*.py"))]:
        target = copy / module.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the written ones."""
    files.append(File.generated(config, "command-line.md", content=command_page()))
    files.append(File.generated(config, "settings.md", content=settings_page()))
    return files


def command_page() -> str:
    """Return the page of every command with its arguments and options, as typer describes them."""
    command = get_command(app)
    context = click.Context(command, info_name="priorkit")  # type: ignore[arg-type]
    page = get_docs_for_click(obj=command, ctx=context, name="priorkit", title="Command line")  # type: ignore[arg-type]
    return page.replace("Example: ", "\nExample: ")


def settings_page() -> str:
    """Return the page of every setting of a recipe, by section, with its default and its docstring."""
    lines = [
        "# Settings",
        "",
        "Set these in a [recipe](recipes.md), or with `--set` on the command line. This page is generated from the "
        "docstrings of the program.",
    ]
    for name, cls in _sections("", Recipe):
        lines += ["", f"## `{name}`" if name else "## At the top", ""]
        lines += [inspect.cleandoc(cls.__doc__ or "")]
        for field, info in cls.model_fields.items():
            if not settings_kinds(info.annotation):
                default = "" if info.is_required() else f" = `{_shown(info.get_default(call_default_factory=True))}`"
                text = " ".join((info.description or "").split())
                words = _words(info.annotation)
                unnamed = len(words) > 1 and any(f"`{word}`" not in text for word in words)
                allowed = f" One of {', '.join(f'`{word}`' for word in words)}." if unnamed else ""
                lines += ["", f"`{field}`{default}", f":   {text}{allowed}"]
    return "\n".join(lines) + "\n"


def _sections(name: str, cls: type[Settings]) -> Iterator[tuple[str, type[Settings]]]:
    """Yield the title and the class of a section and of every section inside it.

    The title is the dotted name. If a setting selects one of several classes, each class has a section of its own, with
    the value that selects it in the title.
    """
    yield name, cls
    for field, info in cls.model_fields.items():
        kinds = settings_kinds(info.annotation)
        for inner in kinds:
            title = f"{name}.{field}".lstrip(".")
            if len(kinds) > 1 and inner.selector is not None:
                title = f"{title}: {{{inner.selector}: {inner.model_fields[inner.selector].default}}}"
            yield from _sections(title, inner)


def _words(annotation: Any) -> tuple[str, ...]:
    """Return the words that an annotation allows; empty if it lists none."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(_words, get_args(annotation))), ())


def _shown(value: Any) -> str:
    """Format a default as in a recipe."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str)
