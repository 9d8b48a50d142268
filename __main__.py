"""Entry point of `priorkit` and of `python -m priorkit`."""

import signal


def main() -> None:
    """Run the command. Ctrl-C while its modules are loaded prints no traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
