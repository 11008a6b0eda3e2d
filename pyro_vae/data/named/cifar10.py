r"""CIFAR-10: 32 x 32 color images of ten classes, from the binary version, since the Python version contains pickles.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. A record has 3,073 bytes: the class, and the
red, green and blue pixels, each row by row. The last 5,000 training images in file order are for validation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.images import Images
from pyro_vae.data.named import files
from pyro_vae.data.named.held_out import hold_out
from pyro_vae.errors import DataError

_TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
_SOURCE = (
    "from cifar-10-binary.tar.gz of Alex Krizhevsky, the binary version; the Python version holds pickles, which are "
    "never read, and nothing is downloaded"
)
_RECORD = 1 + 3 * 32 * 32
_NUM_VALID = 5000


def load(root: Path, download: bool) -> Images:
    """Read CIFAR-10.

    Raises:
        DataError: If a file is missing, its size is not a multiple of that of a record, or a class is not 0 to 9.
    """
    folder = root / "cifar-10-batches-bin"
    *batches, last = (_records(path) for path in files.require(folder, [*_TRAIN, "test_batch.bin"], _SOURCE))
    train, train_classes = _split(np.concatenate(batches))
    test, test_classes = _split(last)
    files.warn_of_other_sizes(folder, "CIFAR-10", {"training": len(train), "test": len(test)}, (50_000, 10_000))
    return hold_out("CIFAR-10", folder, train, test, (train_classes, test_classes), _NUM_VALID)


def _records(path: Path) -> np.ndarray:
    content = files.read_bytes(path)
    if len(content) % _RECORD or not len(content):
        raise DataError(f"{path} has {len(content):,} bytes, not a multiple of {_RECORD:,}. {files.REPLACE}")
    records = content.reshape(-1, _RECORD)
    if (largest := records[:, 0].max()) > 9:
        raise DataError(f"{path} holds a label {largest}, not 0 to 9. {files.REPLACE}")
    return records


def _split(records: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return pixels, uint8 (N, 3, 32, 32), and classes, int64 (N, 1)."""
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32)), torch.from_numpy(records[:, :1].astype(np.int64))
