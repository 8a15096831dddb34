"""Who may run programs on a Ray: the token of private ones, and dashboards that ask for none."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import secrets
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

_ANSWER_SECONDS = 5


def make_token() -> None:
    """Make ~/.ray/auth_token, the token that this user's private Rays ask for, unless there is one already.

    Ray would make it too, but readable by whomever the umask lets. Whoever reads it can run programs as this user.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written: Ray says so
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # its mode is 600
            file.write(secrets.token_hex(32))
            file.flush()
            os.link(file.name, path)  # refused where there is a token, such as that of a job begun at the same time


def is_loopback(place: str) -> bool:
    """Whether HOST:PORT is reached from the same machine alone."""
    host = urlsplit(f"//{place}").hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def takes_jobs_of_anybody(dashboard: str) -> bool:
    """Whether the dashboard at HOST:PORT answers a question about jobs that comes without a token."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(f"http://{dashboard}/api/jobs/p2p", timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code not in (401, 403)  # 404: it has looked for that job
    except (OSError, http.client.HTTPException):
        return False  # nobody can reach it from here
    return True
