"""Options and output shared by several commands. Heavy dependencies are imported only when a command runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from ..compute.stage import StagePlan, StageResult
    from ..config import PipelineSettings


def expand_path(value: Any) -> Any:
    """Expand a leading `~` and environment variables in the value of an option, as in a recipe.

    A shell does not expand them in `--prior=~/prior`, and a scheduler or container that starts the command does not
    expand them at all. Typer calls this function as the callback of every option that contains a path, or several.

    Raises:
        typer.BadParameter: an environment variable is not set.
    """
    if isinstance(value, list | tuple):
        return [expand_path(each) for each in value]
    if value is None:
        return None
    from ..settings import expand_location

    try:
        return type(value)(expand_location(str(value)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


LimitOption = Annotated[Optional[int], typer.Option("--limit", min=1, help="Work on the first N rows only.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan, disk space and time; do nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Discard what the folder holds and start again.")]
SetOption = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of a recipe that this command reads; may be repeated."),
]
WorkersOption = Annotated[
    Optional[int], typer.Option("--workers", show_default="this process", help="Ray workers to spread over.")
]


def command_settings(
    section: str, overrides: list[str] | None, options: dict[str, Any], workers: int | None
) -> PipelineSettings:
    """Return the settings for a command, from the values of its command-line options.

    Settings for which no option is given have their default values. If `--set` and another option give the same
    setting, the other option takes precedence.

    Args:
        section: recipe section that the command reads in addition to `compute`.
        overrides: values of `--set`.
        options: value of each option, keyed by the dotted name of its setting; None for an option that was not given.
        workers: value of `--workers`; None if the option was not given.

    Raises:
        SettingsError: a key or value is invalid, or `--set` names a section that the command does not read.
    """
    from ..config import PipelineSettings
    from ..settings import parse_settings, with_overrides

    # quote values as JSON, so that YAML does not read a column named `no` as false
    given = [
        f"{name}={'null' if value == 'null' else json.dumps(value, ensure_ascii=False)}"
        for name, value in options.items()
        if value is not None
    ]
    sections = (section, "compute")
    values = with_overrides({}, [*(overrides or []), *worker_overrides(workers), *given], sections)
    return parse_settings(PipelineSettings, values, "options", sections)


def worker_overrides(workers: int | None) -> list[str]:
    """Return the overrides (strings of the form `a.b=value`) that make a command use this number of Ray workers.

    Return an empty list if `workers` is None.
    """
    return [] if workers is None else ["compute.backend=ray", f"compute.workers={workers}"]


def show_plan(plan: StagePlan, as_json: bool) -> None:
    """Print the plan of a stage, as a table or as JSON."""
    from ..display.terminal import print_json, print_plans

    if as_json:
        print_json(plan.to_json())
    else:
        print_plans([plan])


def show_result(result: StageResult, as_json: bool) -> None:
    """Print the result of a stage, as a table or as JSON."""
    from ..display.terminal import print_json, print_result

    if as_json:
        print_json(result.to_json())
    else:
        print_result(result)
