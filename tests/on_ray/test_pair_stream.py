"""The stream of pairs as Ray Data runs it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p.data.augment import CropSettings
from p2p.data.order import EpochRange
from p2p.data.pairs import open_pairs
from p2p.data.stream import BlockReader, PairStream

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_pairs_are_read_while_epochs_are_still_listed(
    make_pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.data.stream.cluster_cpus", lambda: 1)  # so that little is read ahead
    make_pairs(tmp_path / "train", 160, size=64)
    listed = tmp_path / "listed"
    listed.mkdir()

    class NotedStream(PairStream):  # in here, so that it reaches Ray's workers, which cannot import this module
        block_pairs = 128  # the last block of an epoch is a small one

        def _list_blocks(self, part: dict[str, Any]) -> Iterator[dict[str, Any]]:
            (listed / str(part["epoch"])).touch()
            return super()._list_blocks(part)

    pairs = open_pairs(str(tmp_path), "train", raw_load_size=64)
    stream = NotedStream(pairs, None, CropSettings(64), 8)
    parts = [EpochRange(epoch, 0, 160) for epoch in range(1, 4001)]  # a busy machine lists hundreds before it reads
    with contextlib.closing(BlockReader(stream.dataset(parts), stream)) as reader:
        blocks = itertools.chain.from_iterable(map(reader.training, parts))
        assert sum(map(len, itertools.islice(blocks, 30))) == 15 * 160
        assert len(list(listed.iterdir())) < len(parts)
