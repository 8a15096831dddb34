"""Images from web servers: nothing of one's own network, nothing endless, nothing larger than allowed."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from p2p.errors import BadInputError, NotFoundError, P2PError, RefusedError, StorageError
from p2p.storage.web import WebReader, is_public

LIMIT = 100_000
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server:
    """A web server on loopback; `answers` maps paths to what it does, `asked` is what it was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.stopped = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.answers[self.path](self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def body(data: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirect(to: str) -> Answer:
    return body(b"", 302, Location=to)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_nothing_of_this_machine_is_asked_for(server: Server, host: str) -> None:
    server.answers["/x.png"] = body(b"secret")
    with pytest.raises(BadInputError) as caught:
        WebReader(allow_private=False).read(server.url("/x.png", host), LIMIT)
    assert caught.value.kind == "AddressRefused" and "allow_private_addresses" in str(caught.value)
    assert server.asked == []


def test_private_servers_are_read_where_they_are_meant(server: Server) -> None:
    server.answers["/x.png"] = body(b"image")
    server.answers["/moved.png"] = redirect("/x.png")
    reader = WebReader(allow_private=True)
    assert reader.read(server.url("/x.png"), LIMIT) == b"image"
    assert reader.read(server.url("/moved.png", "localhost"), LIMIT) == b"image"


def test_a_redirect_leads_nowhere_that_an_address_may_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public server that redirects to this machine; that it is public is all that is made up."""
    from p2p.storage import web

    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1" and not server.asked)
    for target in (server.url("/secret"), server.url("/secret", "localhost"), "http://169.254.169.254/latest"):
        server.asked.clear()
        server.answers["/x.png"] = redirect(target)
        server.answers["/secret"] = body(b"secret")
        with pytest.raises(BadInputError) as caught:
            WebReader(allow_private=False).read(server.url("/x.png"), LIMIT)
        assert caught.value.kind == "AddressRefused" and server.asked == ["/x.png"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(
            (address, True)
            for address in ("1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")
        ),
        *((address, False) for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254")),
        *((address, False) for address in ("100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.2.1")),
        *(
            (address, False)
            for address in ("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1")
        ),
        *(
            (address, False)
            for address in (
                "::ffff:10.0.0.1",
                "fec0::1",
                "::7f00:1",
                "5f00::1",
                "64:ff9b::7f00:1",
                "2002:7f00:1::",
                "2002:a00:1::",
            )
        ),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_body_is_counted_as_it_comes_and_after_decompression(server: Server) -> None:
    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        body(b"")(handler)
        try:
            while not server.stopped.is_set():
                handler.wfile.write(bytes(10_000))
        except OSError:
            pass

    server.answers = {
        "/long": body(bytes(LIMIT + 1), Content_Length=str(LIMIT + 1)),
        "/claims": body(b"x", Content_Length=str(10**12)),
        "/gzip": body(gzip.compress(bytes(300 * 2**20)), Content_Encoding="gzip"),
        "/endless": endless,
        "/fits": body(bytes(LIMIT), Content_Length=str(LIMIT)),
        "/small": body(gzip.compress(b"image"), Content_Encoding="gzip"),
    }
    reader = WebReader(allow_private=True)
    for path in ("/long", "/claims", "/gzip", "/endless"):
        with pytest.raises(BadInputError) as caught:
            reader.read(server.url(path), LIMIT)
        assert caught.value.kind == "FileTooLarge", path
    assert reader.read(server.url("/fits"), LIMIT) == bytes(LIMIT)
    assert reader.read(server.url("/small"), LIMIT) == b"image"


@pytest.mark.parametrize("settings", [{"max_seconds": 0.3}, {"grace_seconds": 0.1}])
def test_a_server_that_sends_next_to_nothing_is_left(server: Server, settings: dict[str, float]) -> None:
    def dripping(handler: http.server.BaseHTTPRequestHandler) -> None:
        body(b"")(handler)
        try:
            while not server.stopped.wait(0.02):
                handler.wfile.write(b"x")
        except OSError:
            pass

    server.answers["/x"] = dripping
    with pytest.raises(BadInputError) as caught:
        WebReader(allow_private=True, **settings).read(server.url("/x"), LIMIT)
    assert caught.value.kind == "TooSlow"


def test_a_server_that_sends_nothing_is_told_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: http.server.BaseHTTPRequestHandler) -> None:
        server.stopped.wait()

    monkeypatch.setattr("p2p.storage.web._SILENT_SECONDS", 0.3)
    server.answers["/x"] = silent
    with pytest.raises(StorageError, match=r"has sent nothing for 0\.3 s"):
        WebReader(allow_private=True).read(server.url("/x"), LIMIT)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (404, NotFoundError, False),
        (410, NotFoundError, False),
        (400, RefusedError, False),
        (401, RefusedError, False),
        (403, RefusedError, False),
    ]
    + [(status, StorageError, True) for status in (408, 429, 500, 503)],
)
def test_what_a_server_answers_is_told_apart(
    server: Server, status: int, kind: type[P2PError], retryable: bool
) -> None:
    server.answers["/x"] = body(b"Bad Request InvalidToken ExpiredToken Forbidden", status)
    with pytest.raises(kind) as caught:
        WebReader(allow_private=True).read(server.url("/x"), LIMIT)
    assert type(caught.value) is kind and caught.value.retryable is retryable and "AWS" not in str(caught.value)


def test_endless_redirects_and_other_schemes_end(server: Server) -> None:
    server.answers["/loop"] = redirect("/loop")
    server.answers["/file"] = redirect("file:///etc/hosts")
    for path in ("/loop", "/file"):
        with pytest.raises(BadInputError) as caught:
            WebReader(allow_private=True).read(server.url(path), LIMIT)
        assert caught.value.kind == "AddressRefused"


def test_a_server_that_is_gone_and_what_is_no_url(server: Server) -> None:
    with pytest.raises(StorageError) as caught:
        WebReader(allow_private=True).read("http://127.0.0.1:1/x.png", LIMIT)
    assert caught.value.retryable
    with pytest.raises(BadInputError) as bad:
        WebReader(allow_private=True).read("http://[bad/x.png", LIMIT)
    assert bad.value.kind == "BadAddress"
