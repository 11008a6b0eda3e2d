"""Files of the named data sets with a few images each, and their contents."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from pyro_vae.data import Images
from pyro_vae.data.named import cifar10, emnist, omniglot, svhn

RNG = np.random.default_rng(0)
TRAIN, VALID, TEST = 20, 5, 4  # images in the training file, the last 5 of which are for validation
COLOR = RNG.integers(0, 256, (TRAIN + TEST, 3, 32, 32), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (TRAIN + TEST, 28, 28), dtype=np.uint8)
BITS = (GRAY > 128).astype(np.uint8)
TEN = RNG.integers(0, 10, TRAIN + TEST)
CLASSES = RNG.integers(0, 47, TRAIN + TEST)
SILHOUETTES = "caltech101_silhouettes_28_split1.mat"


def few_validation_images(monkeypatch: pytest.MonkeyPatch, number: int = VALID) -> None:
    for module in (cifar10, emnist, omniglot, svhn):
        monkeypatch.setattr(module, "_NUM_VALID", number)


# Writers; they take upright images (N, *pixels) and classes starting at 0.


def write_cifar10(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, some in zip(names, np.split(np.arange(TRAIN + TEST), [4, 8, 12, 16, TRAIN]), strict=True):
        records = (bytes([TEN[i]]) + b"".join(plane.tobytes() for plane in COLOR[i]) for i in some)
        (folder / name).write_bytes(b"".join(records))
    return folder


def write_svhn(root: Path) -> Path:
    folder = root / "svhn"
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", slice(TRAIN)), ("test", slice(TRAIN, None))):
        pixels = np.stack([image.transpose(1, 2, 0) for image in COLOR[some]], axis=-1)
        digits = np.where(TEN[some] == 0, 10, TEN[some])[:, None].astype(np.uint8)
        savemat(folder / f"{name}_32x32.mat", {"X": pixels, "y": digits}, do_compression=True)
    return folder


def write_emnist(root: Path) -> Path:
    folder = root / "EMNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", slice(TRAIN)), ("test", slice(TRAIN, None))):
        lying = np.stack([image.T for image in GRAY[some]])
        head = struct.pack(">4I", 2051, *lying.shape)
        (folder / f"emnist-balanced-{name}-images-idx3-ubyte").write_bytes(head + lying.tobytes())
        labels = CLASSES[some].astype(np.uint8)
        head = struct.pack(">2I", 2049, len(labels))
        (folder / f"emnist-balanced-{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return folder


def columns(images: np.ndarray) -> np.ndarray:
    """Return images flattened in column-major order, as in MATLAB."""
    return np.stack([image.ravel(order="F") for image in images])


def write_omniglot(root: Path, **changes: object) -> Path:
    folder = root / "omniglot"
    folder.mkdir(parents=True, exist_ok=True)
    one_hot = (np.arange(50)[:, None] == CLASSES).astype(float)
    pixels = columns(GRAY / 255).T
    held = {"data": pixels[:, :TRAIN], "testdata": pixels[:, TRAIN:]}
    held |= {"target": one_hot[:, :TRAIN], "testtarget": one_hot[:, TRAIN:]}
    held |= changes
    savemat(folder / "chardata.mat", {name: value for name, value in held.items() if value is not None})
    return folder


def write_static_mnist(root: Path, separator: str = " ", end: str = "\n", last: str = "\n") -> Path:
    folder = root / "binarized-mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", slice(15)), ("valid", slice(15, TRAIN)), ("test", slice(TRAIN, None))):
        rows = end.join(separator.join(map(str, image.ravel())) for image in BITS[some])
        (folder / f"binarized_mnist_{name}.amat").write_text(rows + last, newline="")
    return folder


def write_silhouettes(root: Path, **changes: object) -> Path:
    folder = root / "caltech-silhouettes"
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, object] = {}
    for name, some in (("train", slice(15)), ("val", slice(15, TRAIN)), ("test", slice(TRAIN, None))):
        held |= {f"{name}_data": columns(BITS[some]), f"{name}_labels": CLASSES[some, None] + 1}
    held |= changes
    savemat(folder / SILHOUETTES, {name: value for name, value in held.items() if value is not None})
    return folder


WRITERS: dict[str, Callable[..., Path]] = {
    "cifar10": write_cifar10,
    "svhn": write_svhn,
    "emnist": write_emnist,
    "omniglot": write_omniglot,
    "static-mnist": write_static_mnist,
    "caltech-silhouettes": write_silhouettes,
}
HELD: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "cifar10": (COLOR, TEN),
    "svhn": (COLOR, TEN),
    "emnist": (GRAY, CLASSES),
    "omniglot": (GRAY, CLASSES),
    "static-mnist": (255 * BITS, None),
    "caltech-silhouettes": (255 * BITS, CLASSES),
}


def check(images: Images, pixels: np.ndarray, classes: np.ndarray | None) -> None:
    for split, some in (("train", slice(15)), ("valid", slice(15, TRAIN)), ("test", slice(TRAIN, None))):
        assert torch.equal(getattr(images, split), torch.from_numpy(pixels[some])), split
        if classes is None:
            assert images.labels is None
        else:
            assert images.labels is not None
            assert images.labels.get("class", split).tolist() == classes[some].tolist()
