"""The command `priorkit`: the commands of all packages under one name. Imports nothing heavy."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from .pipeline.commands import doctor, download, embed, inspect
from .pipeline.display import streams
from .prior.commands import compare as compare_commands
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
    download.download,
    embed.embed,
    inspect.inspect,
    prior_commands.train,
    evaluate_commands.evaluate,
    report_commands.report,
    compare_commands.compare,
    sample_commands.sample,
    sample_commands.convert,
    prior_commands.run,
    prior_commands.status,
    prior_commands.demo,
    doctor.doctor,
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
    """Turn a list of image URLs into a trained, evaluated diffusion prior.

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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the interpreter exits prints no traceback
    sys.exit(code)


def _report_output(error: OSError) -> None:
    """Report that standard output cannot be written. A closed pipe, as of `head`, is no error."""
    if not isinstance(error, BrokenPipeError):
        print(f"error: standard output cannot be written ({error.strerror})", file=streams.StandardError())


def _run() -> int:
    """Run the command line, report an error, and return the exit code."""
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else EXIT_FAILURE
    except OSError as error:  # from help, versions and usage errors: commands report their own
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
