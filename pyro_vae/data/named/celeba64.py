r"""CelebA: photographs of faces, as 64 x 64 color images with the authors' splits. Attributes are not read.

Liu, Luo, Wang, Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015. The central 148 x 148 pixels of the
aligned images, 178 x 218, are resized with antialiased bilinear interpolation. The pixels are those of torchvision's
CenterCrop(148) and Resize(64), a common preprocessing of CelebA for VAEs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.formats.cache import Ready, make_key
from pyro_vae.data.formats.decoding import read_all
from pyro_vae.data.formats.image_files import Source, square, version
from pyro_vae.data.formats.keeping import Cache
from pyro_vae.data.images import Images
from pyro_vae.data.named import files
from pyro_vae.errors import DataError

_SOURCE = "CelebA by Liu et al.: img_align_celeba.zip, unpacked, and list_eval_partition.txt"
_SPLITS = ("training", "validation", "test")
_SIZES = (162_770, 19_867, 19_962)
_ROW = re.compile(r"(\w+\.jpg)\s+([012])")
_WIDTH, _HEIGHT, _CENTER, _SIDE = 178, 218, 148, 64
_SHAPE = (3, _SIDE, _SIDE)


def load(root: Path, download: bool) -> Images:
    """Read CelebA. The images are decoded into the cache, which takes a few minutes, and later read from there.

    Raises:
        DataError: If a file is missing or damaged, or an image is not 178 x 218. The message names the file.
    """
    folder = root / "celeba"
    (partition,) = files.require(folder, ["list_eval_partition.txt"], _SOURCE)
    names = _names(partition)
    sizes = dict(zip(_SPLITS, map(len, names), strict=True))
    files.warn_of_other_sizes(partition, "CelebA", sizes, _SIZES)
    # All files must be there before minutes of decoding.
    paths = [files.require(folder / "img_align_celeba", split, _SOURCE) for split in names]
    every = [path for split in paths for path in split]

    def key() -> str:
        return make_key(folder, every, [version(), "celeba64"], list(sizes.values()))

    def decode(*_: Any) -> Ready:
        return Ready(_faces(every), _SHAPE, list(sizes.values()), None, "")

    cached = Cache(root / "cache", download).images(folder, key, decode)
    if cached is not None:
        return replace(cached, name="CelebA")
    train, valid, test = map(_read, paths)
    return Images("CelebA", train, valid, test)


def _names(partition: Path) -> list[list[str]]:
    """Return the file names of each split."""
    names: list[list[str]] = [[], [], []]
    for number, line in enumerate(files.read_bytes(partition).tobytes().decode("latin-1").splitlines(), 1):
        row = _ROW.fullmatch(line.strip())
        if row is None:
            raise DataError(f"{partition}: line {number} is not NAME.jpg and 0, 1 or 2. {files.REPLACE}")
        names[int(row[2])].append(row[1])
    if len(set().union(*names)) < sum(map(len, names)):
        raise DataError(f"{partition} names a file twice. {files.REPLACE}")
    return names


def _read(paths: list[Path]) -> Tensor:
    pixels = np.empty((len(paths), *_SHAPE), np.uint8)
    for target, face in zip(pixels, _faces(paths), strict=True):
        target[:] = face
    return torch.from_numpy(pixels)


def _faces(paths: list[Path]) -> Iterator[np.ndarray]:
    return (np.moveaxis(image, -1, 0) for _, image in read_all(paths, _face))


def _face(image: Any, source: Source) -> Any:
    if image.size != (_WIDTH, _HEIGHT):
        size = " x ".join(map(str, image.size))
        raise DataError(f"{source} is {size} pixels, not {_WIDTH} x {_HEIGHT} like aligned images. {files.REPLACE}")
    return square(image.convert("RGB"), _SIDE, _CENTER, "BILINEAR")
