"""A state with a value of every type that a checkpoint can hold."""

from __future__ import annotations

import math
from typing import Any

import torch


def state() -> dict[str, Any]:
    shared = torch.randn(3, 2)
    return {
        "svi": {
            "parameters": {"encoder.weight": shared, "bias": torch.randn(4, dtype=torch.float32)},
            "modules": [{"encoder.weight": shared, "count": torch.tensor(7)}],
            "optimizer": {
                "state": {0: {"step": torch.tensor(7.0)}, 1: {}},
                "groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}],
            },
        },
        "rng": {"cpu": torch.get_rng_state(), "cuda": []},
        "mask": torch.tensor([True, False]),
        "transposed": torch.arange(6).view(2, 3).T,
        "expanded": torch.ones(2).expand(3, 2),
        "extremes": torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e308], dtype=torch.float64),
        "none": torch.zeros(0, 5),
        "epoch": 2**40,
        "best": {"elbo": -math.inf, "epoch": -1, "parameters": None},
        "floats": [0.1, 1e-300, -0.0, math.nan],
        "flag": True,
        "name": 'naïve "sha256": "' + "0" * 64 + '"',
        "": {},
    }
