"""Requests to a Ray cluster over a plain socket, used to check an address before Ray uses it. Never imports Ray.

Given a wrong address, Ray retries for minutes and may then end the process. Ray's wheels do not include gRPC for
Python, so this module implements gRPC calls itself. It only ever sends the two short requests `HEAD` and
`CLIENT_SERVER`. A few HTTP/2 frames (RFC 9113) with uncompressed headers (RFC 7541) are enough for each of them.
"""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import time
from dataclasses import dataclass

from ..json_text import parse_json

TIMEOUT_SECONDS = 5.0
"""Timeout in seconds, applied separately to connecting and to receiving the answer. A cluster's head node on another
continent answers within one second."""

OK, UNIMPLEMENTED, UNAUTHENTICATED = 0, 12, 16
"""gRPC status codes."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_SHOWN_BYTES = 60
"""Maximum number of bytes of an answer to show in an error message, if the answer does not come from Ray."""

HEAD = ("/ray.rpc.InternalKVGcsService/InternalKVGet", b"\x0a\x10CLUSTER_METADATA\x12\x07cluster")
"""Pair of gRPC method path and serialized request, for reading a cluster's Ray and Python versions from its head node.
The request asks for the key `CLUSTER_METADATA` in the namespace `cluster` of the key-value store of Ray's Global
Control Service (GCS)."""
CLIENT_SERVER = ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x04")
"""Pair of gRPC method path and serialized request, for pinging the Ray Client server, which serves `ray://`
addresses."""


@dataclass(frozen=True)
class Answer:
    """Answer of a service to a gRPC call."""

    status: int | None
    """gRPC status code; None if the service does not speak HTTP/2 or the reply has no status."""
    body: bytes = b""
    """Reply message, or the first bytes received from a service that does not speak HTTP/2."""

    def metadata(self) -> dict[str, object]:
        """Return the cluster's metadata, parsed from the JSON in the head node's reply.

        The metadata includes `ray_version`, `python_version`, and `ray_init_cluster`, which is true if the cluster was
        started by `ray.init` instead of `ray start`. Return an empty dictionary if the reply contains no metadata.
        """
        start, end = self.body.find(b"{"), self.body.rfind(b"}")
        try:
            stored = parse_json(self.body[start : end + 1])
        except ValueError:
            return {}
        return stored if isinstance(stored, dict) else {}

    def shown(self) -> str:
        """Return a phrase for error messages that quotes the answer of a service that does not speak HTTP/2.

        An example of the phrase is `it answers 'SSH-2.0-OpenSSH_9.6'`. If the service sent nothing, the phrase says so.
        """
        if not self.body:
            return "it closed the connection without an answer"
        line = self.body[:_SHOWN_BYTES].decode("latin-1").split("\n")[0].rstrip()
        kind = "a web server, which" if line.startswith(("HTTP/", "<")) else "it"
        return f"{kind} answers {line!r}"


def ask(host: str, port: int, question: tuple[str, bytes], token: str | None = None) -> Answer:
    """Make a gRPC call and return the answer.

    If RAY_USE_TLS is set, only check that the port accepts connections, and return an answer with status `OK`.

    Args:
        host: host name or IP address.
        port: port of the service.
        question: pair of gRPC method path and serialized request, for example the constant `HEAD`.
        token: authentication token, sent in the same header that Ray uses.

    Raises:
        OSError: no service listens at the address, or the service closes the connection or does not answer in time.
    """
    method, request = question
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", f"{host}:{port}"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *([("authorization", f"Bearer {token}")] if token else []),
    ]
    message = b"\0" + struct.pack(">I", len(request)) + request
    with socket.create_connection((host, port), TIMEOUT_SECONDS) as connection:
        if _uses_tls():
            return Answer(OK)  # only Ray itself can load its certificates
        connection.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(name, value) for name, value in headers))
            + _frame(_DATA, _END_STREAM, 1, message)
        )
        try:
            return _receive(connection)
        except TimeoutError:
            raise TimeoutError(f"what listens there gave no answer in {TIMEOUT_SECONDS:.0f} s") from None


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _receive(connection: socket.socket) -> Answer:
    """Read HTTP/2 frames until the reply to a gRPC call is complete, and return the reply.

    If the service does not speak HTTP/2, return the first bytes that it sends, without a status.

    Raises:
        TimeoutError: the reply is not complete after `TIMEOUT_SECONDS`.
        ConnectionResetError: the service closes the connection or cancels the call before the reply is complete.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    body, is_first = b"", True
    with connection.makefile("rb") as stream:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            head = stream.read1(9)  # another service may send fewer bytes and then wait
            head += stream.read(9 - len(head)) if head[:1] == b"\0" else b""
            kind, flags, number, size = _parse(head)
            if is_first and (kind != _SETTINGS or number != 0 or size % 6):
                return Answer(None, head + _rest(connection, stream))
            is_first = False
            if kind is None:
                raise ConnectionResetError("what listens there closed the connection")
            payload = stream.read(size)
            if kind == _SETTINGS and not flags & _ACK:
                connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                connection.sendall(_frame(_PING, _ACK, 0, payload))
            elif kind == _DATA:
                body += payload
            elif kind == _HEADERS and flags & _END_STREAM:
                return Answer(_status(payload), body[5:])
            elif kind in (_RESET, _GOAWAY):
                raise ConnectionResetError("what listens there closed the connection")


def _parse(head: bytes) -> tuple[int | None, int, int, int]:
    """Parse the header of an HTTP/2 frame.

    Returns:
        Frame type, flags, stream number and payload length. The type is None if the header has fewer than 9 bytes,
        because the connection was closed or the service does not speak HTTP/2.
    """
    if len(head) < 9:
        return None, 0, 0, 0
    return head[3], head[4], int.from_bytes(head[5:], "big"), int.from_bytes(head[:3], "big")


def _rest(connection: socket.socket, stream: io.BufferedReader) -> bytes:
    """Return up to `_SHOWN_BYTES` more bytes from a service that does not speak HTTP/2, to quote in an error message.

    Return an empty bytes object if nothing arrives within 0.2 seconds.
    """
    connection.settimeout(0.2)
    try:
        return stream.read1(_SHOWN_BYTES)
    except OSError:
        return b""


def _status(block: bytes) -> int | None:
    """Return the `grpc-status` value in a block of trailing headers, or None if it is absent.

    gRPC sends this header as uncompressed text, so no HPACK decoder is needed.
    """
    status = re.search(rb"grpc-status[\x01\x02](\d{1,2})", block)
    return int(status[1]) if status else None


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    """Encode an HPACK header field without indexing or Huffman coding."""
    return b"\0" + _string(name.encode()) + _string(value.encode())


def _string(text: bytes) -> bytes:
    """Encode an HPACK string: its length as an integer with a 7-bit prefix, followed by the bytes."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    length, left = b"\x7f", len(text) - 127
    while left >= 128:
        length += bytes([left % 128 + 128])
        left //= 128
    return length + bytes([left]) + text
