"""The transform "image": what Pillow decodes, we decode to the same pixels; what is damaged is a bad sample."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import iostack
from iostack.corpus.contracts import KeyedTransform
from iostack.corpus.image_header import image_size, is_jpeg
from iostack.errors import SampleError, SettingsError
from iostack.loader.order.named import find_transforms
from iostack.testing import check_resume_at_every_step

KINDS = ("JPEG", "PNG", "WEBP")


def pixels(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Return smooth colours with some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = random.integers(-6, 7, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} | options if kind != "PNG" else options))
    return file.getvalue()


def decode(data: bytes, column: str = "jpg", **options: Any) -> np.ndarray[Any, Any]:
    (transform,), _ = find_transforms([{"name": "image", **options}])
    decoded = transform({"__key__": "a", column: data})
    assert decoded["__key__"] == "a"
    assert column not in decoded
    found = decoded["image"]
    assert found.dtype == np.uint8
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(37, 50), (64, 64), (1, 1)])
def test_pixels_equal_those_of_pillow(kind: str, mode: str, size: tuple[int, int]) -> None:
    data = encoded(pixels(*size, mode=mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert is_jpeg(data) or image_size(data) == (kind.lower(), *size)
    assert (decode(data, layout="hwc") == expected).all()
    assert (decode(data) == expected.transpose(2, 0, 1)).all()


def test_other_modes_of_png_webp_and_jpeg_become_three_channels_of_eight_bits() -> None:
    palette, alpha = pixels(20, 30).quantize(16), pixels(20, 30).convert("RGBA")
    sixteen = Image.fromarray(np.full((20, 30), 0x8040, np.uint16))
    for data in (encoded(palette, "PNG"), encoded(alpha, "PNG"), encoded(alpha, "WEBP", lossless=True)):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB"))
        assert (decode(data, layout="hwc") == expected).all()
    assert (decode(encoded(sixteen, "PNG")) == 0x80).all()
    assert decode(encoded(pixels(20, 30, mode="CMYK"), "JPEG")).shape == (3, 20, 30)
    assert decode(encoded(pixels(20, 30), "JPEG"), gray=True).shape == (1, 20, 30)
    assert decode(encoded(pixels(20, 30), "PNG"), gray=True, resize=10).shape == (1, 10, 15)


def test_the_orientation_that_a_camera_wrote_is_not_applied() -> None:
    for kind in KINDS:
        exif = Image.Exif()
        exif[0x0112] = 6
        assert decode(encoded(pixels(20, 30), kind, exif=exif)).shape == (3, 20, 30)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(300, 500), (500, 300), (40, 60), (224, 900)])
def test_resize_sets_the_shorter_side_and_crop_takes_the_middle(kind: str, size: tuple[int, int]) -> None:
    image = pixels(*size)
    data = encoded(image, kind)
    resized = decode(data, resize=64, layout="hwc")
    assert min(resized.shape[:2]) == 64
    assert resized.shape[0] / resized.shape[1] == pytest.approx(size[0] / size[1], rel=0.02)
    reference = image.resize(resized.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(resized.astype(int) - np.asarray(reference)).mean() < 6
    cropped = decode(data, resize=64, crop=48, layout="hwc")
    top, left = (resized.shape[0] - 48) // 2, (resized.shape[1] - 48) // 2
    assert (cropped == resized[top : top + 48, left : left + 48]).all()


def test_random_crops_follow_their_key_and_fill_the_square() -> None:
    (transform,), _ = find_transforms([{"name": "image", "crop": 32, "random": True}])
    assert isinstance(transform, KeyedTransform)
    sample = {"png": encoded(pixels(80, 120), "PNG")}
    crops = [transform.with_key(sample, key)["image"] for key in (*range(20), 0)]
    assert (crops[0] == crops[-1]).all()
    assert {crop.shape for crop in crops} == {(3, 32, 32)}
    assert len({crop.tobytes() for crop in crops}) == 20
    assert transform(sample)["image"].shape == (3, 32, 32)
    strip = {"png": encoded(pixels(1, 400), "PNG")}
    assert transform.with_key(strip, 1)["image"].shape == (3, 32, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_images_are_bad_samples(kind: str) -> None:
    data = encoded(pixels(60, 80), kind)
    for stop in (0, 1, 5, 20, 40, len(data) // 2, len(data) - 20):
        with pytest.raises(SampleError, match=r"image|JPEG"):
            decode(data[:stop])


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    kind=st.sampled_from(KINDS),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), max_size=6),
    tail=st.binary(max_size=40),
)
def test_damaged_images_decode_or_are_bad_samples_and_never_anything_else(
    kind: str, flips: list[tuple[int, int]], tail: bytes
) -> None:
    data = bytearray(_SMALL[kind] + tail)
    for at, change in flips:
        data[at % len(data)] ^= change
    with suppress(SampleError):
        assert decode(bytes(data), max_pixels=1 << 16).ndim == 3


_SMALL = {kind: encoded(pixels(9, 12), kind) for kind in KINDS}


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from([b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 "]),
    st.binary(max_size=60),
)
def test_no_header_gives_another_error_than_ours(head: bytes, rest: bytes) -> None:
    with suppress(SampleError):
        assert min(image_size(head + rest)[1:]) > 0
    with suppress(SampleError):
        assert decode(head + rest, max_pixels=1 << 16).ndim == 3


def test_an_image_that_claims_to_be_huge_is_refused_before_memory_is_taken() -> None:
    data = bytearray(encoded(pixels(8, 8), "PNG"))
    data[16:24] = struct.pack(">II", 1 << 20, 1 << 20)
    with pytest.raises(SampleError, match="1048576 x 1048576"):
        decode(bytes(data))
    for mode in ("RGB", "CMYK"):
        data = bytearray(encoded(pixels(8, 8, mode=mode), "JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 64_000)
        with pytest.raises(SampleError, match="64000 x 65000"):
            decode(bytes(data))


def test_a_sample_without_an_image_is_bad_and_names_its_columns() -> None:
    (transform,), _ = find_transforms(["image"])
    with pytest.raises(SampleError, match="no column ''; there are txt"):
        transform({"txt": b"a"})
    with pytest.raises(SampleError, match="no bytes"):
        transform({"jpg": "text"})
    with pytest.raises(SampleError, match="neither a JPEG"):
        transform({"jpg": b"GIF89a"})


@pytest.mark.parametrize(
    "options", [{"layout": "cwh"}, {"resize": 0}, {"random": True}, {"resize": 10, "crop": 20}, {"size": 3}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        find_transforms([{"name": "image", **options}])


def test_images_of_hugging_face_datasets_are_found_in_their_struct() -> None:
    data = encoded(pixels(8, 8), "PNG")
    (transform,), _ = find_transforms(["image"])
    assert transform({"image": {"bytes": data, "path": None}})["image"].shape == (3, 8, 8)


def test_a_loader_decodes_exactly_on_any_ranks_with_bad_images_among_them(tmp_path: Path) -> None:
    for shard in range(3):
        members = []
        for i in range(10):
            data = encoded(pixels(30 + i, 40, seed=10 * shard + i), KINDS[i % 3])
            members.append((f"{shard}{i}.{KINDS[i % 3].lower()}", data[: 50 if i == 7 else None]))
        corpora.write_tar(tmp_path / "tars" / f"{shard}.tar", members)
    corpus = iostack.open_corpus(tmp_path / "tars", cache_dir=tmp_path / "cache")

    def make(rank: int, ranks: int) -> iostack.Loader:
        transform = {"name": "image", "crop": 16, "random": True}
        return iostack.Loader(corpus, batch_size=6, rank=rank, ranks=ranks, lanes=2, transforms=[transform])

    check_resume_at_every_step(make, num_steps=6, ranks=(1, 2, 3))
    with make(0, 1) as loader:
        batch = next(iter(loader))
        assert tuple(batch["image"].shape) == (6, 3, 16, 16)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
