import json
from pathlib import Path

import pytest
import torch
from formula_weights import fill, images
from torch.nn.parallel import DistributedDataParallel

from p2p.model.config import ModelConfig
from p2p.model.losses import GanObjective
from p2p.model.pix2pix import Pix2Pix

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())
SMALL = {"generator": "unet_64", "crop_size": 64, "ngf": 4, "ndf": 4, "dropout": False}


def small_model(**values):
    return Pix2Pix(ModelConfig(**{**SMALL, **values}))


def batch(config, count=2):
    return images("inputs", count, 3, config.crop_size), images("targets", count, 3, config.crop_size)


def probe(tensor):
    flat = tensor.detach().flatten()
    return torch.stack([flat[int(i * (len(flat) - 1) / 15)] for i in range(16)])


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: "-".join(map(str, case["config"].values())))
def test_networks_and_updates_agree_with_the_reference_implementation(case):
    """Numbers recorded from pytorch-CycleGAN-and-pix2pix with the same weights, inputs and seed of the noise."""
    model = Pix2Pix(ModelConfig(**case["config"]))
    fill(model.generator, "generator")
    fill(model.discriminator, "discriminator")
    inputs, targets = batch(model.config)
    model.train(False)
    with torch.no_grad():
        outputs, logits = model.generator(inputs), model.discriminator(torch.cat([inputs, targets], 1))
    assert list(logits.shape) == case["logits_shape"]
    assert torch.allclose(probe(outputs.contiguous()), torch.tensor(case["outputs"]), atol=1e-5)
    assert torch.allclose(probe(logits.contiguous()), torch.tensor(case["logits"]), atol=1e-5)

    model.train()
    torch.manual_seed(7)
    first = {name: value.item() for name, value in model.update(inputs, targets).items()}
    assert first == pytest.approx(case["losses"][0], rel=1e-4)
    state = model.state()
    for name, (index, expected) in case["weights_after_first_step"].items():
        part, _, key = name.partition(".")
        value = getattr(state, part)[key].contiguous().flatten()[index].item()
        assert value == pytest.approx(expected, abs=2e-6, rel=1e-5), name
    second = {name: value.item() for name, value in model.update(inputs, targets).items()}
    assert second == pytest.approx(case["losses"][1], rel=1e-3)


def test_the_discriminator_is_updated_first_and_the_generator_meets_the_new_one():
    model = small_model(norm="none", lr=0.01)
    inputs, targets = batch(model.config)
    with torch.no_grad():
        pair = torch.cat([inputs, model.generator(inputs)], 1)
        before = GanObjective().fool(model.discriminator(pair))
    losses = model.update(inputs, targets)
    with torch.no_grad():
        after = GanObjective().fool(model.discriminator(pair))
    assert losses["g_gan"].item() == pytest.approx(after.item(), rel=1e-5)
    assert losses["g_gan"].item() != pytest.approx(before.item(), rel=1e-5)


def test_losses_are_detached_scalars_in_the_published_units():
    model = small_model(lambda_l1=7.0)
    model.train(False)
    inputs, targets = batch(model.config)
    with torch.no_grad():
        outputs = model.generator(inputs)
        d_real = model.discriminator(torch.cat([inputs, targets], 1))
    losses = model.update(inputs, targets)
    assert set(losses) == {"g_gan", "g_l1", "d_real", "d_fake"}
    assert all(loss.shape == () and not loss.requires_grad and loss.dtype == torch.float32 for loss in losses.values())
    assert losses["g_l1"].item() == pytest.approx(7 * (outputs - targets).abs().mean().item(), rel=1e-5)
    assert losses["d_real"].item() == pytest.approx(torch.nn.functional.softplus(-d_real).mean().item(), rel=1e-5)


def test_real_and_generated_pairs_keep_their_own_batch_statistics():
    model = small_model()
    inputs, targets = batch(model.config)
    model.update(inputs, targets)
    norms = [module for module in model.discriminator.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert [norm.num_batches_tracked.item() for norm in norms] == [3, 3, 3]  # generated, real, generated again


def test_training_continues_from_a_saved_state_as_if_never_interrupted():
    one = small_model()
    inputs, targets = batch(one.config)
    one.update(inputs, targets)
    two = Pix2Pix(one.config, seed=9)
    state = one.state()
    copied = type(state)(*({name: tensor.clone().contiguous() for name, tensor in part.items()} for part in state))
    two.load_state(copied)
    expected, found = one.update(inputs, targets), two.update(inputs, targets)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(
        torch.equal(a, b)
        for mine, theirs in zip(one.state(), two.state(), strict=True)
        for a, b in zip(mine.values(), theirs.values(), strict=True)
    )


def test_a_fresh_state_loads_too():
    one, two = small_model(), small_model()
    two.load_state(one.state())
    inputs, targets = batch(one.config)
    assert torch.equal(one.update(inputs, targets)["g_l1"], two.update(inputs, targets)["g_l1"])


@pytest.mark.parametrize("is_tensor", [False, True], ids=["", "as on a GPU"])
def test_a_learning_rate_of_zero_changes_no_weight(is_tensor):
    model = small_model()
    if is_tensor:
        for adam in (model._generator_adam, model._discriminator_adam):
            adam.param_groups[0]["lr"] = torch.tensor(model.config.lr)
        model.load_state(model.state())
        rate = model._generator_adam.param_groups[0]["lr"]
        model.update(*batch(model.config))
    before = [parameter.clone() for parameter in model.generator.parameters()]
    model.set_learning_rate(0.0)
    assert not is_tensor or model._generator_adam.param_groups[0]["lr"] is rate, "a recorded step reads this one"
    model.update(*batch(model.config))
    assert all(torch.equal(a, b) for a, b in zip(before, model.generator.parameters(), strict=True))


@pytest.mark.parametrize("gan_mode", ["vanilla", "lsgan", "hinge", "wgangp"])
def test_every_objective_trains_in_bfloat16_and_keeps_float32_weights(gan_mode):
    model = small_model(gan_mode=gan_mode, precision="bf16", dropout=True)
    exact = small_model(gan_mode=gan_mode, dropout=True)
    inputs, targets = batch(model.config)
    torch.manual_seed(0)
    losses = model.update(inputs, targets)
    torch.manual_seed(0)
    expected = exact.update(inputs, targets)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05, abs=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in model.generator.parameters())


def test_twenty_updates_bring_the_output_to_a_constant_target():
    model = small_model(lr=2e-3, dropout=True)
    inputs, _ = batch(model.config)
    targets = torch.full_like(inputs, 0.5)
    losses = [model.update(inputs, targets)["g_l1"].item() for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("gan_mode", ["vanilla", "wgangp"])
def test_data_parallel_wrappers_enter_through_wrap_and_change_nothing(process_group, gan_mode):
    plain = small_model(gan_mode=gan_mode)
    wrapped = Pix2Pix(plain.config, wrap=DistributedDataParallel)
    inputs, targets = batch(plain.config)
    for step in range(2):
        torch.manual_seed(step)
        expected = plain.update(inputs, targets)
        torch.manual_seed(step)
        found = wrapped.update(inputs, targets)
        assert all(torch.allclose(expected[name], found[name], rtol=1e-4) for name in expected)
    assert list(wrapped.generator.state_dict()) == list(plain.generator.state_dict())


def averaged(half_life, steps=6, **values):
    """A model that kept an average through some steps of two images, and its weights after each."""
    model = small_model(ema_images=half_life, lr=0.01, **values)
    inputs, targets = batch(model.config)
    history = []
    for step in range(steps):
        model.update(inputs, targets)
        model.update_average(2, 2 * step)
        history.append({name: value.clone() for name, value in model.generator.state_dict().items()})
    return model, history


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_average_follows_weights_and_running_statistics_by_its_half_life(norm):
    model, history = averaged(3, norm=norm)
    found = model.average.generator.state_dict()
    for name, last in history[-1].items():
        expected = history[0][name]
        for step, later in enumerate(history[1:], 1):
            value = later[name]
            # At first the half-life is a twentieth of the images seen; 3 images only after 60.
            kept = 0.5 ** (2 / min(3, 0.05 * 2 * step))
            expected = value if not value.is_floating_point() else kept * expected + (1 - kept) * value
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-6), name
        assert found[name].is_floating_point() or torch.equal(found[name], last)


def test_the_half_life_means_the_same_for_every_batch_size():
    average = small_model(ema_images=1000).average
    assert average.kept(1000, 10**6) == pytest.approx(0.5)
    assert average.kept(8, 10**6) == pytest.approx(average.kept(1, 10**6) ** 8)
    assert average.kept(4, 0) == 0.0 and average.kept(50, 1000) == pytest.approx(0.5)


def test_the_average_is_what_is_published_and_does_not_change_training():
    model, history = averaged(10**6)
    plain, expected = averaged(0)
    assert plain.eval_generator is plain.generator and plain.average is None
    assert model.eval_generator is model.average.generator and not model.eval_generator.training
    assert all(torch.equal(a, b) for a, b in zip(history[-1].values(), expected[-1].values(), strict=True))
    weight = "model.model.0.weight"
    assert not torch.equal(model.eval_generator.state_dict()[weight], history[-1][weight])


def test_an_averaged_model_continues_from_a_saved_state():
    one, _ = averaged(100)
    two = Pix2Pix(one.config, seed=9)
    two.load_state(one.state())
    inputs, targets = batch(one.config)
    for model in (one, two):
        model.update(inputs, targets)
        model.update_average(2, 12)
    assert all(
        torch.equal(a, b)
        for mine, theirs in zip(one.state(), two.state(), strict=True)
        for a, b in zip(mine.values(), theirs.values(), strict=True)
    )


def test_a_single_broken_number_in_either_network_is_seen():
    model = small_model()
    assert model.is_finite()
    with torch.no_grad():
        next(model.discriminator.parameters()).data[0, 0, 0, 0] = float("nan")
    assert not model.is_finite()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_in_another_memory_layout_moves_the_right_weights(layout):
    """Torch's fused step walks weights and gradients in memory order, without looking at their strides."""
    model = small_model()
    weight = next(parameter for parameter in model.generator.parameters() if parameter.dim() == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    plain = torch.nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    expected = torch.optim.Adam([plain], lr=model.config.lr, betas=(model.config.beta1, 0.999))
    for step in range(3):
        plain.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad = plain.grad.to(memory_format=layout)
        expected.step()
        model._generator_adam.step()
    torch.testing.assert_close(weight.detach(), plain.detach(), rtol=0, atol=1e-7)
