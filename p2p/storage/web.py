"""Reading images from web servers that a corpus names, bounded in time and bytes, and none in private networks."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import weakref
from typing import Any

import aiohttp
import fsspec.asyn
from aiohttp.abc import AbstractResolver, ResolveResult

from p2p.errors import BadInputError, NotFoundError, RefusedError, StorageError
from p2p.storage.bounded import check_bytes
from p2p.storage.error_mapping import RETRYABLE_STATUSES, storage_errors

_CONNECT_SECONDS = 5
_SILENT_SECONDS = 30  # without a byte
MAX_SECONDS = 600.0
"""For one image, however much of it is there by then."""
GRACE_SECONDS = 20.0
MIN_BYTES_PER_SECOND = 16 * 2**10
"""On average, once the grace period is over."""
_CHUNK_BYTES = 2**16
_EMBEDDED_IPV4 = ipaddress.ip_network("64:ff9b::/96")  # NAT64, RFC 6052
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # RFC 4291: nothing else is in use on the internet


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not loopback, link-local, private, shared, reserved or multicast,
    nor an IPv6 address that carries such an IPv4 one.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        carried = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in _EMBEDDED_IPV4:
            carried.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
        inner = [address for address in carried if address is not None]
        if inner:
            return all(is_public(str(address)) for address in inner)
        if found not in _GLOBAL_UNICAST:
            return False
    return found.is_global and not found.is_multicast


def _private(host: str) -> BadInputError:
    return BadInputError(
        "AddressRefused",
        f"{host} is in a private network (loopback, link-local, 10.x, …), where no line of a corpus may reach; "
        "set allow_private_addresses if it is meant",
    )


class _PublicResolver(AbstractResolver):
    """Resolves names to public addresses only. What is connected to is what was checked."""

    def __init__(self) -> None:
        self._resolver = aiohttp.DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [one for one in found if is_public(one["host"])]
        if not public:
            raise _private(host)
        return public

    async def close(self) -> None:
        await self._resolver.close()


async def _require_public(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
    """For each request, so also after a redirect: addresses that are numbers, which no resolver sees."""
    host = request.url.host or ""
    try:
        public = is_public(host)
    except ValueError:  # a name; digits alone are a number that some library may take for an address
        public = not host.replace(".", "").isdigit()
    if not public:
        raise _private(host)
    response: aiohttp.ClientResponse = await handler(request)
    return response


class WebReader:
    """Reads whole files from web servers. Threads may share it.

    Args:
        allow_private: also from servers in private networks and on this machine.
        max_seconds: for a whole file.
        grace_seconds: how long a server may be slower than 16 KiB/s.

    """

    def __init__(
        self, *, allow_private: bool, max_seconds: float = MAX_SECONDS, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._allow_private = allow_private
        self._max_seconds, self._grace_seconds = max_seconds, grace_seconds
        self._loop = fsspec.asyn.get_loop()  # a thread that runs for as long as the process
        self._session: aiohttp.ClientSession | None = None
        self._lock = threading.Lock()

    def read(self, url: str, max_bytes: int) -> bytes:
        """The content at `url`, whose bytes are counted as they come, after any decompression.

        Raises:
            BadInputError: more than `max_bytes`, too slow, a private address where none is allowed, or no address at
            all.
            NotFoundError, RefusedError: the server answers so.
            StorageError: it does not answer, or asks to try again.

        """
        with self._lock:
            if self._session is None:
                self._session = fsspec.asyn.sync(self._loop, self._open)
                weakref.finalize(self, _close, self._loop, self._session)
        with storage_errors(url):
            data: bytes = fsspec.asyn.sync(self._loop, self._read, url, max_bytes)
        return data

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=None if self._allow_private else _PublicResolver()),
            middlewares=() if self._allow_private else (_require_public,),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS),
            headers={"Accept-Encoding": "identity"},  # images are compressed already
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _read(self, url: str, max_bytes: int) -> bytes:
        assert self._session is not None
        try:
            async with asyncio.timeout(self._max_seconds) as limit, self._session.get(url) as response:
                _require_success(response, url)
                if response.content_length and "Content-Encoding" not in response.headers:
                    check_bytes(response.content_length, max_bytes)
                return await self._body(response, max_bytes)
        except aiohttp.SocketTimeoutError:
            raise StorageError(f"{url}: the server has sent nothing for {_SILENT_SECONDS:g} s") from None
        except TimeoutError:
            if limit.expired():
                raise BadInputError("TooSlow", f"not there after {self._max_seconds:g} s") from None
            raise
        except aiohttp.TooManyRedirects:
            raise BadInputError("AddressRefused", "redirected too often") from None
        except aiohttp.NonHttpUrlClientError:
            raise BadInputError("AddressRefused", "redirected to what is no web address") from None
        except aiohttp.InvalidURL as error:
            raise BadInputError("BadAddress", f"no web address: {error}") from None

    async def _body(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        started = self._loop.time()
        data = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            check_bytes(len(data), max_bytes)
            seconds = self._loop.time() - started
            if seconds > self._grace_seconds and len(data) < seconds * MIN_BYTES_PER_SECOND:
                raise BadInputError("TooSlow", f"{len(data)} bytes in {seconds:.0f} s: slower than 16 KiB/s")
        return bytes(data)


def _require_success(response: aiohttp.ClientResponse, url: str) -> None:
    status = response.status
    if status in (404, 410):
        raise NotFoundError(f"{url}: nothing is there")
    if status in RETRYABLE_STATUSES or status >= 500:
        raise StorageError(f"{url}: the server answers {status} {response.reason}")
    if status >= 400:
        raise RefusedError(f"{url}: the server answers {status} {response.reason}")


def _close(loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(session.close(), loop)
