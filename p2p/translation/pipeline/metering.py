"""What the people who run a cluster see of a translation: Ray's metrics and a log line per shard."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from ray.util.metrics import Counter

from p2p.cli import log_to_stderr
from p2p.translation.actor import ShardTranslator
from p2p.translation.plan.files import Shard
from p2p.translation.work import Work

log = logging.getLogger("p2p")


class MeteredShardTranslator(ShardTranslator):
    """A ShardTranslator that also counts for Prometheus and writes what it finished into its process's log.

    Ray exports the counters as `ray_p2p_…_total`, each with the label `output`, the output's address.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        log_to_stderr(f"translate {work.settings.output}")
        self._translated = Counter("p2p_translated", "images translated", ("output",))
        self._failed = Counter("p2p_failed", "inputs that failed", ("output",))
        self._stages = Counter("p2p_stage_seconds", "seconds of all threads, by stage of work", ("output", "stage"))
        for counter in (self._translated, self._failed, self._stages):
            counter.set_default_tags({"output": work.settings.output})

    def reports(self, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        """As ShardTranslator does."""
        for report in super().reports(shards):
            self._count(report)
            yield report

    def _count(self, report: dict[str, Any]) -> None:
        if "stopped" in report:
            log.error("%s", report["stopped"])
        if not report.get("finished"):
            return
        log.info("shard %d: %d translated, %d failed", report["shard"], report["translated"], report["failed"])
        counted: list[tuple[Counter, float, dict[str, str]]] = [
            (self._translated, report["translated"], {}),
            (self._failed, report["failed"], {}),
        ]
        counted += [(self._stages, seconds, {"stage": stage}) for stage, seconds in report["seconds"].items()]
        for counter, amount, tags in counted:
            if amount > 0:  # Ray's counters refuse zero
                counter.inc(amount, tags)
