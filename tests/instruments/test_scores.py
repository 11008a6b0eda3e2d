"""The main measurement for data of any shape: the same metrics per dimension, and pictures for images."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pyro
import pytest
import torch
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.config import Config, programs
from pyro_vae.instruments.score_figures import draw_scores
from pyro_vae.instruments.scores import measure_scores
from pyro_vae.runs import RunFolder

SHAPES = [(8, 8), (1, 8, 8), (3, 8, 8), (2, 8, 8)]


@pytest.mark.parametrize(
    ("net", "shape"), [*(("conv", shape) for shape in SHAPES), *(("mlp", s) for s in [*SHAPES, (64,)])]
)
def test_fair_coins_cost_a_bit_per_dimension(net: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """An untrained decoder starts at the frequency of each dimension, plus the spread of its logits."""
    settings = Config(net=net, latent_dim=4, hidden_dim=16).resolve()
    pixels = 255 * torch.randint(0, 2, (200, *shape)).byte()
    images = pv.data.Images("coins", pixels, pixels[:20], pixels[:20]).observed("none")
    pyro.set_rng_seed(0)
    vae = programs.build(settings, images.pixels)
    x = images.split("test")
    scores, numbers = measure_scores(vae, x, 50, density=False, seed=0)
    assert numbers["bits_per_dim"] == pytest.approx(-scores.log_likelihood.mean() / (math.prod(shape) * math.log(2)))
    assert 0.9 < numbers["bits_per_dim"] < 1.3

    run = RunFolder(tmp_path / "run")
    run.create(settings.to_json())
    draw_scores(run, vae, x, scores, 0)
    assert not run.undrawn
    drawn = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    pictures = {"reconstructions.png", "prior_samples.png"}
    assert drawn == {"khat.png"} | (pictures if shape[:-2] in ((), (1,), (3,)) else set())


class _Titles:
    """A folder that collects the titles of figures instead of drawing them."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def drawing(self, name: str) -> nullcontext[None]:
        return nullcontext()

    def save_figure(self, name: str, figure: Figure) -> None:
        self.found[name] = figure.axes[0].get_title()


@pytest.mark.parametrize(
    ("likelihood", "what"), [("gaussian", "means of"), ("logistic-mixture", "means of 100 draws of")]
)
def test_titles_distinguish_means_from_draws(likelihood: str, what: str) -> None:
    """The logistic mixture of colors has no mean in closed form."""
    settings = Config(likelihood=likelihood, binarize="none", net="linear", latent_dim=2).resolve()
    pixels = torch.randint(0, 256, (40, 3, 4, 4)).byte()
    images = pv.data.Images("noise", pixels, pixels[:20], pixels[:20]).observed("none")
    pyro.set_rng_seed(0)
    vae, x = programs.build(settings, images.pixels), images.split("test")
    scores, _ = measure_scores(vae, x, 50, density=likelihood == "gaussian", seed=0)
    titles = _Titles()
    draw_scores(cast(RunFolder, titles), vae, x, scores, 0)
    assert titles.found["reconstructions"] == f"test images above {what} p(x|z),\nz from q(z|x)"
    assert titles.found["prior_samples"] == f"{what} p(x|z) for z from the prior"
