import pytest
import torch

from p2p.training.validation import variety


def test_variety_is_the_mean_difference_of_neighbours_on_a_scale_of_one():
    images = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    images[1] = 255
    images[2, :2] = 255
    assert variety(images).tolist() == pytest.approx([1.0, 0.5])
    assert variety(images[:1]).tolist() == []
