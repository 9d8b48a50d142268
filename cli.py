"""The command `priorkit`: joins the commands of the packages, and imports nothing heavy."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from .pipeline.commands import doctor as doctor_commands
from .pipeline.commands import stages as pipeline_commands
from .pipeline.display import streams
from .prior.commands import compare as compare_commands
from .prior.commands import convert as convert_commands
from .prior.commands import report as report_commands
from .prior.commands import sample as sample_commands
from .recipes.commands import evaluate as evaluate_commands
from .recipes.commands import recipes as recipe_commands
from .recipes.commands import stages as prior_commands

EXIT_FAILURE = 1

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
    convert_commands.convert,
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
    streams.open_closed_streams()
    streams.handle_stop_signals()
    code = _run()
    if (failed := streams.flush_streams()) is not None:
        code = code or EXIT_FAILURE
        _report_output(failed)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the interpreter ends
    sys.exit(code)


def _report_output(error: OSError) -> None:
    """Say that standard output cannot be written, unless whoever read it has gone, as `head` does."""
    if not isinstance(error, BrokenPipeError):
        print(f"error: standard output cannot be written ({error.strerror})", file=streams.StandardError())


def _run() -> int:
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else EXIT_FAILURE
    except OSError as error:  # a command reports its own: what is left are help, versions and usage errors
        _report_output(error)
        return EXIT_FAILURE
    except BaseException as error:
        from .pipeline.display.terminal import print_error, report
        from .pipeline.doctor.requirements import explain_missing

        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        missing = isinstance(error, ModuleNotFoundError) and explain_missing(error, f"priorkit {command}".rstrip())
        if not missing:
            return report(error)
        print_error(missing)
        return EXIT_FAILURE
    return 0
