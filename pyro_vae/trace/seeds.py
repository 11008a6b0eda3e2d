r"""One seed, split by purpose: no two kinds of draws share their noise.

Seeded alike, the noise of p(x|z) would be that of z, and a user's data, drawn after ``torch.manual_seed(0)``, would be
the first draws of an instrument called with ``seed=0``.
"""

from __future__ import annotations

import hashlib

_SALT = b"pyro_vae draws"


def derive_seed(seed: int | None, *purpose: str | int) -> int | None:
    """Return the seed of one purpose, a hash of the seed and of what the draws are for; None stays None."""
    if seed is None:
        return None
    words = "/".join(map(str, (seed, *purpose))).encode()
    # 63 bits: torch's generators take a signed number.
    return int.from_bytes(hashlib.blake2b(words, key=_SALT, digest_size=8).digest(), "big") >> 1
