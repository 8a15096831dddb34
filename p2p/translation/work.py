"""What a process is told in order to translate. Without torch, which the job itself does not need."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from p2p.storage.filesystems import is_remote
from p2p.storage.lease import Fence
from p2p.translation.config import Settings
from p2p.translation.corpus.addresses import LOCAL
from p2p.translation.corpus.manifest import ManifestCorpus
from p2p.translation.pipeline.fetching import InputFetcher

_LOCAL_IO_THREADS, _REMOTE_IO_THREADS = 4, 16


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything a process needs to know to translate shards. Small and picklable: settings and addresses."""

    settings: Settings
    generator_uri: str
    fence: Fence | None = None
    """Of the output's lease."""
    manifest: ManifestCorpus | None = None
    """The source, where it is a manifest: it holds the addresses with a signature."""
    batch_size: int = 1
    device: str = "cpu"
    threads: int = 1
    """Of a CPU's network; each computes a batch by itself."""
    codec_threads: int = 0
    io_threads: int = 1
    hosts: int = 1
    """The number of servers that hold the corpus."""

    def reading_from(self, hosts: Collection[str]) -> Work:
        """The same for a corpus on `hosts`."""
        far = is_remote(self.settings.output) or any(host != LOCAL for host in hosts)
        return dataclasses.replace(self, hosts=len(hosts), io_threads=_REMOTE_IO_THREADS if far else _LOCAL_IO_THREADS)


def open_fetcher(work: Work) -> InputFetcher:
    """What reads the inputs of `work`."""
    return InputFetcher(
        work.settings.image_column,
        max_bytes=work.settings.max_bytes,
        allow_private=work.settings.allow_private_addresses or work.manifest is None,
        manifest=work.manifest,
    )
