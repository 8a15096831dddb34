"""Translation from and to a bucket whose server throttles, stalls, hangs up, or stops believing the keys."""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import botocore.retries.standard
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import in_this_process

from p2p.errors import P2PError, TooManyBadInputsError
from p2p.storage.filesystems import arrow_filesystem, list_files, write_bytes
from p2p.translation import TranslateConfig
from p2p.translation.job import run

IMAGES = 10

Fault = Callable[["_Relay"], bool]
"""Answers a request in the server's place; False lets it through."""
Rule = Callable[[str, str, int], Fault | None]
"""(method, path, how often this was asked before) -> what goes wrong."""


def no_trouble(method: str, path: str, before: int) -> None:
    """The rule that lets everything through."""


def _refuse(status: int, code: str) -> Fault:
    def answer(relay: _Relay) -> bool:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        relay.send_response(status)
        relay.send_header("Content-Length", str(len(body)))
        relay.end_headers()
        relay.wfile.write(body)
        return True

    return answer


def reset(relay: _Relay) -> bool:
    """Hang up with RST, no answer."""
    relay.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    relay.connection.close()
    relay.close_connection = True
    return True


def cut(relay: _Relay) -> bool:
    """Promise a thousand bytes and hang up after ten."""
    relay.send_response(200)
    relay.send_header("Content-Length", "1000")
    relay.end_headers()
    relay.wfile.write(b"0123456789")
    relay.wfile.flush()
    relay.connection.shutdown(socket.SHUT_RDWR)
    relay.close_connection = True
    return True


def slow(relay: _Relay) -> bool:
    """Let some time pass before the first byte."""
    relay.server.patience.wait(0.1)  # type: ignore[attr-defined]
    return False


SLOW_DOWN = _refuse(503, "SlowDown")
INTERNAL_ERROR = _refuse(500, "InternalError")
EXPIRED = _refuse(400, "ExpiredToken")
DENIED = _refuse(403, "AccessDenied")


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        fault = proxy.fault(self.command, self.path)
        if fault is not None and fault(self):
            return
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _relay  # noqa: N815


class Proxy:
    """Stands before an S3 server; `rule` decides what goes wrong."""

    def __init__(self, upstream_url: str) -> None:
        self.upstream = upstream_url.removeprefix("http://")
        self.rule: Rule = no_trouble
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Relay)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self._server.patience = threading.Event()  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            before = self._asked[method, path]
            self._asked[method, path] += 1
            return self.rule(method, path, before)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def endpoint(s3_server: Any) -> Iterator[Proxy]:
    """One for all tests here: another address would mean other S3 clients, which take long to make."""
    proxy = Proxy(s3_server.url)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        # As many attempts as ever, but no second of waiting before each.
        monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *context: 0.01)
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.stop()


@pytest.fixture
def proxy(endpoint: Proxy) -> Iterator[Proxy]:
    yield endpoint
    endpoint.rule = no_trouble


def names(images: int) -> list[str]:
    return [f"{number:02d}.png" for number in range(images)]


@pytest.fixture
def images() -> int:
    return IMAGES


@pytest.fixture
def translate(
    s3: Any, proxy: Proxy, checkpoint: str, make_image: Callable[..., bytes], images: int
) -> Callable[..., dict[str, Any]]:
    """Translates so many images from the bucket to the bucket."""
    for number, name in enumerate(names(images)):
        write_bytes(s3.uri("in", name), make_image(64, 64, seed=number))

    def translate(**options: Any) -> dict[str, Any]:
        config = TranslateConfig(
            checkpoint=checkpoint, source=s3.uri("in"), output=s3.uri("out"), precision="fp32", **options
        )
        return run(config, lambda _: nullcontext(in_this_process))

    return translate


def ledger(s3: Any) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for file in list_files(s3.uri("out", "ledger")):
        filesystem, path = arrow_filesystem(file.uri)
        rows = pq.read_table(path, filesystem=filesystem).to_pylist()
        found.update((row["image_id"], row["status"]) for row in rows)
    return found


EVERY_INPUT_ONCE = Counter((name, "translated") for name in names(IMAGES))


def test_trouble_that_passes_costs_nothing(s3: Any, proxy: Proxy, translate: Any) -> None:
    """Every object is in some trouble at its first reading, and most are at their first writing."""
    reading, writing = (SLOW_DOWN, INTERNAL_ERROR, reset, cut, slow), (SLOW_DOWN, INTERNAL_ERROR, reset, slow)
    hit: Counter[Fault] = Counter()

    def rule(method: str, path: str, before: int) -> Fault | None:
        faults = {"GET": reading, "PUT": writing}.get(method)
        if before or faults is None or not path.endswith(".png"):
            return None
        fault = faults[int(path[-6:-4]) % len(faults)]
        hit[fault] += 1
        return fault

    proxy.rule = rule
    summary = translate(format="png")
    assert min(hit[fault] for fault in reading) >= 2
    assert (summary["translated"], summary["failed"]) == (IMAGES, 0)
    assert ledger(s3) == EVERY_INPUT_ONCE
    assert len(list(list_files(s3.uri("out", "images")))) == IMAGES


@pytest.mark.parametrize("images", [17])  # more than the unanswered reads in a row that stop a job
def test_denied_objects_are_bad_inputs_however_many_stand_in_a_row(
    s3: Any, proxy: Proxy, translate: Any, images: int
) -> None:
    proxy.rule = lambda method, path, before: (
        DENIED if method == "GET" and re.search(r"(0[1-9]|1.)\.png", path) else None
    )
    with pytest.raises(TooManyBadInputsError, match="16 of 17 inputs were bad"):
        translate()
    assert ledger(s3) == {("00.png", "translated"): 1, **{(name, "failed"): 1 for name in names(images)[1:]}}


def test_credentials_that_expire_stop_the_work_and_fresh_ones_continue_it(
    s3: Any, proxy: Proxy, translate: Any
) -> None:
    read: set[str] = set()

    def rule(method: str, path: str, before: int) -> Fault | None:
        if "/in/" in path and method == "GET":
            read.add(path)
        return EXPIRED if len(read) > IMAGES // 2 else None

    proxy.rule = rule
    with pytest.raises(P2PError, match=r"credentials are missing, wrong or expired") as caught:
        translate()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    proxy.rule = no_trouble
    assert not [status for _, status in ledger(s3) if status == "failed"], "no input is bad because a key has expired"
    summary = translate()
    assert summary["translated"] + summary["skipped"] == IMAGES
    assert ledger(s3) == EVERY_INPUT_ONCE


ACCIDENTS = {
    "memory": (MemoryError(), "out of memory"),
    "files": (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), r"files and connections open .*ulimit -n"),
}


@pytest.mark.parametrize(("error", "told"), ACCIDENTS.values(), ids=ACCIDENTS)
def test_what_this_machine_runs_out_of_stops_the_work_and_is_no_fault_of_an_image(
    error: Exception, told: str, s3: Any, translate: Any
) -> None:
    whole = aiohttp.ClientSession._request

    async def request(self: Any, method: str, url: Any, **options: Any) -> Any:
        if method == "GET" and str(url).endswith("/03.png"):
            raise error
        return await whole(self, method, url, **options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(aiohttp.ClientSession, "_request", request)
        with pytest.raises(P2PError, match=told):
            translate()
    assert not [status for _, status in ledger(s3) if status == "failed"]
    translate()
    assert ledger(s3) == EVERY_INPUT_ONCE
