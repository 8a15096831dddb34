import hashlib
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from p2p.errors import UsageError
from p2p.model.config import GeneratorName, ModelConfig
from p2p.model.networks import (
    PatchDiscriminator,
    ResnetGenerator,
    UNetGenerator,
    build_discriminator,
    build_generator,
    empty_generator,
)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_default_sizes_are_the_published_ones():
    with torch.device("meta"):
        generator, discriminator = UNetGenerator(), PatchDiscriminator()
    # Small ones, since torch takes seconds to be ready to compute shapes alone.
    logits = PatchDiscriminator(ndf=1)(torch.zeros(1, 6, 256, 256))
    output = UNetGenerator(ngf=1).eval()(torch.zeros(2, 3, 256, 256))
    assert parameters(generator) == 54_413_955
    assert parameters(discriminator) == 2_768_705
    assert logits.shape == (1, 1, 30, 30)
    assert output.shape == (2, 3, 256, 256)


def test_unet_has_eight_halvings_and_dropout_in_three_inner_levels():
    with torch.device("meta"):
        generator = UNetGenerator()
    strided = [module for module in generator.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(strided) == 8
    assert all(module.kernel_size == (4, 4) and module.stride == (2, 2) for module in strided)
    assert len([module for module in generator.modules() if isinstance(module, torch.nn.Dropout)]) == 3


@pytest.mark.parametrize("name, field", [("pixel", 1), ("patch_16", 16), ("patch_70", 70), ("patch_286", 286)])
def test_discriminators_see_as_far_as_their_name_says(name, field):
    discriminator = build_discriminator(ModelConfig(discriminator=name, ndf=1, norm="none", crop_size=512)).eval()
    for parameter in discriminator.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    side = 3 * field
    x = torch.ones(1, 6, side, side, requires_grad=True)
    logits = discriminator(x)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    for channel in gradient[0]:
        seen = channel.nonzero()
        assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [field, field]


# SHA-256 (its first 16 digits) of `layout` of every network of pytorch-CycleGAN-and-pix2pix, with 5 channels in, 2 out
# and 8 filters; each for batch norm, instance norm and none.
LAYOUTS = {
    "unet_64": "36530e40c4db075e e0456a5711672a4b 5e4081fa14137ea7",
    "unet_128": "4538219a84218f4a 2ddab0ea9a38ead6 9a2d7eae7ff3099a",
    "unet_256": "00e9aca5523cba3b 6717a0cbdd5c9f72 b609c8cc584e6069",
    "unet_512": "adb9d4720f2593a6 3f17392ee6c1b5f9 291964bff1c64e56",
    "resnet_6": "a1c51b4dcae2a0c9 ea5e42ad042b47e7 cf26f4f4e936b620",
    "resnet_9": "6865dc078aa482f9 825f93192a2f0937 a6d4090881debf15",
    "patch_16": "56a5031591d1140b bf31d11ab716bd1e 32bb31d49d38f896",
    "patch_70": "1f42bbcb6710274f 79c358168b866648 343ed29417817c9f",
    "patch_286": "39764622b9fe12b1 11b5b1f4bcae95de 8733a7985a2a7fd7",
    "pixel": "407ff19f1689ef0f 5b035951926f0406 c1eceff4372f4f4a",
}


def layout(network):
    """Every layer in its order: what it is called, what it is, and all that decides what it computes."""
    numbers = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding")
    numbers += ("num_features", "eps", "momentum", "affine", "track_running_stats", "negative_slope", "p")
    lines = []
    for name, module in network.named_modules():
        if not list(module.children()):
            values = [f"{number}={getattr(module, number)}" for number in numbers if hasattr(module, number)]
            bias = getattr(module, "bias", None) is not None
            lines.append(" ".join([name, type(module).__name__.removeprefix("_"), *values, f"bias={bias}"]))
    return lines


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layer_is_the_published_one(name):
    found = []
    for norm in ("batch", "instance", "none"):
        kind = {"generator": name} if name in get_args(GeneratorName) else {"discriminator": name}
        config = ModelConfig(**kind, norm=norm, input_channels=5, output_channels=2, ngf=8, ndf=8, crop_size=512)
        network = build_discriminator(config) if "discriminator" in kind else empty_generator(config)
        found.append(hashlib.sha256("\n".join(layout(network)).encode()).hexdigest()[:16])
    assert found == LAYOUTS[name].split(), layout(network)


@pytest.mark.parametrize("name, side", [("unet_64", 64), ("unet_128", 128), ("unet_512", 512), ("resnet_6", 8)])
def test_generators_keep_the_size_at_multiples_of_their_stride(name, side):
    config = ModelConfig(generator=name, ngf=2, input_channels=1, output_channels=4, crop_size=512)
    generator = build_generator(config).eval()
    assert side % generator.stride == 0
    with torch.no_grad():
        assert generator(torch.zeros(1, 1, side, 2 * side)).shape == (1, 4, side, 2 * side)


def test_initial_weights_come_from_the_seed_alone_and_have_the_published_spread():
    config = ModelConfig(generator="unet_64", ngf=8, crop_size=64)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second, third = (build_generator(config, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(third.parameters()))
    kernels = torch.cat([p.flatten() for p in first.parameters() if p.ndim == 4])
    scales = torch.cat([m.weight for m in first.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert kernels.mean().abs() < 1e-3 and abs(kernels.std() - 0.02) < 1e-3
    assert abs(scales.mean() - 1) < 0.01 and abs(scales.std() - 0.02) < 0.01
    assert all(not m.bias.any() for m in first.modules() if getattr(m, "bias", None) is not None)


class _BackwardLayouts(TorchDispatchMode):
    """Notes for each batch norm and each sum of images in a backward pass whether its gradients are channels-last."""

    def __init__(self):
        super().__init__()
        self.norms, self.sums = [], []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        noted = {"aten::native_batch_norm_backward": self.norms, "aten::add": self.sums, "aten::add_": self.sums}
        if function.name().split(".")[0] in noted and arguments[0].ndim == 4:
            gradients = arguments[: 1 if "norm" in function.name() else 2]
            layouts = [gradient.is_contiguous(memory_format=torch.channels_last) for gradient in gradients]
            noted[function.name().split(".")[0]].append(all(layouts))
        return function(*arguments, **(options or {}))


def test_gradients_reach_every_norm_and_sum_in_the_layout_that_torch_is_quick_in():
    generator = build_generator(ModelConfig(generator="unet_64", ngf=8)).to(memory_format=torch.channels_last)
    output = generator(torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last))
    with _BackwardLayouts() as layouts:
        output.square().sum().backward()
    assert layouts.norms == [True] * sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in generator.modules())
    assert layouts.sums == [True] * 5  # one for each skip connection


def test_training_noise_does_not_depend_on_the_memory_layout():
    generator = build_generator(ModelConfig(generator="unet_64", ngf=4, crop_size=64))
    x = torch.rand(2, 3, 64, 64)
    torch.manual_seed(3)
    plain = generator(x)
    torch.manual_seed(3)
    channels_last = generator.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(plain, channels_last, atol=1e-5)


def test_norms_change_the_parameters_as_published():
    with torch.device("meta"):
        names = {
            norm: set(dict(ResnetGenerator(norm=norm).named_parameters())) for norm in ("batch", "instance", "none")
        }
    assert {"model.1.weight", "model.2.weight", "model.2.bias"} <= names["batch"]
    assert "model.1.bias" in names["instance"] and "model.2.weight" not in names["instance"]
    assert "model.1.bias" not in names["none"]


def test_wrong_sizes_are_told_with_a_way_out():
    with pytest.raises(UsageError, match=r"crop_size 128.*unet_256.*multiple of 256.*generator unet_128"):
        ModelConfig(crop_size=128)
    with pytest.raises(UsageError, match=r"patch_286 needs at least 96"):
        ModelConfig(crop_size=64, generator="unet_64", discriminator="patch_286")
    with pytest.raises(UsageError, match="num_downs 4"):
        UNetGenerator(num_downs=4)


@pytest.mark.parametrize("name, least", [("patch_16", 6), ("patch_70", 24), ("patch_286", 96)])
def test_the_smallest_crop_gives_one_logit(name, least):
    config = ModelConfig(generator="resnet_6", discriminator=name, crop_size=96, ndf=1, ngf=1)
    discriminator = build_discriminator(config).eval()
    assert discriminator(torch.zeros(1, 6, least, least)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"generator": "unet_255"}, "unet_256"),
        ({"gan_mode": "hinge", "label_smoothing": 0.1}, "no labels"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"ngf": 0}, "ngf 0"),
        ({"beta1": 1.0}, "beta1"),
    ],
)
def test_values_that_cannot_work_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        ModelConfig(**values)


def test_a_configuration_survives_its_dictionary():
    config = ModelConfig(generator="resnet_9", crop_size=128, norm="instance", label_smoothing=0.1)
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UsageError, match="unknown fields: colour"):
        ModelConfig.from_dict({"colour": 1})


@pytest.mark.parametrize("name", ["patch_16", "pixel"])
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_pairs_judged_together_get_the_logits_and_statistics_of_those_judged_one_after_the_other(name, norm):
    config = ModelConfig(discriminator=name, ndf=4, norm=norm, crop_size=64, generator="unet_64")
    together, apart = build_discriminator(config), build_discriminator(config)
    dark, bright = torch.rand(2, 6, 64, 64) - 1, torch.rand(2, 6, 64, 64)
    found, expected = together.logits_of_each(dark, bright), [apart(dark), apart(bright)]
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    for key, value in apart.state_dict().items():
        assert torch.allclose(together.state_dict()[key], value, atol=1e-6), key
