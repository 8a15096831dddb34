"""One image in, one image out: the Python entrance to a trained generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2p.errors import UsageError
from p2p.model.checkpoint import load_generator
from p2p.model.engine import Engine, NormMode, choose_device, choose_precision
from p2p.model.sizing import SizeMode, default_overlap, plan_image

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.uint8]

_BATCH_SIZE = 8
_PIL_MODES = {1: "L", 3: "RGB"}


class Translator:
    """Translates images of any size from 1x1 up; the output has the size and kind of the input.

    checkpoint: a run, checkpoint folder or generator file, as for `load_generator`.
    device: auto, cpu, cuda, or any torch device.
    size_mode: tile (overlapping tiles, blended), resize (to one tile and back) or pad (reflection to the network's
    stride, cropped back).
    tile_size: pixels; the size trained on unless given.
    overlap: pixels; `default_overlap` unless given.
    norm_mode, dropout, seed: as for Engine.
    Raises UsageError and CheckpointError.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        device: str | torch.device = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        size_mode: SizeMode = "tile",
        tile_size: int | None = None,
        overlap: int | None = None,
        norm_mode: NormMode = "running",
        dropout: bool = False,
        seed: int = 0,
    ) -> None:
        if size_mode not in get_args(SizeMode):
            raise UsageError(f"size_mode {size_mode!r}: use one of {', '.join(get_args(SizeMode))}")
        self.generator = load_generator(checkpoint)
        self.checkpoint_id = self.generator.checkpoint_id
        self.size_mode: SizeMode = size_mode
        self.tile_size = self.generator.config.crop_size if tile_size is None else tile_size
        self.overlap = default_overlap(self.tile_size) if overlap is None else overlap
        chosen = choose_device("auto") if device == "auto" else device
        many = Engine(
            self.generator,
            tile_size=None if size_mode == "pad" else self.tile_size,
            batch_size=_BATCH_SIZE,
            device=chosen,
            precision=choose_precision(precision, chosen),
            norm_mode=norm_mode,
            dropout=dropout,
            seed=seed,
        )
        # A small image must not pay for a batch of padding; which engine runs depends on its size alone.
        self._one, self._many = many.with_batch_size(1), many
        self._plan(1, 1)

    def _plan(self, height: int, width: int) -> Any:
        return plan_image(
            height,
            width,
            size_mode=self.size_mode,
            tile_size=self.tile_size,
            overlap=self.overlap,
            stride=self.generator.stride,
        )

    @overload
    def __call__(self, image: Image.Image, key: str = ...) -> Image.Image: ...
    @overload
    def __call__(self, image: Array, key: str = ...) -> Array: ...

    def __call__(self, image: Image.Image | Array, key: str = "") -> Image.Image | Array:
        """Translate one image.

        A PIL image of any 8-bit mode is read as RGB (L for a one-channel generator) and gives a PIL image of the same
        size, RGB or L by the generator's output channels. An (H, W, C_in) uint8 array gives an (H, W, C_out) one.
        `key` names the image where dropout is on: seed and key decide the noise. Raises UsageError for other inputs.
        """
        if isinstance(image, Image.Image):
            mode = _pil_mode(self.generator.config.input_channels, "in")
            result_mode = _pil_mode(self.generator.config.output_channels, "out")
            if image.mode.startswith(("I", "F")):
                raise UsageError(f"a PIL image of mode {image.mode} has more than 8 bits; convert it to RGB or L first")
            pixels = np.asarray(image.convert(mode))
            output = self._translate(pixels[..., None] if pixels.ndim == 2 else pixels, key)
            return Image.fromarray(output[..., 0] if result_mode == "L" else output)
        channels = self.generator.config.input_channels
        if image.ndim != 3 or image.shape[2] != channels or image.dtype != np.uint8 or not image.size:
            raise UsageError(
                f"expected an (H, W, {channels}) uint8 array of at least one pixel, got {image.shape} {image.dtype}"
            )
        return self._translate(image, key)

    def _translate(self, image: Array, key: str) -> Array:
        plan = self._plan(*image.shape[:2])
        engine = self._many if len(plan) > _BATCH_SIZE // 2 else self._one
        keys = [f"{key}#{index}" for index in range(len(plan))]
        return np.ascontiguousarray(plan.join(engine(plan.split(image), keys)))


def _pil_mode(channels: int, direction: str) -> str:
    if channels not in _PIL_MODES:
        raise UsageError(f"the generator has {channels} channels {direction}; give and take arrays, not PIL images")
    return _PIL_MODES[channels]
