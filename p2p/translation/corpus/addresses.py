"""What an address in a manifest may name: who writes a manifest is not who runs the job."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from p2p.errors import BadInputError, quote_controls, redact
from p2p.storage.filesystems import absolute, is_remote, join

LOCAL = "file"
SCHEMES = ("s3", "s3a", "gs", "gcs", "http", "https")
_LOCAL_SCHEMES = (LOCAL, "local")
_WEB_SCHEMES = ("http", "https")
_OBJECT = re.compile(r"[A-Za-z0-9._-]{1,255}/.+", re.DOTALL)
"""Bucket and key. Anything else in place of a bucket, such as an ARN, decides which server is asked."""
_FILE_URI = re.compile(r"file:(//(localhost)?)?/", re.IGNORECASE)
"""Of RFC 8089, so its path is percent-encoded."""
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_GAP = re.compile(r"[\s\"<>]")
_SECRET_MARKS = ("?", "@", ";", "#", "=")


@dataclass(frozen=True)
class AddressRules:
    """Which addresses a manifest may hold.

    Where a host name leads is checked when it is connected to (`p2p.storage.web`).

    Args:
        folder: where the manifest is, and where relative addresses start.
        local_root: a further local folder whose files may be named; empty for none.
        allow_signed: whether web addresses may carry a signature, or another secret, in their query.

    """

    folder: str
    local_root: str = ""
    allow_signed: bool = False

    def resolve(self, address: str) -> str:
        """The whole address of a line. Raises BadInputError (AddressRefused, SignedAddress, BadAddress) with the
        reason.

        Example:
            >>> AddressRules("/lists").resolve("images/a.png")
            '/lists/images/a.png'

        """
        if quote_controls(address) != address:
            raise BadInputError("BadAddress", "the address holds control characters")
        if _WINDOWS_PATH.match(address):
            problem = f"{address} is a path of Windows, which this system has not; name files relative to the manifest"
            raise BadInputError("BadAddress", problem)
        if _FILE_URI.match(address):
            return self._local(unquote(_FILE_URI.sub("/", address, count=1), errors="surrogateescape"))
        scheme, has_scheme, below = quote_gaps(address).partition("://")
        if has_scheme and "::" in address:
            raise BadInputError("AddressRefused", "addresses chained with :: are not followed")
        scheme = scheme.lower()
        if not has_scheme:
            return self._relative(address)
        if scheme in _LOCAL_SCHEMES:
            return self._local(below)
        if scheme not in SCHEMES:
            raise BadInputError("AddressRefused", f"{scheme}:// is not read from a manifest; {', '.join(SCHEMES)} are")
        if scheme not in _WEB_SCHEMES and "@" not in below.partition("/")[0] and not _OBJECT.fullmatch(below):
            raise BadInputError("BadAddress", f"not the address of an object: {scheme}://BUCKET/KEY")
        whole = f"{scheme}://{below}"
        if carries_secret(whole):
            if scheme not in _WEB_SCHEMES or "@" in below.partition("/")[0]:
                reason = "the address holds a password or key; give it in the environment instead"
                raise BadInputError("SignedAddress", reason)
            if not self.allow_signed:
                reason = "the address holds a signature or key; pass --allow-signed-addresses if it is meant"
                raise BadInputError("SignedAddress", reason)
        return whole

    def _relative(self, address: str) -> str:
        if not is_remote(self.folder) or address.startswith("~/"):
            return self._local(os.path.expanduser(address) if address.startswith("~/") else address)
        if address.startswith("/") or ".." in address.split("/"):
            raise BadInputError(
                "AddressRefused", f"a manifest in {self.folder} names files below itself, or whole addresses"
            )
        return join(self.folder, address)

    def _local(self, path: str) -> str:
        roots = [] if is_remote(self.folder) else [absolute(self.folder)]
        if self.local_root:
            roots.append(absolute(self.local_root))
        if not roots:
            raise BadInputError("AddressRefused", "local files are named by local manifests only; see --allow-local")
        whole = posixpath.normpath(posixpath.join(roots[0], path))  # `..` is taken literally, whatever links there are
        if not any(f"{whole}/".startswith(f"{root.rstrip('/')}/") for root in roots):
            problem = f"{whole} is outside of {' and '.join(roots)}; see --allow-local"
            raise BadInputError("AddressRefused", problem)
        return whole


def is_web(uri: str) -> bool:
    """Whether `uri` is on a web server; such servers fail one by one."""
    return uri.startswith(("http://", "https://"))


def host_of(uri: str) -> str:
    """What serves `uri`: a web server by its name and port, or a storage as a whole by its scheme."""
    scheme, separator, below = uri.partition("://")
    return f"{scheme}://{below.partition('/')[0]}" if is_web(uri) else scheme if separator else LOCAL


def quote_gaps(address: str) -> str:
    """An address with a secret, its spaces and quotes written like %20: in a message they would end the masked part."""
    if not any(mark in address for mark in _SECRET_MARKS):
        return address
    quoted = _GAP.sub(lambda gap: quote(gap[0]), address)
    return quoted if carries_secret(quoted) else address


def carries_secret(address: str) -> bool:
    """Whether an address holds a password, a signature or the like."""
    return any(mark in address for mark in _SECRET_MARKS) and redact(address) != address
