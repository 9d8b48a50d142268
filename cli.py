"""The `priorkit` command with all of its subcommands. This module imports no heavy dependencies."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from .pipeline.commands.adopt import adopt
from .pipeline.commands.doctor import doctor
from .pipeline.commands.download import download
from .pipeline.commands.embed import embed
from .pipeline.commands.inspect import inspect
from .pipeline.display import streams
from .prior.commands.compare import compare
from .prior.commands.convert import convert
from .prior.commands.decode import decode
from .prior.commands.export import export
from .prior.commands.report import report
from .prior.commands.sample import sample
from .recipes.commands.demo import demo
from .recipes.commands.evaluate import evaluate
from .recipes.commands.recipes import recipes
from .recipes.commands.run import run
from .recipes.commands.status import status
from .recipes.commands.train import train

EXIT_FAILURE = 1
"""Exit code when a command fails."""

app = typer.Typer(
    name="priorkit",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    download,
    embed,
    adopt,
    inspect,
    train,
    evaluate,
    report,
    compare,
    sample,
    decode,
    convert,
    export,
    run,
    status,
    demo,
    doctor,
):
    app.command()(command)
app.add_typer(recipes, name="recipes")


def _print_version(wanted: bool) -> None:
    """Print the version and exit if `--version` was given. typer calls this function as the callback of the option.

    Args:
        wanted: True if the option was given.
    """
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
    """Train a diffusion prior on a list of image URLs, and evaluate it.

    Example: priorkit run my_recipe.yaml
    """


def main() -> None:
    """Run the `priorkit` command and exit the process with its exit code.

    If standard output or standard error cannot be flushed, exit with a failure code.
    """
    streams.open_closed_streams()
    streams.handle_stop_signals()
    code = _run()
    if (failed := streams.flush_streams()) is not None:
        code = code or EXIT_FAILURE
        _report_output(failed)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during interpreter shutdown prints no traceback
    sys.exit(code)


def _report_output(error: OSError) -> None:
    """Print an error message for a failed write to standard output.

    Print nothing if the write failed because the reader closed the pipe, as `head` does.
    """
    if not isinstance(error, BrokenPipeError):
        print(f"error: standard output cannot be written ({error.strerror})", file=streams.StandardError())


def _run() -> int:
    """Parse the command line, run the subcommand and return the exit code. Errors are printed, not raised."""
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else EXIT_FAILURE
    except OSError as error:  # from help, --version or a usage error; commands report their own errors
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
