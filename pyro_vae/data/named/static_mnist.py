r"""MNIST binarized by Larochelle: 28 x 28 pixels, black or white, with predefined splits and without labels.

Larochelle, Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011. Each pixel was sampled once, with
its gray level as the probability (Salakhutdinov, Murray, "On the quantitative analysis of deep belief networks", ICML
2008). Each line of the files is an image: 784 digits 0 or 1, separated by single spaces. They are mapped to 0 and 255,
which no binarization changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.images import Images
from pyro_vae.data.named import files
from pyro_vae.errors import DataError

_SPLITS = ("train", "valid", "test")
_PIXELS = 28 * 28


def load(root: Path, download: bool) -> Images:
    """Read binarized MNIST.

    Raises:
        DataError: If a file is missing, or a row is not 784 digits 0 or 1.
    """
    folder = root / "binarized-mnist"
    names = [f"binarized_mnist_{split}.amat" for split in _SPLITS]
    train, valid, test = (_read(path) for path in files.require(folder, names, "binarized MNIST by Hugo Larochelle"))
    sizes = {"training": len(train), "validation": len(valid), "test": len(test)}
    files.warn_of_other_sizes(folder, "binarized MNIST", sizes, (50_000, 10_000, 10_000))
    return Images("binarized MNIST", train, valid, test)


def _read(path: Path) -> Tensor:
    """Return pixels, uint8 (N, 28, 28)."""
    text = files.read_bytes(path).tobytes().replace(b"\r\n", b"\n").replace(b" \n", b"\n").rstrip() + b"\n"
    if len(text) % (2 * _PIXELS):
        raise _bad_row(path, text)
    rows = np.frombuffer(text, np.uint8).reshape(-1, _PIXELS, 2)
    digits, between = rows[..., 0], rows[..., 1]
    pixels = digits - np.uint8(ord("0"))  # modulo 256: characters below "0" become large
    if (pixels > 1).any() or (between[:, :-1] != ord(" ")).any() or (between[:, -1] != ord("\n")).any():
        raise _bad_row(path, text)
    return torch.from_numpy(255 * pixels).reshape(-1, 28, 28)


def _bad_row(path: Path, text: bytes) -> DataError:
    """Return an error that names the first invalid row."""
    zeros = b" ".join([b"0"] * _PIXELS)
    rows = text.split(b"\n")
    row = next((number for number, row in enumerate(rows, 1) if row.replace(b"1", b"0") != zeros), len(rows))
    return DataError(f"{path}: row {row} is not {_PIXELS} times 0 or 1 with one space between them. {files.REPLACE}")
