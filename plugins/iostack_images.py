"""Transform "image": JPEG, PNG and WebP bytes to uint8 arrays, resized and cropped; threads decode without the GIL.

    bytes ──size from the header, checked──> decoder ──> uint8[H, W, 3] ──resize, crop, mirror──> uint8[3, H, W]

JPEG goes through libjpeg-turbo (simplejpeg), which decodes at 1/2, 1/4 or 1/8 of the size where the result is to be that
small; PNG and WebP through OpenCV. Pixels at full size equal Pillow's; alpha is dropped, EXIF orientation is not applied.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.corpus.contracts import Sample, Transform
from iostack.corpus.image_header import image_size, is_jpeg
from iostack.errors import MissingExtraError, SampleError, SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    """uint8[height, width, channels]."""
    Place = Callable[[int, int], Pixels]
    """Returns memory for pixels of this height and width."""

_COLUMNS = ("jpg", "jpeg", "png", "webp", "image")
_LAYOUTS = ("chw", "hwc")
_SHARES, _LOG_RATIOS = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3))
"""Of random crops, as in Szegedy et al. 2015 (arXiv:1409.4842): share of the area, and logarithm of width / height."""
_TRIES = 10
_UNIT = 1 << 32


@hookimpl
def iostack_transforms() -> Mapping[str, Callable[..., Transform]]:
    return {"image": build_image}


def build_image(
    *,
    column: str = "",
    to: str = "image",
    resize: int | None = None,
    crop: int | None = None,
    random: bool = False,
    layout: str = "chw",
    gray: bool = False,
    max_pixels: int = 1 << 27,
) -> Transform:
    """Decode the image in ``column`` (unset: the first of jpg, jpeg, png, webp, image) into the column ``to``.

    ``resize`` is the length of the shorter side; ``crop`` is the side of a square from the middle. ``random`` takes, for
    training, a random crop of 8 to 100 % of the area instead, scales it to ``crop`` and mirrors half of them, another one in
    every epoch. ``layout`` is "chw" or "hwc"; ``gray`` gives one channel. Larger images than ``max_pixels`` are bad samples.
    In memory the channels come last either way, in a batch too (``torch.channels_last``).

    Raises:
        SettingsError: an option is impossible. MissingExtraError: no decoder is installed.
    """
    if layout not in _LAYOUTS:
        raise SettingsError(f"the transform 'image' knows no layout {layout!r}", hint="layouts are chw and hwc")
    if any(size is not None and size < 1 for size in (resize, crop, max_pixels)):
        raise SettingsError("the transform 'image' takes sizes of at least 1 pixel")
    if random and crop is None:
        raise SettingsError("the transform 'image' needs crop with random", hint="crop = 224, for instance")
    if random and resize is not None:
        raise SettingsError("the transform 'image' takes resize or random, not both", hint="random scales to crop")
    if crop is not None and resize is not None and crop > resize:
        raise SettingsError(f"the transform 'image' cannot crop {crop} pixels from {resize}")
    _decoder("simplejpeg"), _decoder("cv2").setNumThreads(1)  # each decoding thread is one already
    return (RandomImage if random else Image)(column, to, resize, crop, layout, gray, max_pixels)


@dataclass(frozen=True)
class Image:
    """See ``build_image``."""

    column: str
    to: str
    resize: int | None
    crop: int | None
    layout: str
    gray: bool
    max_pixels: int

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with its image decoded."""
        return self._with(sample, lambda data: self._from_the_middle(data, self.resize or self.crop))

    def _with(self, sample: Sample, decode: Callable[[bytes], Pixels]) -> Sample:
        column = self.column or next((name for name in _COLUMNS if name in sample), "")
        data = sample.get(column)
        if isinstance(data, dict):
            data = data.get("bytes")  # as Hugging Face datasets keeps images: {"bytes": ..., "path": ...}
        if not isinstance(data, bytes):
            told = f"column {column!r} holds no bytes of an image" if column in sample else f"no column {column!r}"
            raise SampleError(f"{told}; there are {', '.join(map(str, sample))}")
        pixels = decode(data)
        kept = {name: value for name, value in sample.items() if name != column}
        return kept | {self.to: pixels.transpose(2, 0, 1) if self.layout == "chw" else pixels}

    def _from_the_middle(self, data: bytes, shorter: int | None) -> Pixels:
        if shorter is None:
            return self._decode(data, place=self._place)
        pixels = self._decode(data, at_least=shorter)
        height, width = pixels.shape[:2]
        scale = shorter / min(height, width)
        height, width = max(shorter, round(height * scale)), max(shorter, round(width * scale))
        if self.crop is None:
            return _resized(pixels, height, width, self._place)
        pixels = _resized(pixels, height, width)
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        return _copied(pixels[top : top + self.crop, left : left + self.crop], self._place)

    def _place(self, height: int, width: int) -> Pixels:
        """Return memory for the pixels of the result."""
        from iostack.batch_memory import array_for

        return array_for(self.to, (height, width, 1 if self.gray else 3), "uint8")

    def _decode(self, data: bytes, *, at_least: int = 0, place: Place | None = None) -> Pixels:
        """Return the pixels, scaled down while decoding where both sides stay ``at_least`` so long; else in ``place``."""
        if is_jpeg(data):
            return self._decode_jpeg(data, at_least, place)
        kind, height, width = image_size(data)
        self._refuse_large(height, width)
        return _decode_any(data, kind, self.gray, place)

    def _decode_jpeg(self, data: bytes, at_least: int, place: Place | None) -> Pixels:
        simplejpeg = _decoder("simplejpeg")
        try:
            height, width, stored_as, _ = simplejpeg.decode_jpeg_header(data)
            self._refuse_large(height, width)
            if stored_as == "CMYK":  # which libjpeg-turbo does not turn into RGB
                return _decode_any(data, "jpeg", self.gray, place)
            colors = "GRAY" if self.gray else "RGB"
            buffer = place(height, width) if place else None
            pixels: Pixels = simplejpeg.decode_jpeg(
                data, colors, min_height=at_least, min_width=at_least, buffer=buffer
            )
        except ValueError as error:
            raise SampleError(f"a damaged JPEG image: {error}") from error
        return pixels

    def _refuse_large(self, height: int, width: int) -> None:
        if height * width > self.max_pixels:
            raise SampleError(f"an image of {width} x {height} pixels; the limit is {self.max_pixels:,}")


class RandomImage(Image):
    """Draws another crop under each key; called without a key it takes the middle."""

    def with_key(self, sample: Sample, key: int) -> Sample:
        """Return the sample with the random crop of this key, mirrored or not."""
        return self._with(sample, lambda data: self._at_random(data, key))

    def _at_random(self, data: bytes, key: int) -> Pixels:
        from iostack.plan.keyed import derive_key

        assert self.crop is not None
        pixels = self._decode(data)
        top, left, height, width = _random_box(*pixels.shape[:2], key=key)
        pixels = pixels[top : top + height, left : left + width]
        if not derive_key(key, _TRIES) & 1:
            return _resized(pixels, self.crop, self.crop, self._place)
        # Turning rows around takes numpy 650 us of 224 x 224 pixels, OpenCV 57.
        mirrored = _decoder("cv2").flip(
            _resized(pixels, self.crop, self.crop), 1, dst=self._place(self.crop, self.crop)
        )
        return _with_channels(mirrored)


def _decode_any(data: bytes, kind: str, gray: bool, place: Place | None) -> Pixels:
    import numpy as np

    cv2 = _decoder("cv2")
    flags = cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise SampleError(f"a damaged {kind} image of {len(data):,} bytes")
    if gray:
        return _with_channels(pixels)
    decoded: Pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=place(*pixels.shape[:2]) if place else None)
    return decoded


def _resized(pixels: Pixels, height: int, width: int, place: Place | None = None) -> Pixels:
    """Return the pixels at another size: averaged areas where that is smaller, else linear in between."""
    if pixels.shape[:2] == (height, width):
        return _copied(pixels, place) if place else pixels
    cv2 = _decoder("cv2")
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    resized = cv2.resize(
        pixels,
        (width, height),
        dst=place(height, width) if place else None,
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    return _with_channels(resized)


def _copied(pixels: Pixels, place: Place) -> Pixels:
    copied = place(*pixels.shape[:2])
    copied[...] = pixels
    return copied


def _with_channels(pixels: Pixels) -> Pixels:
    """Return the pixels with an axis of channels, which OpenCV leaves out where there is one."""
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _random_box(height: int, width: int, *, key: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random crop; the whole middle where ten tries do not fit."""
    from iostack.plan.keyed import derive_key

    for number in range(_TRIES):
        share, ratio, down, across = (derive_key(key, number, each) % _UNIT / _UNIT for each in range(4))
        area = height * width * (_SHARES[0] + share * (_SHARES[1] - _SHARES[0]))
        aspect = math.exp(_LOG_RATIOS[0] + ratio * (_LOG_RATIOS[1] - _LOG_RATIOS[0]))
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            return int(down * (height - tall + 1)), int(across * (width - wide + 1)), tall, wide
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


@cache
def _decoder(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"the transform 'image' needs {module}, which is not installed", hint='pip install "iostack[images]"'
        ) from error
