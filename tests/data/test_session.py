"""What a terminal shows while Ray starts."""

from __future__ import annotations

import os

import pytest

from p2p.data.session import without_level_told


def test_only_one_line_of_ray_is_kept_from_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), without_level_told():
        os.write(2, b"one\n[I 1 1] logging.cc:303: Set ray log level from environment variable X to 3\ntwo\n")
        raise KeyboardInterrupt
    os.write(2, b"three\n")
    assert capfd.readouterr().err == "one\ntwo\nthree\n"
