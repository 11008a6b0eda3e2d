r"""Derive separate seeds for different purposes from one seed, so that draws for two purposes share no noise.

With a single seed, the noise of p(x | z) would equal that of z, and user data sampled after ``torch.manual_seed(0)``
would equal the first samples of an instrument called with ``seed=0``.
"""

from __future__ import annotations

import hashlib
from typing import overload

import torch

_SALT = b"pyro_vae draws"


@overload
def derive_seed(seed: int, *purpose: str | int) -> int: ...


@overload
def derive_seed(seed: None, *purpose: str | int) -> None: ...


def derive_seed(seed: int | None, *purpose: str | int) -> int | None:
    """Return a 63-bit seed for one purpose, a hash of the seed and the purpose. None stays None."""
    if seed is None:
        return None
    words = "/".join(map(str, (seed, *purpose))).encode()
    # 63 bits: generators of torch take signed 64-bit integers.
    return int.from_bytes(hashlib.blake2b(words, key=_SALT, digest_size=8).digest(), "big") >> 1


def global_generator(device: torch.device) -> torch.Generator:
    """Return the generator that torch draws from on a device where it is given none."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator
