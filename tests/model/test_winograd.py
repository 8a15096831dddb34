import pytest
import torch

from p2p.model.winograd import weight_gradient_of_4x4


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("height, width", [(8, 8), (9, 7), (4, 4), (5, 12), (6, 11)])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_gradient(stride, height, width, padding):
    torch.manual_seed(0)
    many = torch.randn(2, 3, height, width, dtype=torch.float64)
    sides = [(side + 2 * padding - 4) // stride + 1 for side in (height, width)]
    few = torch.randn(2, 5, *sides, dtype=torch.float64)
    exact = torch.nn.grad.conv2d_weight(many, (5, 3, 4, 4), few, stride, padding)
    assert torch.allclose(weight_gradient_of_4x4(few, many, stride, padding), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_in_bfloat16_it_is_within_one_percent(stride):
    torch.manual_seed(0)
    many = torch.randn(4, 32, 32, 32).bfloat16()
    few = torch.randn(4, 48, *2 * [30 // stride + 1]).bfloat16()
    exact = torch.nn.grad.conv2d_weight(many.float(), (48, 32, 4, 4), few.float(), stride, 1)
    found = weight_gradient_of_4x4(few, many, stride, 1)
    assert found.dtype == torch.bfloat16
    assert torch.linalg.vector_norm(found.float() - exact) < 0.01 * torch.linalg.vector_norm(exact)
