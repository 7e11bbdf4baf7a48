"""What a real server makes of connections that mean it no good. Each test ends with the service still at work."""

from __future__ import annotations

import os
import resource
import socket
import struct
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from pagedvid.service.http.stream import GrowingFile
from tests.service.http.conftest import served
from tests.service.http.fake_sessions import FakeSessions, NewSession

Address = tuple[str, int]
SOON_SECONDS = 8
"""Less than the 10 seconds that servers are patient unless told; half a second is told, but machines may be busy."""


@pytest.fixture
def address(sessions: FakeSessions) -> Iterator[Address]:
    """A server with short patience; it is asked once more when the test is over."""
    with served(sessions, header_seconds=0.5, body_seconds=0.5, max_connections=100, max_body="64KiB") as address:
        yield address
        assert ask(address).status_code == 200


def ask(address: Address, path: str = "/v1/videos") -> httpx.Response:
    return httpx.get(f"http://{address[0]}:{address[1]}{path}", timeout=SOON_SECONDS)


def answer(address: Address, *parts: bytes, pause: float = 0.0, seconds: float = SOON_SECONDS) -> bytes:
    """Sends parts with pauses between them; everything that comes back until the server closes the connection."""
    received = b""
    may_hang_up = suppress(ConnectionResetError, BrokenPipeError)  # at any time, on an attacker
    with socket.create_connection(address, timeout=seconds) as connection, may_hang_up:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        while block := connection.recv(65536):
            received += block
    return received


HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class TestSlowness:
    def test_a_silent_connection_is_closed(self, address):
        started = time.monotonic()
        assert answer(address) == b""
        assert time.monotonic() - started < SOON_SECONDS

    def test_a_head_that_never_ends(self, address):
        started = time.monotonic()
        assert answer(address, *[b"GET / HTTP/1.1\r\n"], *[b"X-A: b\r\n"] * 30, pause=0.1) == b""
        assert time.monotonic() - started < SOON_SECONDS

    def test_a_body_that_never_ends(self, address):
        received = answer(address, HEAD + b"Content-Length: 100\r\n\r\n", *[b"{"] * 3, pause=0.1)
        assert received.startswith(b"HTTP/1.1 408")
        assert b"timeout" in received

    def test_a_second_request_that_never_comes(self, address):
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        started = time.monotonic()
        assert answer(address, request, b"GET", pause=0.1).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - started < SOON_SECONDS

    def test_a_reader_who_does_not_read_costs_no_memory(self, sessions, address, monkeypatch):
        id = sessions.create(NewSession("a red circle", 4)).id
        sessions.finish(id)
        num_bytes = 64 * 2**20
        with sessions.recording(id).path.open("r+b") as file:
            file.truncate(num_bytes)
        made = sessions._made[id]
        made.chunks[0] = type(made.chunks[0])(0, 0, 4, made.chunks[0].start, num_bytes)
        read = []
        original = GrowingFile.read
        monkeypatch.setattr(GrowingFile, "read", lambda self: (block := original(self), read.append(len(block)))[0])
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(f"GET /v1/sessions/{id}/stream.mp4 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            time.sleep(1.0)
            assert 0 < sum(read) < num_bytes / 4
            assert ask(address).status_code == 200


class TestSizes:
    def test_an_announced_giant(self, address):
        assert answer(address, HEAD + b"Content-Length: 99999999999\r\n\r\n").startswith(b"HTTP/1.1 413")

    def test_chunks_without_end(self, address):
        endless = [b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 20
        assert answer(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *endless)[:12] in (b"HTTP/1.1 413", b"")

    @pytest.mark.parametrize(
        "head", [b"X-A: " + b"a" * 200_000 + b"\r\n", b"X-A: b\r\n" * 20_000, b"Cookie: " + b"a=b;" * 50_000 + b"\r\n"]
    )
    def test_heads(self, address, head):
        received = answer(address, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n")
        assert received[:12] in (b"HTTP/1.1 400", b"")

    def test_a_long_path(self, address):
        received = answer(address, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert received[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404", b"")
        assert len(received) < 2000


class TestProtocol:
    @pytest.mark.parametrize(
        "request_",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
            b"GET /\r\n\r\n",
            b"\0" * 1000,
            b"GET / HTTP/1.1\r\n\r\n",  # no host
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX A: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
            b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
            HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
            HEAD + b"Content-Length: -5\r\n\r\n",
            HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        ],
    )
    def test_what_is_not_http(self, address, request_):
        assert answer(address, request_)[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5", b"")

    def test_one_request_is_not_taken_for_two(self, address, sessions):
        inner = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        content = b"0\r\n\r\n" + inner
        head = HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: " + str(len(content)).encode() + b"\r\n\r\n"
        assert answer(address, head + content).count(b"HTTP/1.1 200") == 0
        assert sessions.list().records == ()

    @pytest.mark.parametrize(
        "path",
        [b"/../../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/..%5c..%5cetc", b"//etc/passwd",
         b"/v1/sessions/../../x", b"/v1/videos/..%2f..%2fpagedvid.sqlite/content",
         b"/v1/sessions/%00/stream.mp4", b"/%ff%fe"],
    )  # fmt: skip
    def test_paths(self, address, path):
        request = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        received = answer(address, request)
        assert received.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
        assert b"root:" not in received

    def test_a_thousand_requests_at_once(self, address):
        requests = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
        assert answer(address, requests, seconds=20).count(b"HTTP/1.1 200") == 1000


def test_a_thousand_idle_connections(address):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    connections = []
    try:
        for _ in range(1000):
            connections.append(socket.create_connection(address, timeout=5))
        for connection in connections:  # those that were let in are closed after a while, the others at once
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert ask(address).status_code == 200
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def closing_code(connection: socket.socket) -> int | None:
    """Reads a WebSocket's frames up to the one that closes it; None where the connection ends without one."""
    with connection.makefile("rb") as stream, suppress(ConnectionResetError):
        while head := stream.read(2):
            length = head[1]
            if length >= 126:
                length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
            content = stream.read(length)
            if head[0] == 0x88:
                return int.from_bytes(content[:2], "big")
    return None


class TestWebSocketFrames:
    """Frames by hand, because no library would send these."""

    @pytest.fixture
    def connection(self, sessions, address) -> Iterator[socket.socket]:
        id = sessions.create(NewSession("a red circle", 8)).id
        with socket.create_connection(address, timeout=5) as connection:
            key = b64encode(os.urandom(16)).decode()
            connection.sendall(
                f"GET /v1/sessions/{id}/live HTTP/1.1\r\nHost: localhost\r\n"
                f"Upgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(1)
            assert head.startswith(b"HTTP/1.1 101")
            yield connection

    @pytest.mark.parametrize(
        ("frame", "codes"),
        [
            (b"\x81\x05hello", {1002}),  # not masked
            (b"\x81\xfe\xff\xff" + bytes(4) + b"x" * 65535, {1008, 1009}),
            (b"\x81\xff" + struct.pack(">Q", 2**62) + bytes(4), {1009, 1002}),  # four exabytes
            (b"\x81\x82" + bytes(4) + b"\xff\xfe", {1007}),  # not UTF-8
            (b"\x83\x80" + bytes(4), {1002}),  # a kind that does not exist
            (b"\xf1\x80" + bytes(4), {1002}),  # reserved bits
            (b"\x80\x81" + bytes(4) + b"x", {1002}),  # goes on where nothing began
            (b"\x89\xfe\x00\xff" + bytes(4) + bytes(255), {1002}),  # a ping that is too long
            (b"\x88\x81" + bytes(4) + b"x", {1002}),  # closes without a code
            (b"\x82\x81" + bytes(4) + b"x", {1003}),  # bytes
        ],
    )
    def test_one_frame(self, connection, frame, codes):
        connection.sendall(frame)
        assert closing_code(connection) in codes

    def test_a_flood_of_pings(self, connection):
        connection.sendall((b"\x89\x80" + bytes(4)) * 20_000)
        connection.sendall(b"\x82\x81" + bytes(4) + b"x")
        assert closing_code(connection) == 1003

    def test_a_message_in_endless_pieces(self, connection):
        piece = b"\x01\x81" + bytes(4) + b"x"
        more = b"\x00\xfe\x40\x00" + bytes(4) + b"x" * 0x4000
        connection.sendall(piece)
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(64):  # a megabyte, sixteen times what is allowed
                connection.sendall(more)
        assert closing_code(connection) in (1009, None)

    def test_a_thousand_messages_that_nobody_waits_for(self, connection, sessions):
        message = b'{"type":"played","num_frames":1}'
        connection.sendall((b"\x81" + bytes([0x80 | len(message)]) + bytes(4) + message) * 1000)
        connection.sendall(b"\x82\x81" + bytes(4) + b"x")
        assert closing_code(connection) == 1003
        assert sum(call[0] == "played" for call in sessions.calls) == 1000
