"""A gRPC call over a socket to simulated services; the integration tests use real clusters."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from priorkit.pipeline.compute import ray_probe
from priorkit.pipeline.compute.ray_probe import HEAD, Answer, ask

from ....conftest import QuietHandler, serving


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None], family: socket.AddressFamily = socket.AF_INET) -> Iterator[int]:
    """A service that does something with its first connection; yields its port."""
    with socket.socket(family) as server:
        server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def grpc(*frames: bytes) -> Callable[[socket.socket], None]:
    """A service that sends its settings and then frames, in two halves that cut one of them."""
    sent = frame(4, 0, 0, b"") + b"".join(frames)

    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        for part in (sent[: len(sent) - 5], sent[len(sent) - 5 :]):
            connection.sendall(part)
        connection.recv(1 << 16)

    return answer


METADATA = b'{"ray_version": "2.58.0", "python_version": "3.12.1", "ray_init_cluster": false}'


def test_the_versions_of_a_head_are_read() -> None:
    message = b"\0" + (len(METADATA) + 4).to_bytes(4, "big") + b"\n\0\x12" + bytes([len(METADATA)]) + METADATA
    answered = grpc(
        frame(1, 4, 1, b"\x88@\x0ccontent-type\x10application/grpc"),
        frame(6, 0, 0, b"01234567"),
        frame(0, 0, 1, message),
        frame(1, 5, 1, b"@\x0bgrpc-status\x010"),
    )
    with listening(answered) as port:
        answer = ask("127.0.0.1", port, HEAD)
    assert answer.status == 0
    assert answer.metadata() == {"ray_version": "2.58.0", "python_version": "3.12.1", "ray_init_cluster": False}


def test_a_refusal_is_read_over_ipv6() -> None:
    refusal = frame(1, 5, 1, b"\x88\0\x0bgrpc-status\x0216\0\x0cgrpc-message\x02no")
    with listening(grpc(refusal), socket.AF_INET6) as port:
        assert ask("::1", port, HEAD, "a long token" * 30).status == ray_probe.UNAUTHENTICATED


def test_a_web_server_is_recognised() -> None:
    with serving(QuietHandler) as url:
        answer = ask("127.0.0.1", int(url.rpartition(":")[2]), HEAD)
    assert answer.status is None
    assert answer.shown().startswith("a web server, which answers")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "it answers 'SSH-2.0-OpenSSH_9.6'"),
        (b"hi\r\n", "it answers 'hi'"),
        (b"", "it closed the connection without an answer"),
    ],
)
def test_another_protocol_is_shown(said: bytes, shown: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(said)

    with listening(answer) as port:
        assert ask("127.0.0.1", port, HEAD).shown() == shown


def test_a_silent_service_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_probe, "TIMEOUT_SECONDS", 0.2)
    done = threading.Event()
    with listening(lambda connection: bool(done.wait(30)) and None) as port:
        with pytest.raises(OSError, match="gave no answer"):
            ask("127.0.0.1", port, HEAD)
        done.set()


def test_an_answer_without_versions_gives_none() -> None:
    assert Answer(0, b"\n\x00").metadata() == {}
    assert Answer(0, b"\x12\x03[1]").metadata() == {}
