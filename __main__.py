"""Entry point for `priorkit` and `python -m priorkit`."""

import signal


def main() -> None:
    """Run the command-line interface. If Ctrl-C is pressed while modules are loading, exit without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
