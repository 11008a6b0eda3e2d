r"""One seed, split by purpose: no two kinds of draws share their noise.

Seeded alike, the noise of p(x|z) would be that of z, and a user's data, drawn after ``torch.manual_seed(0)``, would be
the first draws of an instrument called with ``seed=0``.
"""

from __future__ import annotations

import hashlib

import torch

_SALT = b"pyro_vae draws"


def derive_seed(seed: int | None, *purpose: str | int) -> int | None:
    """Return the seed of one purpose, a hash of the seed and of what the draws are for; None stays None."""
    if seed is None:
        return None
    words = "/".join(map(str, (seed, *purpose))).encode()
    # 63 bits: torch's generators take a signed number.
    return int.from_bytes(hashlib.blake2b(words, key=_SALT, digest_size=8).digest(), "big") >> 1


def global_generator(device: torch.device) -> torch.Generator:
    """Return the generator that torch draws from on a device where it is given none."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator
