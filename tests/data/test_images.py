"""Arrays passed by users: read correctly, or rejected with one line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.calls import one_line
from torch import Tensor

from pyro_vae.data import DataError, Images, to_uint8

LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
GREY = LEVELS / 255


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_to_uint8_undoes_the_division(dtype: torch.dtype) -> None:
    levels = torch.as_tensor(LEVELS)
    assert torch.equal(to_uint8(levels.double().div(255).to(dtype)), levels)
    assert torch.equal(to_uint8(levels), levels)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


# Memory layouts of the same array.
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray | list]] = {
    "backwards": lambda array: array[::-1].copy()[::-1],
    "mirrored": lambda array: array[..., ::-1].copy()[..., ::-1],
    "every other": lambda array: np.repeat(array, 2, axis=0)[::2],
    "columns first": np.asfortranarray,
    "transposed": lambda array: array.transpose(2, 1, 0).copy().transpose(2, 1, 0),
    "repeated without memory": lambda array: np.broadcast_to(array, array.shape),
    "not to be written": read_only,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array: array.astype(array.dtype.newbyteorder("<")),
    "not aligned": lambda array: np.frombuffer(b"-" + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
    "nothing masked": lambda array: np.ma.array(array, mask=False),
    "a list of arrays": list,
}


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_are_read_in_any_memory_layout(layout: str, dtype: str) -> None:
    array = LEVELS if dtype == "u1" else GREY.astype(dtype)
    before = array.copy()
    np.testing.assert_array_equal(to_uint8(LAYOUTS[layout](array)).numpy(), LEVELS)
    np.testing.assert_array_equal(array, before)


def test_noncontiguous_tensors_are_read() -> None:
    grey = torch.as_tensor(GREY)
    np.testing.assert_array_equal(to_uint8(grey.transpose(0, 2)).numpy(), LEVELS.T)
    np.testing.assert_array_equal(to_uint8(grey[1::2]).numpy(), LEVELS[1::2])


def holding(value: float) -> np.ndarray:
    array = GREY.copy()
    array[1, 7, 0] = value
    return array


# Name: (argument, expected part of the message).
BAD: dict[str, tuple[object, str]] = {
    "NaN": (holding(np.nan), "image 1 holds nan"),
    "infinity": (holding(np.inf), "image 1 holds inf"),
    "minus infinity": (holding(-np.inf), "image 1 holds -inf"),
    "a negative pixel": (holding(-0.1), "image 1 holds -0.1"),
    "a pixel above 1": (holding(1.1), "image 1 holds 1.1"),
    "floats from 0 to 255": (LEVELS.astype("f4"), "image 0 holds 2"),
    "floats from -1 to 1": (2 * GREY - 1, "image 0 holds -1"),
    "floats standardised": ((GREY - GREY.mean()) / GREY.std(), "image 0 holds -1.7"),
    "NaN in big-endian": (holding(np.nan).astype(">f4"), "image 1 holds nan"),
    "NaN in half precision": (holding(np.nan).astype("f2"), "image 1 holds nan"),
    "integers of 64 bits": (LEVELS.astype("i8"), "pixels are torch.int64"),
    "integers of 16 bits, big-endian": (LEVELS.astype(">u2"), "pixels are torch.uint16"),
    "signed bytes": (LEVELS.astype("i1"), "pixels are torch.int8"),
    "booleans": (LEVELS > 127, "pixels are torch.bool"),
    "complex numbers": (GREY.astype("c8"), "pixels are torch.complex64"),
    "long doubles": (GREY.astype("g"), f"pixels are {np.dtype('g')}"),
    "objects": (GREY.astype("O"), "pixels are object"),
    "text": (LEVELS.astype("U3"), "pixels are <U3"),
    "records": (np.zeros((4, 8), [("grey", "u1")]), "pixels are [('grey', 'u1')]"),
    "a file name": ("images.npy", "pixels are <U10"),
    "nothing": (None, "pixels are object"),
    "images of different shapes": ([GREY[0], GREY[1, :7]], "the images differ in shape"),
    "masked pixels": (np.ma.array(GREY, mask=GREY > 0.9), "some pixels are masked"),
    "one number": (np.float64(0.5), "images have shape (); it must be (N, *pixels)"),
    "one dimension": (GREY.ravel(), "images have shape (256,); it must be (N, *pixels)"),
    "no pixels": (GREY[:, :0], "images have shape (4, 0, 8); it must be (N, *pixels)"),
}


def test_bad_arrays_are_rejected_with_one_line(promised: Callable[[str], None]) -> None:
    for kind, (array, says) in BAD.items():
        with pytest.raises(DataError) as caught:
            to_uint8(array, "faces")  # type: ignore[arg-type]
        message = one_line(caught.value)
        assert message.startswith("faces: "), (kind, message)
        assert says in message, (kind, message)
        assert len(message) < 120, (kind, message)
    promised(f"{len(BAD)} kinds of bad array are rejected with one line")


GOOD_SPLIT = torch.zeros(4, 8, 8, dtype=torch.uint8)
BAD_SPLITS: dict[str, tuple[object, str]] = {
    "floats": (torch.zeros(4, 8, 8), "{split} images are torch.float"),
    "integers": (torch.zeros(4, 8, 8, dtype=torch.int64), "{split} images are torch.int64"),
    "an array": (np.zeros((4, 8, 8), "u1"), "{split} images are of type ndarray; make tensors with data.to_uint8"),
    "nothing": (None, "{split} images are of type NoneType"),
    "an empty set": (GOOD_SPLIT[:0], "there are no {split} images"),
    "no dimensions": (GOOD_SPLIT[:, 0, 0], "{split} images have shape (4,); it must be (N, *pixels)"),
    "one number": (GOOD_SPLIT[0, 0, 0], "{split} images have shape ()"),
    "no columns": (GOOD_SPLIT[..., :0], "{split} images have shape (4, 8, 0)"),
    "another shape": (torch.zeros(4, 8, 9, dtype=torch.uint8), "images are (8, "),
}


def images_with(split: str, bad: object) -> Images:
    return Images("faces", **{"train": GOOD_SPLIT, "valid": GOOD_SPLIT, "test": GOOD_SPLIT, split: bad})


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_bad_splits_are_rejected_with_one_line(split: str) -> None:
    for kind, (bad, says) in BAD_SPLITS.items():
        with pytest.raises(DataError) as caught:
            images_with(split, bad)
        message = one_line(caught.value)
        assert message.startswith("faces: "), (kind, message)
        assert says.format(split=split) in message, (kind, message)


# As bytes, binarized images of 0 and 1 would silently be read as images 255 times too dark.
@pytest.mark.parametrize(("white", "refused"), [(1, True), (2, False), (255, False), (0, False)])
def test_binarized_pixels_of_0_and_1_are_rejected(white: int, refused: bool) -> None:
    def images() -> Tensor:
        return images_with("train", white * (torch.arange(4 * 64).view(4, 8, 8) % 2).byte()).train

    if not refused:
        assert images().max() == white
        return
    with pytest.raises(DataError, match="no training image has a pixel above 1; expected values from 0 to 255"):
        images()


@pytest.mark.parametrize("binarize", ["dynamic", "fixed"])
def test_one_time_binarization_does_not_depend_on_the_chunk_size(
    binarize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gray = torch.randint(0, 256, (50, 8, 9), dtype=torch.uint8)
    images = Images("noise", gray, gray, gray)
    seen = []
    for pixels in (2**22, 100, 7 * 72):  # all images at once, then one and seven at a time
        monkeypatch.setattr("pyro_vae.memory._PART", pixels)
        observed = images.observed(binarize)
        seen.append([observed.pixels.train, *(observed.split(name) for name in ("valid", "test"))])
        seen[-1].append(images.observed("none").with_dequantization().split("train"))
        seen[-1].append(images.observed("threshold").pixels.train)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
    assert torch.equal(seen[0][-1], 255 * (gray >= 128).byte())


def test_single_bright_pixel_in_the_last_image_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.memory._PART", 100)
    dark = torch.ones(9, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match="no training image has a pixel above 1"):
        Images("dark", dark, dark, dark)
    bright = dark.clone()
    bright[-1, -1, -1] = 2
    assert Images("bright", bright, dark, dark).train is bright


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((5, 4), "5 x 4 gray"),
        ((1, 5, 4), "1 x 5 x 4 gray"),
        ((3, 5, 4), "3 x 5 x 4 color"),
        ((4, 5, 4), "4 x 5 x 4 8-bit"),
    ],
)
def test_str_describes_the_images_in_one_line(shape: tuple[int, ...], says: str) -> None:
    pixels = torch.randint(0, 256, (9, *shape), dtype=torch.uint8)
    assert (
        str(Images("mine", pixels, pixels[:2], pixels[:3])) == f"mine: 9 train, 2 valid, 3 test images of {says} pixels"
    )
    black = 255 * (pixels > 99).byte()
    assert "black or white" in str(Images("mine", black, black, black))
