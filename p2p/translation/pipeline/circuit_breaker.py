"""Which servers answer. One that is gone must not stop, or hold up, what lies on others; where none answers, the
storage as a whole is lost, and to call its images bad would be wrong.
"""

from __future__ import annotations

LOCAL = "file"
_MOST_UNANSWERED = 16


def host_of(uri: str) -> str:
    """What answers for `uri`: a web server by its name and port, or a storage as a whole by its scheme."""
    scheme, separator, below = uri.partition("://")
    return f"{scheme}://{below.partition('/')[0]}" if is_web(uri) else scheme if separator else LOCAL


def is_web(uri: str) -> bool:
    """Whether `uri` lies on a web server; such servers come and go one by one."""
    return uri.startswith(("http://", "https://"))


class CircuitBreaker:
    """Counts for one process which reads were answered. `count` is how many hosts the corpus has."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._unanswered: dict[str, int] = {}
        self._given_up: set[str] = set()

    def is_open(self, uri: str) -> bool:
        """Whether so many reads in a row went unanswered that asking again would only take time."""
        return host_of(uri) in self._given_up

    def record(self, uri: str, answered: bool) -> bool:
        """Note how a read of `uri` came out, a refusal being an answer; False if the storage as a whole is lost."""
        host = host_of(uri)
        if answered:
            self._unanswered.pop(host, None)
            self._given_up.discard(host)
            return True
        self._unanswered[host] = self._unanswered.get(host, 0) + 1
        if self._unanswered[host] < _MOST_UNANSWERED:
            return True
        self._given_up.add(host)
        return is_web(uri) and len(self._given_up) < self._count
