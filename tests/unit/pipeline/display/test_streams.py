"""Standard streams that fail, and the signals that stop a command."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from priorkit.pipeline.display.streams import StandardError, flush_streams, handle_stop_signals, stop_signals


class FullStream:
    """Stream that fails like a full disk, with the descriptor of a real file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.flushed_after_failure = False
        self.failed = False

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        if self.failed:
            self.flushed_after_failure = True
            return
        self.failed = True
        raise OSError(28, "No space left on device")


def test_sound_streams_have_no_error() -> None:
    assert flush_streams() is None


def test_a_full_stream_is_reported_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FullStream(tmp_path / "full")
    monkeypatch.setattr(sys, "stdout", stream)
    error = flush_streams()
    assert error is not None
    assert error.errno == 28
    assert stream.flushed_after_failure
    assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev
    stream.file.close()


def test_a_failed_write_to_standard_error_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FullStream(tmp_path / "full")
    monkeypatch.setattr(sys, "stderr", stream)
    assert StandardError().write("lost") == 4
    StandardError().flush()
    assert StandardError().fileno() == stream.fileno()
    stream.file.close()


def test_an_ignored_hangup_is_no_stop_signal() -> None:
    """`nohup` makes commands ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2} <= set(stop_signals())
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_every_stop_signal_unwinds_like_ctrl_c(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in stop_signals()}
    try:
        handle_stop_signals()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        if number == signal.SIGUSR1:
            signal.raise_signal(number)  # ignored: it must not interrupt the clean-up
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
