import itertools
import json

import hypothesis.strategies as st
from hypothesis import given, settings

from p2p.data.order import EpochRange
from p2p.training import TrainConfig
from p2p.training.position import Position, remaining_epochs, remaining_images


def config(**options) -> TrainConfig:
    return TrainConfig(data="pairs", output="run", **options)


def test_epochs_are_whole_unless_steps_end_them():
    assert list(remaining_epochs(config(epochs=2, epochs_decay=0, batch_size=4), 10, Position())) == [
        EpochRange(1, 0, 10),
        EpochRange(2, 0, 10),
    ]
    assert list(remaining_epochs(config(max_steps=4, batch_size=4), 10, Position())) == [
        EpochRange(1, 0, 10),
        EpochRange(2, 0, 4, finishes_epoch=False),
    ]
    assert list(remaining_epochs(config(max_steps=3, batch_size=4), 10, Position())) == [EpochRange(1, 0, 10)]


def test_an_epoch_of_which_more_was_seen_than_the_data_now_holds_has_no_steps_left():
    options = config(epochs=2, epochs_decay=0, batch_size=4)
    left = list(remaining_epochs(options, 3, Position(pairs_in_epoch=8, step=2)))
    assert left == [EpochRange(1, 3, 3), EpochRange(2, 0, 3)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 3), st.integers(1, 60))
def test_stopping_anywhere_and_going_on_does_the_same_steps(pairs, batch, world, stop_at):
    pairs = max(pairs, world)
    options = {"epochs": 2, "epochs_decay": 1, "batch_size": batch, "workers": world}

    def walk(position: Position, max_steps: int) -> tuple[list[tuple[int, int, int]], Position]:
        done = []
        for part in remaining_epochs(config(**options, max_steps=max_steps), pairs, position):
            bounds = [*range(part.skip, part.stop, batch), part.stop]
            steps = [(part.epoch, start, end) for start, end in itertools.pairwise(bounds)]
            done += steps
            ended = part.epoch if part.finishes_epoch else part.epoch - 1
            inside = 0 if part.finishes_epoch else part.stop * world
            position = Position(ended, inside, position.step + len(steps), 0)
        return done, position

    whole, end = walk(Position(), 0)
    first, middle = walk(Position(), stop_at)
    second, end_again = walk(middle, 0)
    assert first + second == whole
    assert end_again == end
    assert len(first) == min(stop_at, len(whole))
    assert remaining_images(config(**options), pairs, end) == 0


def test_a_position_survives_its_json():
    position = Position(3, 7, 40, 80, (1.5, 0.25, 1e-17, 3.0), 1.5)
    assert Position.from_dict(json.loads(json.dumps(position.to_dict()))) == position
