r"""Images in: one uint8 tensor per split, what a program observes of it, and the order of an epoch.

Splits, stable for ever: MNIST and its relatives train on the first 55,000 of the 60,000 training images in
file order, validate on the last 5,000 and test on the 10,000 test images. Of every seven of the 1,797 digits,
in file order, five are for training, one for validation and one for the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor

_NUM_VALID = 5000
_FIXED_SEED = 20160301  # of every binarization that is drawn once


class DataError(ValueError):
    """Images that cannot be used; says which and what to do."""


@dataclass(frozen=True)
class Images:
    """The splits of a data set: uint8 tensors (N, *pixels), 0 to 255."""

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        for split in ("train", "valid", "test"):
            images = getattr(self, split)
            if images.dtype != torch.uint8:
                raise DataError(f"{self.name}: {split} images are {images.dtype}; they must be torch.uint8.")
            if len(images) == 0:
                raise DataError(f"{self.name}: there are no {split} images.")
            if images.shape[1:] != self.train.shape[1:]:
                raise DataError(
                    f"{self.name}: {split} images are {tuple(images.shape[1:])}, "
                    f"training images {tuple(self.train.shape[1:])}."
                )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.train.shape[1:])

    def map(self, change: Callable[[Tensor], Tensor]) -> Images:
        """Return the images with every split changed."""
        return replace(self, train=change(self.train), valid=change(self.valid), test=change(self.test))


def to_uint8(images: Tensor | np.ndarray, name: str = "images") -> Tensor:
    """Return pixels as uint8, 0 to 255.

    Args:
        images: uint8, or floating point in [0, 1].
        name: what an error calls them.

    Raises:
        DataError: a pixel is NaN or outside [0, 1], or the type is neither.
    """
    images = torch.as_tensor(images)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{name}: pixels are {images.dtype}; give torch.uint8, or floats in [0, 1].")
    bad = ~((images >= 0) & (images <= 1))
    if bad.any():
        image = int(bad.flatten(1).any(1).nonzero()[0])
        value = images[bad][0].item()
        raise DataError(f"{name}: image {image} holds {value:.6g}; floating-point pixels must lie in [0, 1].")
    return (images * 255).round().to(torch.uint8)


def load(name: str, root: Path, train_images: int | None = None, test_images: int | None = None) -> Images:
    """Load a data set by name, downloading it into `root` where it is absent.

    Args:
        name: a key of `DATASETS`.
        root: folder of the downloaded data sets; the embedded digits need none.
        train_images: use only the first so many training images.
        test_images: likewise for the test.

    Raises:
        DataError: unknown name, a file that is absent, damaged or inconsistent, or too few images.
    """
    if name not in DATASETS:
        raise DataError(f"Unknown data set {name!r}; choose one of {', '.join(DATASETS)}.")
    images = DATASETS[name](root)
    return replace(
        images,
        train=_first(images.train, train_images, f"{name}: training"),
        test=_first(images.test, test_images, f"{name}: test"),
    )


def binarize(images: Images, how: str) -> Images:
    """Draw once what is drawn once: validation and test of ``dynamic``, all of ``fixed``; threshold at 128.

    ``dynamic`` keeps the training images grey, for `observe` to draw anew at each use. An image's draw depends
    on its place in its split alone.
    """
    if how in ("dynamic", "fixed"):
        return replace(
            images,
            train=images.train if how == "dynamic" else _draw_once(images.train, 0),
            valid=_draw_once(images.valid, 1),
            test=_draw_once(images.test, 2),
        )
    if how == "threshold":
        return images.map(lambda pixels: 255 * (pixels >= 128).byte())
    return images


def _draw_once(pixels: Tensor, stream: int) -> Tensor:
    generator = torch.Generator().manual_seed(_FIXED_SEED + stream)
    noise = torch.rand(pixels.shape, generator=generator, device="cpu").to(pixels.device)
    return 255 * (noise * 255 < pixels).byte()


def observe(pixels: Tensor, how: str, *, dequantize: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """Turn uint8 pixels into what a program observes, in [0, 1], of torch's default dtype.

    Args:
        pixels: (B, *pixels), uint8.
        how: ``none`` for grey pixels; otherwise 0/1, x ~ Bernoulli(grey / 255), which leaves 0 and 255 as
            they are.
        dequantize: for densities, x = (level + u) / 256 with u ~ U[0, 1): Theis, van den Oord, Bethge,
            "A note on the evaluation of generative models", ICLR 2016 (https://arxiv.org/abs/1511.01844).
        generator: of the CPU, for noise that is the same on every device; None takes torch's global stream.
    """
    if how == "none" and not dequantize:
        return pixels / 255
    device = pixels.device if generator is None else "cpu"
    noise = torch.rand(pixels.shape, generator=generator, device=device).to(pixels.device)
    if how != "none":
        return (noise * 255 < pixels).to(noise.dtype)
    # 16 bits of noise: with more, float32 rounds some white pixels up to the next level, to exactly 1.
    return (pixels + (noise * 65536).floor() / 65536) / 256


def observe_once(pixels: Tensor, look: Callable[..., Tensor]) -> Tensor:
    """Observe images that are to be scored, by `observe` with its arguments bound: the same in every run."""
    return look(pixels, generator=torch.Generator().manual_seed(_FIXED_SEED))


class Batches:
    """Batches of the training images, each epoch in an order that depends on seed and epoch alone.

    Args:
        pixels: uint8 (N, *pixels), on the device of the fit.
        batch_size: B; the last batch of an epoch may be smaller.
        seed: of the order.
        look: what the program observes of uint8 pixels.

    Raises:
        DataError: fewer images than one batch.
    """

    def __init__(self, pixels: Tensor, batch_size: int, seed: int, look: Callable[..., Tensor]) -> None:
        if batch_size > len(pixels):
            raise DataError(f"A batch of {batch_size} is larger than the {len(pixels)} images: lower --batch-size.")
        self.pixels = pixels
        self.batch_size = batch_size
        self.seed = seed
        self.look = look
        self.num_images = len(pixels)

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        """Yield the batches of one epoch, float (B, *pixels)."""
        # Torch's generators keep 32 bits of a seed, so seed and epoch are hashed into them. The generator lives on
        # the CPU, so that the order does not depend on the device.
        mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(self.num_images, generator=generator, device="cpu").to(self.pixels.device)
        for chosen in order.split(self.batch_size):
            yield self.look(self.pixels[chosen])


def _first(images: Tensor, number: int | None, name: str) -> Tensor:
    if number is None:
        return images
    if not 0 < number <= len(images):
        raise DataError(f"{name}: {number} images asked for, between 1 and {len(images)} are there.")
    return images[:number]


def _digits(root: Path) -> Images:
    pixels = to_uint8(load_digits().images / 16, "digits")
    place = torch.arange(len(pixels)) % 7  # 7 shares no factor with the 10 of the cycling labels
    return Images("digits", pixels[place < 5], pixels[place == 5], pixels[place == 6])


def _idx(kind: type[torchvision.datasets.MNIST]) -> Callable[[Path], Images]:
    def read(root: Path) -> Images:
        train, test = (_read_idx(kind, root, train) for train in (True, False))
        return Images(kind.__name__, train[:-_NUM_VALID], train[-_NUM_VALID:], test)

    return read


def _read_idx(kind: type[torchvision.datasets.MNIST], root: Path, train: bool) -> Tensor:
    where = f"{root / kind.__name__ / 'raw'}: the {'training' if train else 'test'} files of {kind.__name__}"
    remedy = "Delete damaged files to download them again, or name another --data-root."
    try:
        dataset = kind(root, train=train, download=True)  # downloads only what is absent
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
        raise DataError(f"{where} cannot be read ({reason}). {remedy}") from error
    pixels, labels = dataset.data, dataset.targets
    problem = None
    if pixels.dtype != torch.uint8 or pixels.shape[1:] != (28, 28):
        problem = f"hold images of shape {tuple(pixels.shape[1:])} and type {pixels.dtype}, not (28, 28) uint8"
    elif len(pixels) != len(labels):
        problem = f"hold {len(pixels)} images and {len(labels)} labels"
    elif len(pixels) <= (_NUM_VALID if train else 0):
        problem = f"hold {len(pixels)} images, too few"
    elif not ((labels >= 0) & (labels <= 9)).all():
        problem = f"hold a label {int(labels.max())}, not 0 to 9"
    if problem:
        raise DataError(f"{where} {problem}. {remedy}")
    return pixels


DATASETS: dict[str, Callable[[Path], Images]] = {
    "digits": _digits,
    "mnist": _idx(torchvision.datasets.MNIST),
    "fashion-mnist": _idx(torchvision.datasets.FashionMNIST),
    "kmnist": _idx(torchvision.datasets.KMNIST),
}
