import pytest
import torch
import torch.nn.functional as F

from p2p.model.winograd import convolve, differences, weight_gradient


def convolution(stride, height, width, padding, *, dtype, channels=(3, 5)):
    """Pixels, weights, a gradient of the output, and how many positions the kernel has."""
    torch.manual_seed(0)
    many, few = channels
    pixels, weight = torch.randn(2, many, height, width, dtype=dtype), torch.randn(few, many, 4, 4, dtype=dtype)
    sides = torch.Size((side + 2 * padding - 4) // stride + 1 for side in (height, width))
    return pixels, weight, torch.randn(2, few, *sides, dtype=dtype), sides


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("height, width", [(8, 8), (9, 7), (4, 4), (5, 12), (6, 11)])
@pytest.mark.parametrize("stride", [1, 2])
def test_they_are_the_convolution_and_its_gradient(stride, height, width, padding):
    pixels, weight, gradient, sides = convolution(stride, height, width, padding, dtype=torch.float64)
    taken = differences(pixels, sides, stride, padding)
    exact = torch.nn.grad.conv2d_weight(pixels, weight.shape, gradient, stride, padding)
    close = {"rtol": 1e-12, "atol": 1e-12}
    assert torch.allclose(
        convolve(taken, weight, sides, stride), F.conv2d(pixels, weight, None, stride, padding), **close
    )
    assert torch.allclose(weight_gradient(taken, gradient, stride), exact, **close)


@pytest.mark.parametrize("stride", [1, 2])
def test_in_bfloat16_they_are_within_one_percent(stride):
    given = convolution(stride, 32, 32, 1, dtype=torch.bfloat16, channels=(32, 48))
    pixels, weight, gradient, sides = given
    taken = differences(pixels, sides, stride, 1)
    found = convolve(taken, weight, sides, stride), weight_gradient(taken, gradient, stride)
    pixels, weight, gradient = (tensor.float() for tensor in given[:3])
    exact = (
        F.conv2d(pixels, weight, None, stride, 1),
        torch.nn.grad.conv2d_weight(pixels, weight.shape, gradient, stride, 1),
    )
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.linalg.vector_norm(ours.float() - theirs) < 0.01 * torch.linalg.vector_norm(theirs)


@pytest.mark.parametrize("batch, height, width", [(2, 8, 9), (1, 9, 8), (1, 8, 8)])
def test_an_output_lies_in_channels_last_layout_and_is_no_view(batch, height, width):
    pixels, weight, _, sides = convolution(1, height, width, 1, dtype=torch.float32)
    pixels = pixels[:batch]
    output = convolve(differences(pixels, sides, 1, 1), weight, sides, 1)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert not output._is_view()
