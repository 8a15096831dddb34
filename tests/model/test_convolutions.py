import pytest
import torch
from torch import nn

from p2p.model.convolutions import Conv2d, ConvTranspose2d
from p2p.model.losses import gradient_penalty

OWN = "_ConvolutionBackward"
CASES = {  # the layer's arguments, and the input's height and width
    "down": (Conv2d, (32, 48, 4, 2, 1), 16, 20),
    "down, odd sides": (Conv2d, (32, 48, 4, 2, 1), 9, 13),
    "down to one pixel": (Conv2d, (32, 48, 4, 2, 1), 2, 2),
    "stride 1": (Conv2d, (32, 48, 4, 1, 1), 12, 11),
    "unpadded": (Conv2d, (32, 48, 3), 12, 11),
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
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    (output.float() * weights).sum().backward()
    return output, [x.grad, layer.weight.grad, *([] if layer.bias is None else [layer.bias.grad])]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_float32_to_the_rounding_of_bfloat16(case, bias, layout):
    kind, arguments, height, width = CASES[case]
    torch.manual_seed(0)
    layer = kind(*arguments, bias=bias).to(memory_format=layout)
    x = torch.randn(3, 32, height, width).to(memory_format=layout)
    with torch.no_grad():  # numbers that bfloat16 holds exactly
        x = x.bfloat16().float()
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16().float())
    exact_output, exact = gradients(layer, x, bfloat16=False)
    exact = [gradient.clone() for gradient in exact]
    output, found = gradients(layer, x, bfloat16=True)
    assert (OWN in output.grad_fn.name(), OWN in exact_output.grad_fn.name()) == (True, False)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        assert torch.linalg.vector_norm(ours - theirs) < 0.01 * torch.linalg.vector_norm(theirs)


@pytest.mark.parametrize(
    "layer, side",
    [
        (Conv2d(32, 8, 4, 2, 1), 16),  # too few channels
        (Conv2d(32, 48, 4, 2, 1), 66),  # 33 x 33 positions
        (ConvTranspose2d(32, 48, 4, 2, 1), 33),
        (Conv2d(32, 48, 4, 2, 1).requires_grad_(False), 16),  # the discriminator, while the generator learns
    ],
)
def test_torch_computes_what_it_is_quicker_at(layer, side):
    x = torch.randn(1, 32, side, side, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert OWN not in layer(x).grad_fn.name()


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
