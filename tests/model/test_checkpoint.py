import io
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from formula_weights import fill, images

from p2p.errors import CheckpointError
from p2p.model.checkpoint import load_generator, load_trainer, resolve_checkpoint, save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.networks import build_discriminator, build_generator
from p2p.model.pix2pix import Pix2Pix
from p2p.storage.filesystems import read_json, write_bytes, write_json

CONFIG = ModelConfig(generator="unet_64", crop_size=64, ngf=4, ndf=4)


def trained():
    model = Pix2Pix(CONFIG)
    model.update(images("inputs", 1, 3, 64), images("targets", 1, 3, 64))
    return model


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, the first of them the best."""
    model = trained()
    for epoch in (1, 2):
        save_checkpoint(f"{tmp_path}/checkpoints/epoch_{epoch:04d}", model, {"epoch": epoch}, {"step": epoch})
        model.update(images("inputs", 1, 3, 64), images("targets", 1, 3, 64))
    write_json(f"{tmp_path}/best.json", {"checkpoint": "checkpoints/epoch_0001"})
    write_json(f"{tmp_path}/latest.json", {"checkpoint": "checkpoints/epoch_0002"})
    return str(tmp_path)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("address", ["{}", "memory://{}"])
def test_training_goes_on_from_a_checkpoint_folder(tmp_path, address):
    folder = address.format(f"{tmp_path}/epoch_0001")
    model = trained()
    meta = save_checkpoint(folder, model, {"epoch": 1, "metrics": {"val_l1": 0.1}}, {"best": 0.5})
    assert read_json(f"{folder}/meta.json") == meta
    assert meta["model"] == CONFIG.to_dict() and meta["epoch"] == 1 and len(meta["checkpoint_id"]) == 16
    other = Pix2Pix(CONFIG, seed=5)
    assert load_trainer(folder, other) == {"best": 0.5}
    torch.manual_seed(0)
    expected = model.update(images("a", 1, 3, 64), images("b", 1, 3, 64))
    torch.manual_seed(0)
    found = other.update(images("a", 1, 3, 64), images("b", 1, 3, 64))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert same_weights(model.generator, other.generator) and same_weights(model.discriminator, other.discriminator)


def test_a_generator_loads_in_eval_mode_and_knows_what_it_is(tmp_path):
    model = trained()
    meta = save_checkpoint(str(tmp_path), model, {}, {})
    generator = load_generator(str(tmp_path))
    assert not generator.training
    assert generator.config == CONFIG
    assert generator.checkpoint_id == meta["checkpoint_id"]
    assert same_weights(generator, model.generator)
    assert load_generator(tmp_path / "generator.safetensors").config == CONFIG


def test_addresses_of_a_run_lead_to_its_checkpoints(run):
    epochs = {
        suffix: resolve_checkpoint(run + suffix).meta["epoch"] for suffix in ("", "#best", "#latest", "#epoch_0002")
    }
    assert epochs == {"": 1, "#best": 1, "#latest": 2, "#epoch_0002": 2}
    resolved = resolve_checkpoint(f"{run}/checkpoints/epoch_0002")
    assert resolved.kind == "checkpoint" and resolved.folder_uri == f"{run}/checkpoints/epoch_0002"
    assert resolve_checkpoint(f"{run}/checkpoints/epoch_0002/generator.safetensors").kind == "safetensors"
    assert load_generator(f"{run}#latest").checkpoint_id != load_generator(run).checkpoint_id


def test_what_is_not_a_checkpoint_is_told_in_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = {
        f"{tmp_path}/absent": "nothing is there",
        f"{tmp_path}/absent#best": "nothing is there",
        f"{tmp_path}/empty": "neither a run",
        f"{run}#epoch_0009": "no finished checkpoint",
    }
    (tmp_path / "checkpoints/epoch_0002/meta.json").unlink()
    cases[f"{run}/checkpoints/epoch_0002"] = "not written to its end"
    cases[f"{run}#latest"] = "no finished checkpoint"
    (tmp_path / "best.json").write_text("{}")
    cases[run] = "names no checkpoint"
    for address, message in cases.items():
        with pytest.raises(CheckpointError, match=message) as error:
            load_generator(address)
        assert "\n" not in str(error.value)


def test_damage_is_noticed(run):
    folder = f"{run}/checkpoints/epoch_0001"
    with open(f"{folder}/generator.safetensors", "r+b") as file:
        file.seek(-8, 2)
        file.write(b"12345678")
    with pytest.raises(CheckpointError, match="damaged"):
        load_generator(folder)
    with pytest.raises(CheckpointError, match="damaged"):
        load_trainer(folder, Pix2Pix(CONFIG))
    with open(f"{folder}/generator.safetensors", "r+b") as file:
        file.truncate(1000)
    for address in (folder, f"{folder}/generator.safetensors"):
        with pytest.raises(CheckpointError, match="safetensors"):
            load_generator(address)
    write_json(f"{folder}/meta.json", {"format": "other"})
    with pytest.raises(CheckpointError, match="format is 'other'"):
        load_generator(folder)


def test_training_does_not_go_on_with_another_architecture(tmp_path):
    save_checkpoint(str(tmp_path), trained(), {}, {})
    with pytest.raises(CheckpointError, match="ngf is 4 there and 8 here"):
        load_trainer(str(tmp_path), Pix2Pix(ModelConfig(**{**CONFIG.to_dict(), "ngf": 8})))
    other_rate = Pix2Pix(ModelConfig(**{**CONFIG.to_dict(), "lr": 1e-5, "lambda_l1": 10.0}))
    assert load_trainer(str(tmp_path), other_rate) == {}


def saved_elsewhere(network, uri, change=lambda weights: weights):
    """A file as pytorch-CycleGAN-and-pix2pix leaves it."""
    buffer = io.BytesIO()
    torch.save(change(network.state_dict()), buffer)
    write_bytes(str(uri), buffer.getvalue())
    return str(uri)


@pytest.mark.parametrize(
    "values",
    [
        {"generator": "unet_64", "crop_size": 64},
        {"generator": "unet_128", "crop_size": 128, "norm": "instance", "output_channels": 1},
        {"generator": "unet_256", "norm": "none", "input_channels": 4},
        {"generator": "unet_512", "crop_size": 512, "ngf": 2},
        {"generator": "resnet_6", "dropout": False, "norm": "instance"},
        {"generator": "resnet_9", "dropout": True, "input_channels": 1},
    ],
)
def test_the_architecture_of_a_bare_file_is_read_off_its_tensors(tmp_path, values):
    config = ModelConfig(**{"ngf": 4, **values})
    network = fill(build_generator(config), "generator").eval()
    loaded = load_generator(saved_elsewhere(network, tmp_path / "latest_net_G.pth"))
    assert loaded.config == config
    assert same_weights(loaded, network)
    side = config.stride
    x = images("inputs", 1, config.input_channels, max(side, 8))
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


def test_parallel_prefixes_and_statistics_of_old_instance_norms_are_no_obstacle(tmp_path):
    config = ModelConfig(generator="unet_64", crop_size=64, ngf=4, norm="instance")
    network = build_generator(config)

    def age(weights):
        old = dict(weights)
        old["model.model.1.model.2.running_mean"] = torch.zeros(8)
        old["model.model.1.model.2.running_var"] = torch.ones(8)
        return {f"module.{name}": value for name, value in old.items()}

    # A norm that keeps statistics but has no weight is an instance norm, whatever its statistics are called.
    loaded = load_generator(saved_elsewhere(network, tmp_path / "old.pth", age))
    assert loaded.config == config and same_weights(loaded, network)


def test_a_bare_safetensors_file_works_like_a_pth(tmp_path):
    network = build_generator(CONFIG)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "g.safetensors")
    assert same_weights(load_generator(str(tmp_path / "g.safetensors")), network)


def test_files_of_another_kind_are_named_for_what_they_are(tmp_path):
    network = build_generator(CONFIG)
    pixel = build_discriminator(ModelConfig(**{**CONFIG.to_dict(), "discriminator": "pixel"}))

    def without(weights):
        return {name: value for name, value in weights.items() if name != "model.model.3.bias"}

    def widened(weights):
        return {**weights, "model.model.3.bias": torch.zeros(5)}

    def extended(weights):
        return {**weights, "model.model.9.bias": torch.zeros(5)}

    cases = [
        (build_discriminator(CONFIG), dict, "patch discriminator for 6 channels"),
        (pixel, dict, "pixel discriminator"),
        (torch.nn.Linear(2, 2), dict, "its 2 tensors are called bias, weight"),
        (network, lambda weights: {"epoch": 3, "model": dict(weights)}, "found epoch, model"),
        (network, without, r"model\.model\.3\.bias is missing"),
        (network, widened, r"model\.model\.3\.bias has shape \(5,\), expected \(3,\)"),
        (network, extended, r"also has model\.model\.9\.bias"),
        (network, lambda _: network, "Python objects"),
    ]
    for index, (part, change, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message):
            load_generator(saved_elsewhere(part, tmp_path / f"{index}.pth", change))
    write_bytes(str(tmp_path / "text.pth"), b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"not a PyTorch file|Python objects"):
        load_generator(str(tmp_path / "text.pth"))


def test_a_run_holds_no_pickle(run, tmp_path):
    for file in (tmp_path / "checkpoints/epoch_0001").iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            safetensors.torch.load_file(file)
    assert np.array([file.suffix in (".json", ".safetensors") for file in tmp_path.rglob("*.*")]).all()


def test_with_an_average_the_generator_of_a_checkpoint_is_the_average_and_training_goes_on_beside_it(tmp_path):
    def step(model, images_seen):
        torch.manual_seed(images_seen)
        model.update(images("inputs", 1, 3, 64), images("targets", 1, 3, 64))
        model.update_average(1, images_seen)

    config = ModelConfig(**{**CONFIG.to_dict(), "ema_images": 20, "lr": 0.01})
    model, folder = Pix2Pix(config), f"{tmp_path}/checkpoints/epoch_0001_step_00000003"
    for images_seen in range(300, 303):
        step(model, images_seen)
    meta = save_checkpoint(folder, model, {"epoch": 1}, {})
    published = load_generator(f"{tmp_path}#epoch_0001_step_00000003")
    assert same_weights(published, model.average.generator) and published.checkpoint_id == meta["checkpoint_id"]
    assert same_weights(load_generator(f"{folder}/generator_without_ema.safetensors"), model.generator)
    assert not same_weights(published, model.generator)
    other = Pix2Pix(config, seed=5)
    load_trainer(folder, other)
    for each in (model, other):
        step(each, 303)
    assert same_weights(model.generator, other.generator) and same_weights(model.published, other.published)
    with pytest.raises(CheckpointError, match="ema_images is 20 there and 0 here"):
        load_trainer(folder, Pix2Pix(CONFIG))


def test_a_step_checkpoint_of_a_run_has_an_address(run, tmp_path):
    (tmp_path / "checkpoints/epoch_0002").rename(tmp_path / "checkpoints/epoch_0002_step_00000123")
    assert resolve_checkpoint(f"{run}#epoch_0002_step_00000123").meta["epoch"] == 2
    with pytest.raises(CheckpointError, match=r"epoch_0002_step_00000124: no finished checkpoint"):
        resolve_checkpoint(f"{run}#epoch_0002_step_00000124")
