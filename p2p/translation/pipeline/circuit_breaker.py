"""Which servers answer. One that is gone must not stop or delay the images of others; where none answers, the storage
as a whole is lost, and to call its images bad would be wrong.
"""

from __future__ import annotations

from p2p.translation.corpus.addresses import host_of, is_web

_MAX_UNANSWERED = 16


class CircuitBreaker:
    """Counts for one process the reads that each server left unanswered. `hosts` is how many the corpus has."""

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._unanswered: dict[str, int] = {}
        self._open: set[str] = set()

    def is_open(self, uri: str) -> bool:
        """Whether so many reads in a row went unanswered that asking again would only take time."""
        return host_of(uri) in self._open

    def record(self, uri: str, answered: bool) -> bool:
        """Record a read of `uri`; a refusal is an answer. Returns False if the storage as a whole is lost."""
        host = host_of(uri)
        if answered:
            self._unanswered.pop(host, None)
            self._open.discard(host)
            return True
        self._unanswered[host] = self._unanswered.get(host, 0) + 1
        if self._unanswered[host] < _MAX_UNANSWERED:
            return True
        self._open.add(host)
        return is_web(uri) and len(self._open) < self._hosts
