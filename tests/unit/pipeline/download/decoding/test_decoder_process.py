"""Main program of a decoder process, on a real socket."""

from __future__ import annotations

import io
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from PIL import Image

from priorkit.pipeline.download.decoding import decoder_process
from priorkit.pipeline.download.decoding.messages import LENGTH, READY, pack_request, unpack
from priorkit.pipeline.download.outcomes import ImageError, ResizedImage
from priorkit.pipeline.download.settings import DownloadSettings


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, io.BufferedRWPair]]:
    """A socket, and the stream of its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rwb") as stream:
        yield ours, stream


def message(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


def received(data: bytes) -> list[bytes]:
    """The messages in a stream of bytes."""
    messages = []
    while data:
        (size,) = LENGTH.unpack(data[: LENGTH.size])
        messages.append(data[LENGTH.size : LENGTH.size + size])
        data = data[LENGTH.size + size :]
    return messages


def test_messages_are_read_one_after_the_other(ends: tuple[socket.socket, io.BufferedRWPair]) -> None:
    ours, stream = ends
    ours.sendall(message(b"one") + message(b"") + message(b"three"))
    ours.shutdown(socket.SHUT_WR)
    assert [decoder_process._receive(stream) for _ in range(4)] == [b"one", b"", b"three", None]


@pytest.mark.parametrize("cut", [message(b"body")[:-1], message(b"")[:-1], b"\0"])
def test_a_message_that_is_cut_is_the_end(ends: tuple[socket.socket, io.BufferedRWPair], cut: bytes) -> None:
    ours, stream = ends
    ours.sendall(cut)
    ours.shutdown(socket.SHUT_WR)
    assert decoder_process._receive(stream) is None


def test_a_message_is_sent_at_once(ends: tuple[socket.socket, io.BufferedRWPair]) -> None:
    ours, stream = ends
    decoder_process._send(stream, b"body")
    assert ours.recv(100) == message(b"body")


PROGRAM = "from priorkit.pipeline.download.decoding.decoder_process import main; main()"


def test_each_body_gets_its_answer_and_the_end_of_the_socket_ends_the_process() -> None:
    file = io.BytesIO()
    Image.new("RGB", (60, 40)).save(file, "PNG")
    settings = DownloadSettings(image_size=20, max_pixels=2400)
    requests = [b"".join(pack_request(body, [])) for body in (file.getvalue(), b"<html>", file.getvalue()[:60])]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=theirs, stdout=theirs)
        ours.sendall(b"".join(map(message, [settings.model_dump_json().encode(), *requests])))
        ours.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as stream:
            ready, *answers = received(stream.read())
    assert child.wait(600) == 0
    assert ready == READY
    image, no_image, damaged = map(unpack, answers)
    assert isinstance(image, ResizedImage)
    assert (image.width, image.height, image.original_width) == (30, 20, 60)
    for answer, outcome in ((no_image, "not_image"), (damaged, "decode")):
        assert isinstance(answer, ImageError)
        assert answer.outcome == outcome


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
def test_the_limits_are_those_of_the_settings() -> None:
    code = (
        "import resource\n"
        "from priorkit.pipeline.download.decoding.decoder_process import _limit_resources\n"
        "from priorkit.pipeline.download.settings import DownloadSettings\n"
        "_limit_resources(DownloadSettings(decode_memory_bytes=1_500_000_000))\n"
        "print(*resource.getrlimit(resource.RLIMIT_AS), *resource.getrlimit(resource.RLIMIT_CORE))\n"
        "print(open('/proc/self/oom_score_adj').read().strip())\n"
    )
    before = resource.getrlimit(resource.RLIMIT_CORE)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "1500000000 1500000000 0 0"
    if os.access("/proc/self/oom_score_adj", os.W_OK):
        assert done.stdout.splitlines()[1] == "1000"
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


def test_a_decoder_loads_no_more_than_it_needs() -> None:
    modules = "from priorkit.pipeline.download.decoding import decoder_process, resize"
    code = f"import sys; {modules}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"torch", "ray", "pyarrow", "aiohttp", "pandas", "wandb", "open_clip"}.isdisjoint(done.stdout.split())
