import io
import json
import zipfile

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
        f"{run}#epoch_0009": "no complete checkpoint",
    }
    (tmp_path / "checkpoints/epoch_0002/meta.json").unlink()
    cases[f"{run}/checkpoints/epoch_0002"] = "incomplete checkpoint"
    cases[f"{run}#latest"] = "no complete checkpoint"
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


def tensors_of(network):
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def described(**changes):
    return json.dumps({**CONFIG.to_dict(), **changes})


ODD_DESCRIPTIONS = {
    "no JSON": ("{not json", "not valid JSON"),
    "a deep list": ("[" * 100_000, "nested too deeply"),
    "a deep object": ('{"a":' * 100_000, "nested too deeply"),
    "a list": ("[]", "found list"),
    "null": ("null", "found NoneType"),
    "a huge number": ('{"ngf": ' + "9" * 5000 + "}", "not valid JSON"),
    "a fraction": (described(ngf=1.5), r"ngf is 1\.5"),
    "text": (described(ngf="4"), "ngf is '4'"),
    "a list for a number": (described(ngf=[4]), r"ngf is \[4\]"),
    "true": (described(ngf=True), "ngf is True"),
    "nothing": (described(ngf=None), "ngf is None"),
    "more than 64 bits": (described(ngf=10**30), "ngf is 1000"),
    "more than a memory": (described(ngf=2**40), "ngf 1099511627776"),
    "a negative number": (described(crop_size=-64), "crop_size -64"),
    "no finite number": (described(lr=float("nan")), "lr is nan"),
    "beyond all numbers": (described(lambda_l1=10**400), "lambda_l1 is 1000"),
    "a word for true": (described(dropout="yes"), "dropout is 'yes'"),
    "bits as a fraction": (described(bits=8.0), r"bits is 8\.0"),
    "a number for a name": (described(generator=3), "generator is 3"),
    "an object for a name": (described(generator={}), r"generator is \{\}"),
    "two numbers for a colour": (described(input_palette=[[1, 2]]), "input_palette is"),
    "no colour": (described(input_palette=[[300, 0, 0]]), "three numbers from 0 to 255"),
    "no palette": (described(input_palette=5), "input_palette is 5"),
    "an unknown field": (described(colour=3), "unknown fields: colour"),
}


@pytest.mark.parametrize(("description", "message"), ODD_DESCRIPTIONS.values(), ids=ODD_DESCRIPTIONS)
def test_an_odd_description_of_a_model_is_told_in_one_line(tmp_path, description, message):
    uri = str(tmp_path / "g.safetensors")
    safetensors.torch.save_file(tensors_of(build_generator(CONFIG)), uri, {"p2p.model": description})
    with pytest.raises(CheckpointError, match=message) as error:
        load_generator(uri)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    write_json(str(tmp_path / "meta.json"), {})
    (tmp_path / "meta.json").write_text(
        f'{{"format": "p2p-checkpoint-1", "checkpoint_id": "", "model": {description}}}'
    )
    with pytest.raises(CheckpointError):
        load_generator(str(tmp_path))


def one_number(weights):
    return {
        name: torch.zeros((1,) * value.ndim, dtype=torch.half).expand(value.shape) for name, value in weights.items()
    }


def one_storage(weights):
    whole = torch.zeros(max(value.numel() for value in weights.values()), dtype=torch.half)
    return {name: whole[: value.numel()].view(value.shape) for name, value in weights.items()}


ODD_TENSORS = {
    "of one number": (one_number, "claim .* bytes and share"),
    "of one number, terabytes": (
        lambda _: {"w": torch.zeros(1).expand(10**12)},
        "claim 4000000000000 bytes and share 4",
    ),
    "of the same numbers": (one_storage, "claim .* bytes and share"),
    "overlapping": (lambda _: {"w": torch.zeros(2000).as_strided((1000, 1000), (1, 1))}, "claim 4000000 bytes"),
    "without numbers": (lambda weights: {name: value.to("meta") for name, value in weights.items()}, "no plain tensor"),
    "sparse": (lambda weights: {name: value.to_sparse() for name, value in weights.items()}, "no plain tensor"),
    "complex": (lambda weights: {name: value.to(torch.complex64) for name, value in weights.items()}, "complex64"),
    "whole numbers": (lambda weights: {name: value.to(torch.int32) for name, value in weights.items()}, "int32"),
    "without names": (lambda weights: dict(enumerate(weights.values())), "no plain tensor"),
    "in a list": (lambda weights: list(weights.values()), "found list"),
}


@pytest.mark.parametrize(("change", "message"), ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_odd_tensors_are_told_in_one_line_before_any_copy(tmp_path, change, message):
    uri = saved_elsewhere(build_generator(CONFIG), tmp_path / "g.pth", change)
    with pytest.raises(CheckpointError, match=message) as error:
        load_generator(uri)
    assert "\n" not in str(error.value)


def test_a_pth_that_was_compressed_is_refused_unread(tmp_path):
    uri, packed = saved_elsewhere(build_generator(CONFIG), tmp_path / "g.pth"), tmp_path / "packed.pth"
    with zipfile.ZipFile(uri) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for member in whole.infolist():
            small.writestr(member.filename, bytes(10**6) if "/data/" in member.filename else whole.read(member))
    with pytest.raises(CheckpointError, match="bytes that hold"):
        load_generator(str(packed))


def test_weights_saved_in_half_or_in_the_format_of_old_versions_load(tmp_path):
    network = build_generator(CONFIG)
    half = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    loaded = load_generator(saved_elsewhere(network, tmp_path / "half.pth", lambda _: half))
    assert torch.equal(loaded.state_dict()["model.model.0.weight"], half["model.model.0.weight"].float())
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same_weights(load_generator(str(tmp_path / "old.pth")), network)


@pytest.mark.parametrize("name", ["F4", "F6_E2M3"])
def test_numbers_that_torch_has_no_type_for_are_no_weights(tmp_path, name):
    header = json.dumps({"a": {"dtype": name, "shape": [4], "data_offsets": [0, 2 if name == "F4" else 3]}}).encode()
    (tmp_path / "g.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(2 if name == "F4" else 3)
    )
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_generator(str(tmp_path / "g.safetensors"))


@pytest.mark.parametrize("pointer", ["best", "latest"])
@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[]",
        "[" * 100_000,
        "{}",
        '{"checkpoint": 3}',
        '{"checkpoint": ""}',
        '{"checkpoint": "."}',
        '{"checkpoint": ".."}',
        '{"checkpoint": "../other/checkpoints/epoch_0001"}',
        '{"checkpoint": "checkpoints/../../other/checkpoints/epoch_0001"}',
        '{"checkpoint": "checkpoints/epoch_0001/.."}',
        '{"checkpoint": "/other/checkpoints/epoch_0001"}',
        '{"checkpoint": "s3://other/checkpoints/epoch_0001"}',
        '{"checkpoint": "zip://checkpoints/epoch_0001::s3://other/x.zip"}',
    ],
)
def test_a_run_names_no_checkpoint_but_its_own(run, tmp_path, pointer, content):
    (tmp_path / f"{pointer}.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"{pointer}\.json: ") as error:
        load_generator(f"{run}#{pointer}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["meta.json", "trainer.json"])
@pytest.mark.parametrize(
    "content", ["", "[]", "3", "[" * 100_000, '{"a":' * 100_000, '{"format": ["p2p-checkpoint-1"]']
)
def test_an_odd_file_of_a_checkpoint_is_told_in_one_line(run, name, content):
    folder = f"{run}/checkpoints/epoch_0001"
    write_bytes(f"{folder}/{name}", content.encode())
    with pytest.raises(CheckpointError, match=rf"{name}: "):
        load_trainer(folder, Pix2Pix(CONFIG))


@pytest.mark.parametrize(
    "changes", [{"model": []}, {"model": "unet"}, {"checkpoint_id": 3}, {"metrics": []}, {"data": 3}]
)
def test_fields_of_other_types_are_told_in_one_line(run, changes):
    folder = f"{run}/checkpoints/epoch_0001"
    write_json(f"{folder}/meta.json", read_json(f"{folder}/meta.json") | changes)
    with pytest.raises(CheckpointError, match=rf"meta\.json: {next(iter(changes))} is"):
        load_trainer(folder, Pix2Pix(CONFIG))


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
    assert same_weights(model.generator, other.generator) and same_weights(model.eval_generator, other.eval_generator)
    with pytest.raises(CheckpointError, match="ema_images is 20 there and 0 here"):
        load_trainer(folder, Pix2Pix(CONFIG))


def test_a_step_checkpoint_of_a_run_has_an_address(run, tmp_path):
    (tmp_path / "checkpoints/epoch_0002").rename(tmp_path / "checkpoints/epoch_0002_step_00000123")
    assert resolve_checkpoint(f"{run}#epoch_0002_step_00000123").meta["epoch"] == 2
    with pytest.raises(CheckpointError, match=r"epoch_0002_step_00000124: there is no complete checkpoint"):
        resolve_checkpoint(f"{run}#epoch_0002_step_00000124")
