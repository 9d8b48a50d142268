"""Entry point of `priorkit` and of `python -m priorkit`."""

import signal


def main() -> None:
    """Run the command. Ctrl-C while its modules load ends it without a message."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
