r"""What a log-likelihood is a log-likelihood of: two numbers compare only if that is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.trace import Batch

TRANSFORMED = "transformed"
"""Word in a quantity that two programs may mean differently, e.g. in other units."""


def digest_images(batch: Batch) -> str:
    """Return the SHA-256 of the images as a program observes them, after binarization or dequantization.

    The shape of an image does not count, so that a table of pixels equals the images.
    """
    rows = np.ascontiguousarray(batch.x.detach().cpu().float().numpy(), dtype="<f4")
    return hashlib.sha256(f"{len(rows)} images ".encode() + rows.tobytes()).hexdigest()


def name_quantity(batch: Batch, observed: Sequence[str], image: str | None, *, density: bool) -> str:
    """Name the quantity whose logarithm a program assigns to an image, e.g. ``probability of x``.

    Args:
        batch: Arguments of the program.
        observed: Names of its observed sites.
        image: Name of the one that holds x unchanged, or None.
        density: Whether x is observed under a density.
    """
    what = f"{'density' if density else 'probability'} of {'x' if image else f'{TRANSFORMED} x'}"
    others = [name for name in observed if name != image] if image else list(observed)[1:]
    what += "".join(f" and {name}" for name in sorted(others))
    tensors = [leaf for leaf in pytree.tree_leaves((batch.args, batch.kwargs)) if isinstance(leaf, Tensor)]
    # Labels that a semi-supervised program must not use are -1.
    given = any(leaf is not batch.x and not bool((leaf == -1).all()) for leaf in tensors)
    return f"{what} given labels" if given else what
