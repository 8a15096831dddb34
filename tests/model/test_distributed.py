"""Batch norm over two ranks, on two processes that are real."""

from __future__ import annotations

import datetime
import multiprocessing
from unittest import mock

import pytest
import torch
import torch.distributed
from formula_weights import images
from torch import nn

from p2p.model.config import ModelConfig
from p2p.model.distributed import SyncBatchNorm2d, data_parallel, synchronise_batch_norm
from p2p.model.pix2pix import Pix2Pix

MODES = ("vanilla", "wgangp")


def model(gan_mode: str, wrap=None) -> Pix2Pix:
    config = ModelConfig(
        generator="unet_64", discriminator="patch_16", crop_size=64, ngf=4, ndf=4, dropout=False, gan_mode=gan_mode
    )
    return Pix2Pix(config, wrap=wrap)


def data(rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pairs a rank; without a rank, those of both."""
    pairs = images("inputs", 4, 3, 64), images("targets", 4, 3, 64)
    return pairs if rank is None else tuple(side[2 * rank : 2 * rank + 2] for side in pairs)


def same_penalty_position():
    """The gradient penalty draws a position for each pair, which would differ between ranks and the whole batch."""
    return mock.patch.object(torch, "rand", lambda *shape, **options: torch.full(shape, 0.5))


def state_after_a_step(trained: Pix2Pix, rank: int | None) -> dict[str, torch.Tensor]:
    losses = trained.update(*data(rank))
    parts = trained.state()._asdict()
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return {name: value.clone().contiguous() for name, value in (tensors | losses).items()}


def steps_of_rank(rank: int, folder: str) -> dict[str, dict[str, torch.Tensor]]:
    """What each objective's first step makes of a model, on one of two ranks."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )

    def wrap(module: nn.Module) -> nn.Module:
        synchronise_batch_norm(module)
        return data_parallel(module)

    try:
        with same_penalty_position():
            return {mode: state_after_a_step(model(mode, wrap), rank) for mode in MODES}
    finally:
        torch.distributed.destroy_process_group()


def second_rank(folder: str) -> None:
    torch.set_num_threads(1)
    torch.save(steps_of_rank(1, folder), f"{folder}/second.pt")


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    second = multiprocessing.get_context("fork").Process(target=second_rank, args=(str(folder),))  # torch is loaded
    second.start()
    first = steps_of_rank(0, str(folder))
    second.join()
    return first, torch.load(folder / "second.pt")


@pytest.mark.parametrize("gan_mode", MODES)
def test_two_ranks_take_the_step_that_one_takes_with_twice_the_batch(on_two_ranks, gan_mode):
    with same_penalty_position():
        whole = state_after_a_step(model(gan_mode), None)
    one, other = (states[gan_mode] for states in on_two_ranks)
    assert one.keys() == whole.keys()
    compared = [name for name in whole if name.endswith((".exp_avg", "running_mean", "running_var"))]
    assert len(compared) > 20
    for name in compared:
        assert torch.equal(one[name], other[name]), name
        assert (one[name] - whole[name]).norm() <= 1e-3 * whole[name].norm(), name
    for name in ("g_gan", "g_l1", "d_real", "d_fake"):
        assert (one[name] + other[name]).item() / 2 == pytest.approx(whole[name].item(), rel=1e-4)
    tracked = {name: value.item() for name, value in one.items() if name.endswith("num_batches_tracked")}
    passes = 3 if gan_mode == "vanilla" else 4  # generated, real, (between them,) generated again: each by itself
    assert tracked == {name: passes if name.startswith("discriminator") else 1 for name in tracked}


def test_parameters_names_and_evaluation_stay(tmp_path):
    plain, changed = model("vanilla").generator, model("vanilla").generator
    before = dict(changed.named_parameters())
    synchronise_batch_norm(changed)
    assert any(isinstance(module, SyncBatchNorm2d) for module in changed.modules())
    assert all(parameter is before[name] for name, parameter in changed.named_parameters())
    assert list(changed.state_dict()) == list(plain.state_dict())
    inputs, _ = data()
    with torch.no_grad():
        assert torch.equal(changed.eval()(inputs), plain.eval()(inputs))
