"""Translates single images with a trained generator, from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from PIL import Image

from p2p.errors import BadInputError, ConfigError, UsageError
from p2p.model.checkpoint import load_generator
from p2p.model.engine import Engine, NormMode, choose_device, choose_engine_precision
from p2p.model.sizing import SizeMode, default_overlap, plan_image
from p2p.storage.pixels import PixelFormat, Pixels, from_pillow

if TYPE_CHECKING:
    import torch

_BATCH_SIZE = 8
_PIL_FORMATS = {PixelFormat(1), PixelFormat(2), PixelFormat(3), PixelFormat(4), PixelFormat(1, 16)}
"""Formats of PIL images: modes L, LA, RGB, RGBA and I;16."""


class Translator:
    """Translates images of any size from 1x1 up; outputs have the size and type of the input.

    checkpoint: a run, checkpoint folder or generator file, as for `load_generator`.
    device: auto, cpu, cuda, or any torch device.
    size_mode: tile (overlapping tiles, blended), resize (to one tile and back) or pad (reflection to the network's
    stride, cropped back).
    tile_size: pixels; by default the crop size of training.
    overlap: pixels; by default `default_overlap`.
    norm_mode, dropout, seed: as for Engine.
    Raises UsageError and CheckpointError.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> from p2p import Translator, UNetGenerator
        >>> file = tempfile.NamedTemporaryFile(suffix=".pth")
        >>> torch.save(UNetGenerator(num_downs=6, ngf=4).state_dict(), file.name)
        >>> translator = Translator(file.name, device="cpu")
        >>> translator(Image.new("RGB", (100, 70))).size
        (100, 70)

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
            raise ConfigError("size_mode", f"{size_mode!r}: use one of {', '.join(get_args(SizeMode))}")
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
            precision=choose_engine_precision(precision, chosen, self.generator.config.bits),
            norm_mode=norm_mode,
            dropout=dropout,
            seed=seed,
        )
        # Small images would waste most of a padded batch. The image's size alone decides which engine runs.
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
    def __call__(self, image: Pixels, key: str = ...) -> Pixels: ...

    def __call__(self, image: Image.Image | Pixels, key: str = "") -> Image.Image | Pixels:
        """Translate one image.

        A PIL image of any mode is converted to the channels and depth of the generator's inputs, as files are; the
        result is a PIL image of the same size, of mode L, LA, RGB, RGBA or I;16 (16-bit gray) by the generator's
        outputs. For an (H, W, C) array, uint8 or for a 16-bit generator uint16, it is an (H, W, C') array of the same
        type. The input of a generator of class planes is a label map in the colours of its training.
        With dropout, seed and `key`, a name for the image, decide the noise. Raises UsageError for other inputs.
        """
        config = self.generator.config
        wanted = PixelFormat(config.input_image_channels, config.bits)
        if isinstance(image, Image.Image):
            _require_pil(wanted, "in")
            _require_pil(PixelFormat(config.output_channels, config.bits), "out")
            output = self._translate(_from_pil(image, wanted), key)
            return Image.fromarray(output[..., 0] if config.output_channels == 1 else output)
        if image.ndim != 3 or image.shape[2] != wanted.channels or image.dtype != wanted.dtype or not image.size:
            raise UsageError(
                f"expected an (H, W, {wanted.channels}) {wanted.dtype} array of at least one pixel, "
                f"got {image.shape} {image.dtype}"
            )
        return self._translate(image, key)

    def _translate(self, image: Pixels, key: str) -> Pixels:
        plan = self._plan(*image.shape[:2])
        engine = self._many if len(plan) > _BATCH_SIZE // 2 else self._one
        keys = [f"{key}#{index}" for index in range(len(plan))]
        return np.ascontiguousarray(plan.join(engine(plan.split(image), keys)))


def _from_pil(image: Image.Image, wanted: PixelFormat) -> Pixels:
    if image.mode.startswith(("I", "F")) and wanted.bits == 8:
        raise UsageError(f"a PIL image of mode {image.mode} has more than 8 bits; convert it to RGB or L first")
    try:
        return from_pillow(image).as_format(wanted)
    except BadInputError as error:
        raise UsageError(f"a PIL image of mode {image.mode}: {error}") from None


def _require_pil(pixels: PixelFormat, direction: str) -> None:
    if pixels not in _PIL_FORMATS:
        raise UsageError(f"the generator has {pixels.channels} channels of {pixels.bits} bits {direction}; use arrays")
