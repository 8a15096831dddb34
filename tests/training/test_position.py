import itertools
import json

import hypothesis.strategies as st
from hypothesis import given, settings

from p2p.training import TrainConfig
from p2p.training.position import Leg, Position, legs, remaining_images


def config(**options) -> TrainConfig:
    return TrainConfig(data="pairs", output="run", **options)


def test_legs_are_epochs_unless_steps_end_them():
    assert list(legs(config(epochs=2, epochs_decay=0, batch_size=4), 10, Position())) == [
        Leg(1, 0, 10, True),
        Leg(2, 0, 10, True),
    ]
    assert list(legs(config(max_steps=4, batch_size=4), 10, Position())) == [Leg(1, 0, 10, True), Leg(2, 0, 4, False)]
    assert list(legs(config(max_steps=3, batch_size=4), 10, Position())) == [Leg(1, 0, 10, True)]


def test_an_epoch_of_which_more_was_seen_than_the_data_now_holds_has_no_steps_left():
    left = list(legs(config(epochs=2, epochs_decay=0, batch_size=4), 3, Position(pairs_in_epoch=8, step=2)))
    assert left == [Leg(1, 3, 3, True), Leg(2, 0, 3, True)]
    assert [leg.steps(4) for leg in left] == [0, 1]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 3), st.integers(1, 60))
def test_stopping_anywhere_and_going_on_does_the_same_steps(pairs, batch, world, stop_at):
    pairs = max(pairs, world)
    options = {"epochs": 2, "epochs_decay": 1, "batch_size": batch, "workers": world}

    def walk(position: Position, max_steps: int) -> tuple[list[tuple[int, int, int]], Position]:
        done = []
        for leg in legs(config(**options, max_steps=max_steps), pairs, position):
            bounds = [*range(leg.skip, leg.stop, batch), leg.stop]
            done += [(leg.epoch, start, end) for start, end in itertools.pairwise(bounds)]
            ended = leg.epoch if leg.finishes_epoch else leg.epoch - 1
            inside = 0 if leg.finishes_epoch else leg.stop * world
            position = Position(ended, inside, position.step + leg.steps(batch), 0)
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
