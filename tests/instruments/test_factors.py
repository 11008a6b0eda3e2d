"""The figure of factors: one row per unit, with every factor of which it is the most informative one."""

from __future__ import annotations

import numpy as np
import pyro
import torch

import pyro_vae as pv
from pyro_vae.config import Config, programs
from pyro_vae.instruments import factors
from pyro_vae.trace import Batch


def test_a_unit_of_two_factors_has_one_row_with_both_numbers() -> None:
    pixels = 255 * torch.randint(0, 2, (60, 4, 4)).byte()
    images = pv.data.Images("coins", pixels, pixels[:20], pixels[:20]).observed("none")
    pyro.set_rng_seed(0)
    program = programs.build(Config(net="linear", latent_dim=2).resolve(), images.pixels)
    numbers = {
        "factors": ["size", "color", "place"],
        "units": [1, 0, 1],
        "information": [[0.1, 0.72, 0.2], [0.31, 0.4, 0.53]],
    }
    codes = np.linspace(-1, 1, 101)[:, None] * [1.0, 2.0]
    axes = factors._traversals(program, Batch.of(images.split("test"))[:1], codes, numbers, 0).axes[0]
    names = [label.get_text().split("\n") for label in axes.get_yticklabels()]
    assert names == [
        ["size 0.31", "place 0.53", "unit 1", "-1.96 to 1.96"],
        ["color 0.72", "unit 0", "-0.98 to 0.98"],
    ]
    assert "I(unit; factor) / H(factor)" in axes.get_title()
