"""Rates of what happens to images outside the networks: decoding, resizing, encoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from p2p.benchmark.networks import SIZE
from p2p.storage.images import FASTEST_PNG, decode, encode, resize, split_halves
from p2p.storage.pixels import Array


@dataclass(frozen=True)
class Codecs:
    """Seconds per image on one core."""

    decode: float
    resize: float
    encode: float


def _seconds_each(step: Callable[[int], object], count: int, seconds: float) -> float:
    started = time.perf_counter()
    calls = 0
    while calls < count or time.perf_counter() - started < seconds:
        step(calls % count)
        calls += 1
    return (time.perf_counter() - started) / calls


def codec_seconds(folder: str, seconds: float) -> Codecs:
    """Time decoding, resizing the left half to the network's size and encoding it as the job does, a third each."""
    torch.set_num_threads(1)
    data = [path.read_bytes() for path in sorted(Path(folder).iterdir())[:16]]
    halves: list[Array] = [split_halves(decode(one))[0] for one in data]
    small: list[Array] = [resize(half, SIZE, SIZE) for half in halves]
    third = seconds / 3
    return Codecs(
        decode=_seconds_each(lambda index: decode(data[index]), len(data), third),
        resize=_seconds_each(lambda index: resize(halves[index], SIZE, SIZE), len(data), third),
        encode=_seconds_each(lambda index: encode(small[index], png_level=FASTEST_PNG), len(data), third),
    )
