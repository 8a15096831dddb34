"""Checkpoints: self-describing folders of safetensors and JSON, and generator files saved by other programs.

    CHECKPOINT/generator.safetensors  discriminator.safetensors  trainer.safetensors  trainer.json  meta.json

`generator.safetensors` is used by translation and evaluation. If training keeps a moving average it contains the
average, and `generator_without_ema.safetensors` the weights with which training continues. `meta.json` is written last
and removed first: a folder without it is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from p2p.documents import check_fields, parse_json_object
from p2p.errors import CheckpointError, DamagedFileError, NotFoundError, UsageError
from p2p.model.checkpoint_names import CHECKPOINT_NAME, CHECKPOINTS, META, is_checkpoint_path, parse_checkpoint_name
from p2p.model.config import ModelConfig
from p2p.model.legacy import infer_config, plain_weights, read_pth
from p2p.model.networks import Generator, empty_generator
from p2p.model.pix2pix import Pix2Pix, State
from p2p.storage.filesystems import (
    exists,
    join,
    list_names,
    read_bytes,
    read_json_object,
    remove,
    write_bytes,
    write_json,
)
from p2p.storage.lease import Fence

FORMAT = "p2p-checkpoint-1"
GENERATOR, DISCRIMINATOR = "generator.safetensors", "discriminator.safetensors"
WITHOUT_EMA = "generator_without_ema.safetensors"
TRAINER, TRAINER_JSON = "trainer.safetensors", "trainer.json"
BEST, LATEST = "best.json", "latest.json"
"""Files of a run that name a checkpoint: {"checkpoint": "checkpoints/epoch_0010", ...}."""

_FREE_TO_CHANGE = {
    *("gan_mode", "lambda_l1", "label_smoothing", "lr", "beta1"),
    *("crop_size", "direction", "precision"),
}
"""What of a model shapes neither its networks nor its average."""
_META_FIELDS = {"checkpoint_id": str, "model": dict, "metrics": dict, "data": dict}
_MODEL_KEY = "p2p.model"
_FRAGMENT = re.compile(rf"(.+)#(latest|best|{CHECKPOINT_NAME})")
_ID_DIGITS = 16


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """The generator file behind an address."""

    kind: Literal["checkpoint", "safetensors", "pth"]
    """A folder written by p2p, or a single generator file."""
    generator_uri: str
    """Address of the file with the generator's weights."""
    meta: dict[str, Any] | None
    """`meta.json` of a checkpoint folder."""

    @property
    def folder_uri(self) -> str | None:
        """The checkpoint folder, or None for a single file."""
        return self.generator_uri.rpartition("/")[0] if self.kind == "checkpoint" else None


def save_checkpoint(
    folder_uri: str,
    pix2pix: Pix2Pix,
    meta: Mapping[str, Any],
    trainer: Mapping[str, Any],
    fence: Fence | None = None,
) -> dict[str, Any]:
    """Write a checkpoint folder, for translation and for continuing training; returns the content of `meta.json`.

    `format`, `model` and `checkpoint_id` are added to `meta` (epoch, step, images_seen, metrics, data, ...); `trainer`
    is returned by `load_trainer`. Both must be JSON values. Raises StorageError, and LeaseLostError where the job of
    `fence` no longer holds its output.
    """
    remove(join(folder_uri, META))
    state = pix2pix.state()
    model = pix2pix.config.to_dict()
    generator = _to_bytes(state.average or state.generator, model)
    write_bytes(join(folder_uri, GENERATOR), generator, fence=fence)
    if state.average:
        write_bytes(join(folder_uri, WITHOUT_EMA), _to_bytes(state.generator, {**model, "ema_images": 0}), fence=fence)
    write_bytes(join(folder_uri, DISCRIMINATOR), _to_bytes(state.discriminator, model), fence=fence)
    write_bytes(join(folder_uri, TRAINER), _to_bytes(state.trainer, model), fence=fence)
    write_json(join(folder_uri, TRAINER_JSON), dict(trainer), fence)
    whole = {**meta, "format": FORMAT, "model": model, "checkpoint_id": _checkpoint_id(generator)}
    write_json(join(folder_uri, META), whole, fence)
    return whole


def load_trainer(folder_uri: str, pix2pix: Pix2Pix) -> dict[str, Any]:
    """Load a checkpoint folder's weights and optimiser state into `pix2pix`; returns what was saved as `trainer`.

    Raises CheckpointError if the folder is incomplete or damaged, or if its model has other networks.
    """
    meta, state, trainer = read_checkpoint(folder_uri)
    saved, present = _config_of(meta["model"], folder_uri).to_dict(), pix2pix.config.to_dict()
    different = [
        f"{name} is {value} there and {present[name]} here"
        for name, value in saved.items()
        if value != present[name] and name not in _FREE_TO_CHANGE
    ]
    if different:
        raise CheckpointError(f"{folder_uri}: of another model: {'; '.join(different)}")
    try:
        pix2pix.load_state(state)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder_uri}: its tensors do not fit the model: {error}") from None
    return trainer


def read_checkpoint(folder_uri: str) -> tuple[dict[str, Any], State, dict[str, Any]]:
    """`meta`, tensors and `trainer` of a checkpoint folder, every file of which is read completely.

    Raises CheckpointError, NotFoundError or DamagedFileError if training cannot continue from it.
    """
    meta = _read_meta(folder_uri)
    data = _read(join(folder_uri, GENERATOR))
    _check_id(_checkpoint_id(data), meta, folder_uri)
    average: dict[str, Tensor] = {}
    generator = _from_safetensors(data, join(folder_uri, GENERATOR))
    if _config_of(meta["model"], folder_uri).ema_images:
        average, generator = generator, _tensors(folder_uri, WITHOUT_EMA)
    state = State(generator, _tensors(folder_uri, DISCRIMINATOR), _tensors(folder_uri, TRAINER), average)
    return meta, state, _read_object(join(folder_uri, TRAINER_JSON))


def _tensors(folder_uri: str, name: str) -> dict[str, Tensor]:
    uri = join(folder_uri, name)
    return _from_safetensors(_read(uri), uri)


def resolve_checkpoint(uri: str) -> ResolvedCheckpoint:
    """Find the generator behind an address.

    A run (its best checkpoint; `RUN#latest`, `RUN#best`, `RUN#epoch_0010`, `RUN#epoch_0010_step_00005000`), a
    checkpoint folder, or a `.safetensors` or `.pth` file, on any file system. Raises CheckpointError with what is there
    instead.
    """
    match = _FRAGMENT.fullmatch(uri)
    run, which = (match[1], match[2]) if match else (uri, None)
    if not exists(run):
        raise CheckpointError(f"{run}: nothing is there")
    if which is not None:
        return _in_run(run, which)
    if uri.endswith((".safetensors", ".pth")):
        return ResolvedCheckpoint("pth" if uri.endswith(".pth") else "safetensors", uri, None)
    if exists(join(uri, META)):
        return ResolvedCheckpoint("checkpoint", join(uri, GENERATOR), _read_meta(uri))
    for name, which in ((BEST, "best"), (LATEST, "latest")):
        if exists(join(uri, name)):
            return _in_run(uri, which)
    if exists(join(uri, GENERATOR)):
        raise CheckpointError(f"{uri}: an incomplete checkpoint ({META} is missing)")
    raise CheckpointError(
        f"{uri}: neither a run ({LATEST}), nor a checkpoint folder ({META}), nor a .safetensors or .pth file"
    )


def list_checkpoints(run: str) -> list[str]:
    """The addresses of a run's whole checkpoints, oldest first."""
    folder = join(run, CHECKPOINTS)
    parsed = {name: parse_checkpoint_name(name) for name in list_names(folder)}
    ascending = sorted((place, name) for name, place in parsed.items() if place is not None)
    return [join(folder, name) for _, name in ascending if exists(join(folder, name, META))]


def _in_run(run: str, which: str) -> ResolvedCheckpoint:
    if which in ("best", "latest"):
        pointer = join(run, BEST if which == "best" else LATEST)
        if not exists(pointer):
            raise CheckpointError(f"{run}: the run has no {which} checkpoint ({which}.json is missing)")
        name = _read_object(pointer).get("checkpoint")
        if not is_checkpoint_path(name):
            raise CheckpointError(f"{pointer}: names no checkpoint of its run")
        folder = join(run, str(name))
    else:
        folder = join(run, CHECKPOINTS, which)
    return ResolvedCheckpoint("checkpoint", join(folder, GENERATOR), _read_meta(folder))


def load_generator(uri: str, *, device: str | torch.device = "cpu") -> Generator:
    """The generator of a run, checkpoint folder or generator file (as `resolve_checkpoint`), in eval mode.

    It maps (B, C, H, W) float in [-1, 1] to the same; its `encode` converts images, colours or label maps, to such
    inputs. It has `config` (a ModelConfig) and `checkpoint_id`. No code in the file is unpickled; every name and shape
    is checked. Raises CheckpointError with the first that does not fit.

    Example:
        >>> import tempfile, torch
        >>> from p2p import UNetGenerator, load_generator
        >>> file = tempfile.NamedTemporaryFile(suffix=".pth")
        >>> torch.save(UNetGenerator(num_downs=6, ngf=4).state_dict(), file.name)
        >>> generator = load_generator(file.name)
        >>> generator.config.generator, generator(torch.zeros(1, 3, 64, 64)).shape
        ('unet_64', torch.Size([1, 3, 64, 64]))

    """
    uri = str(uri)
    resolved = resolve_checkpoint(uri)
    data = _read(resolved.generator_uri)
    if resolved.kind == "pth":
        config, weights = None, read_pth(data, uri)
    else:  # the tensors first: reading them checks the header
        weights = _from_safetensors(data, resolved.generator_uri)
        config = _read_config(data, resolved.generator_uri)
    checkpoint_id = _checkpoint_id(data)
    if resolved.meta is not None:
        _check_id(checkpoint_id, resolved.meta, resolved.generator_uri)
        config = _config_of(resolved.meta["model"], resolved.generator_uri)
    weights = plain_weights(weights)
    config = config or infer_config(weights, uri)
    generator = empty_generator(config)
    _check_fit(generator, weights, config, resolved.generator_uri)
    generator.load_state_dict(weights, assign=True)
    generator.checkpoint_id = checkpoint_id
    return generator.float().to(device).eval()


def _check_fit(network: nn.Module, weights: Mapping[str, Tensor], config: ModelConfig, uri: str) -> None:
    wanted = network.state_dict()
    what = f"{config.generator} (ngf {config.ngf}, norm {config.norm})"
    for name, tensor in wanted.items():
        if name not in weights:
            raise CheckpointError(f"{uri}: does not fit {what}: {name} is missing")
        if weights[name].shape != tensor.shape:
            shapes = f"{tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
            raise CheckpointError(f"{uri}: does not fit {what}: {name} has shape {shapes}")
        if weights[name].is_floating_point() != tensor.is_floating_point() or weights[name].is_complex():
            raise CheckpointError(f"{uri}: does not fit {what}: {name} is of type {weights[name].dtype}")
    extra = next((name for name in weights if name not in wanted), None)
    if extra is not None:
        raise CheckpointError(f"{uri}: does not fit {what}: it also has {extra}")


def _checkpoint_id(generator: bytes) -> str:
    return hashlib.sha256(generator).hexdigest()[:_ID_DIGITS]


def _check_id(checkpoint_id: str, meta: Mapping[str, Any], uri: str) -> None:
    if checkpoint_id != meta.get("checkpoint_id"):
        raise CheckpointError(f"{uri}: the generator is not the one {META} describes; the checkpoint is damaged")


def _read_meta(folder_uri: str) -> dict[str, Any]:
    uri = join(folder_uri, META)
    try:
        meta = _read_object(uri)
    except NotFoundError:
        raise CheckpointError(f"{folder_uri}: there is no complete checkpoint ({META} is missing)") from None
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{uri}: format is {reprlib.repr(meta.get('format'))}, expected {FORMAT!r}")
    try:
        check_fields({"checkpoint_id": None, "model": None} | meta, _META_FIELDS)
    except ValueError as error:
        raise CheckpointError(f"{uri}: {error}, which p2p does not write") from None
    return meta


def _read_object(uri: str) -> dict[str, Any]:
    try:
        return read_json_object(uri)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from None


def _config_of(values: Mapping[str, Any], uri: str) -> ModelConfig:
    try:
        return ModelConfig.from_dict(values)
    except UsageError as error:
        raise CheckpointError(f"{uri}: its model description is not usable: {error}") from None


def _read(uri: str) -> bytes:
    try:
        return read_bytes(uri)
    except NotFoundError as error:
        raise CheckpointError(str(error)) from None


def _to_bytes(tensors: Mapping[str, Tensor], model: Mapping[str, Any]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data: bytes = safetensors.torch.save(plain, metadata={_MODEL_KEY: json.dumps(dict(model), sort_keys=True)})
    return data


def _from_safetensors(data: bytes, uri: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise CheckpointError(f"{uri}: not a complete safetensors file: {error}") from None
    return tensors


def _read_config(data: bytes, uri: str) -> ModelConfig | None:
    """The configuration in a safetensors header (its length, then JSON), or None if p2p did not write the file."""
    try:
        header = parse_json_object(data[8 : 8 + int.from_bytes(data[:8], "little")], f"{uri}: its header")
        written = (header.get("__metadata__") or {}).get(_MODEL_KEY)
        return None if written is None else _config_of(parse_json_object(written, f"{uri}: its {_MODEL_KEY}"), uri)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from None
