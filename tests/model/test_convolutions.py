import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from p2p.model.convolutions import Conv2d, ConvTranspose2d
from p2p.model.losses import gradient_penalty

TORCHS = "ConvolutionBackward0"
CASES = {  # the layer's arguments, and the input's height and width
    "down": (Conv2d, (32, 48, 4, 2, 1), 24, 20),
    "down, inner level": (Conv2d, (32, 48, 4, 2, 1), 12, 14),
    "down, odd sides": (Conv2d, (32, 48, 4, 2, 1), 9, 13),
    "down to one pixel": (Conv2d, (32, 48, 4, 2, 1), 2, 2),
    "stride 1": (Conv2d, (32, 48, 4, 1, 1), 12, 11),
    "to one channel": (Conv2d, (32, 1, 4, 1, 1), 40, 38),
    "to three channels": (Conv2d, (32, 3, 3, 1, 1), 7, 9),
    "unpadded to one channel": (Conv2d, (32, 1, 4), 12, 11),
    "unpadded": (Conv2d, (32, 48, 3), 12, 11),
    "unpadded, inner level": (Conv2d, (32, 48, 3), 8, 9),
    "up": (ConvTranspose2d, (32, 48, 4, 2, 1), 6, 8),
    "up, many pixels": (ConvTranspose2d, (32, 48, 4, 2, 1), 20, 24),
    "up from one pixel": (ConvTranspose2d, (32, 48, 4, 2, 1), 1, 1),
    "up, odd output": (ConvTranspose2d, (32, 48, 3, 2, 1, 1), 6, 8),
}


def gradients(layer, x, *, bfloat16):
    x = x.clone().requires_grad_(True)
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = layer(x)
    weights = torch.linspace(-1, 2, output.numel()).view(output.shape)
    (output.float() * weights).sum().backward()
    return output, [x.grad, *(parameter.grad for parameter in layer.parameters() if parameter.requires_grad)]


def layer_and_input(case, *, bias=True, layout=torch.channels_last):
    kind, arguments, height, width = CASES[case]
    torch.manual_seed(0)
    layer = kind(*arguments, bias=bias).to(memory_format=layout)
    x = torch.randn(3, layer.in_channels, height, width).to(memory_format=layout)
    with torch.no_grad():  # numbers that bfloat16 holds exactly
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return layer, x.bfloat16().float()


def assert_rounded(ours, theirs, times=1):
    """Assert that they differ by no more than so many `times` of rounding to bfloat16."""
    assert ours.shape == theirs.shape
    assert torch.linalg.vector_norm(ours - theirs) < times * 0.01 * torch.linalg.vector_norm(theirs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_float32_to_the_rounding_of_bfloat16(case, bias, layout):
    layer, x = layer_and_input(case, bias=bias, layout=layout)
    exact_output, exact = gradients(layer, x, bfloat16=False)
    exact = [gradient.clone() for gradient in exact]
    output, found = gradients(layer, x, bfloat16=True)
    assert (output.grad_fn.name() == TORCHS, exact_output.grad_fn.name() == TORCHS) == (False, True)
    assert output.dtype == torch.bfloat16
    assert_rounded(output.float(), exact_output)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert_rounded(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_a_frozen_layer_hands_the_same_gradient_on(case):  # the discriminator, while the generator learns
    layer, x = layer_and_input(case)
    _, (expected, *_) = gradients(layer, x, bfloat16=True)
    _, found = gradients(layer.requires_grad_(False), x, bfloat16=True)
    assert len(found) == 1 and torch.equal(found[0], expected)


@pytest.mark.parametrize("case", CASES)
def test_the_next_layer_may_rectify_in_place(case):
    layer, x = layer_and_input(case, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert torch.equal(output.clone().relu(), nn.functional.relu(output, inplace=True))


class _Called(TorchDispatchMode):
    """Records the names of all operations that torch computes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("case", ["down, inner level", "unpadded, inner level", "up", "up, odd output"])
def test_the_inner_levels_are_computed_by_products_alone(case, bfloat16):
    with _Called() as called:
        gradients(*layer_and_input(case), bfloat16=bfloat16)
    assert any("convolution" in name for name in called.names) != bfloat16


@pytest.mark.parametrize(
    "layer, side",
    [
        (Conv2d(32, 8, 4, 2, 1), 16),  # too few channels
        (Conv2d(32, 3, 7, 1, 3), 40),  # more taps than a vector has places
        (Conv2d(32, 48, 1), 40),  # small patches of many channels
        (Conv2d(32, 48, 4, 2, 1), 66),  # 33 x 33 positions
        (ConvTranspose2d(32, 48, 4, 2, 1), 33),
        (ConvTranspose2d(32, 3, 4, 2, 1), 33),
    ],
)
def test_torch_computes_what_it_is_quicker_at(layer, side):
    x = torch.randn(1, layer.in_channels, side, side, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).grad_fn.name() == TORCHS


@pytest.mark.parametrize("case", CASES)
def test_the_weights_gradient_can_be_differentiated_again(case):
    layer, x = layer_and_input(case)
    x.requires_grad_()
    found = {}
    for bfloat16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = layer(x).float()
        weighted = (output * torch.linspace(-1, 2, output.numel()).view(output.shape)).sum()
        (gradient,) = torch.autograd.grad(weighted, layer.weight, create_graph=True)
        (found[bfloat16],) = torch.autograd.grad((gradient * layer.weight.detach()).sum(), x)
    assert_rounded(found[True], found[False], times=2)


def test_a_gradient_penalty_can_be_differentiated_again():
    torch.manual_seed(0)
    critic = nn.Sequential(Conv2d(6, 32, 4, 2, 1), nn.LeakyReLU(0.2), Conv2d(32, 1, 4, 1, 1)).to(
        memory_format=torch.channels_last
    )
    real, fake = torch.randn(2, 2, 6, 16, 16)
    found = {}
    for bfloat16 in (False, True):
        critic.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            penalty = gradient_penalty(critic, real, fake)
        penalty.backward()
        found[bfloat16] = critic[0].weight.grad.clone()
    difference = torch.linalg.vector_norm(found[True] - found[False])
    assert 0 < difference < 0.03 * torch.linalg.vector_norm(found[False])
