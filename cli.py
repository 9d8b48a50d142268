"""The command `priorkit`: joins the commands of the packages, and imports nothing heavy."""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated, Any

import typer

from .pipeline import commands as pipeline_commands
from .pipeline import doctor_commands
from .prior import commands as prior_commands
from .prior import compare_commands, evaluate_commands, recipe_commands, report_commands, sample_commands

app = typer.Typer(
    name="priorkit",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    pipeline_commands.download,
    pipeline_commands.embed,
    pipeline_commands.inspect,
    prior_commands.train,
    evaluate_commands.evaluate,
    report_commands.report,
    compare_commands.compare,
    sample_commands.sample,
    sample_commands.convert,
    prior_commands.run,
    prior_commands.status,
    prior_commands.demo,
    doctor_commands.doctor,
):
    app.command()(command)
app.add_typer(recipe_commands.recipes, name="recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(f"priorkit {__version__}")
        raise typer.Exit()


@app.callback(epilog="Start with: priorkit demo")
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a list of image URLs to a trained, evaluated diffusion prior.

    Example: priorkit run my_recipe.yaml
    """


def main() -> None:
    """Entry point of the installed command."""

    def interrupt(number: int, frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)  # as by Ctrl-C, which asyncio unwinds by its own handler

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 shows escapes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
    signal.signal(signal.SIGTERM, interrupt)  # a terminated command unwinds, so temporary files and locks go
    try:
        app()
    except ModuleNotFoundError as error:
        from .pipeline.requirements import explain_missing
        from .pipeline.terminal import EXIT_FAILURE, print_error

        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        message = explain_missing(error, f"priorkit {command}".rstrip())
        if message is None:
            raise
        print_error(message)
        sys.exit(EXIT_FAILURE)
