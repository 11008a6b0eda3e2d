"""Evaluating a program while it trains does not change training: the run ends bit-identical."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.bits import assert_same, records, untimed
from helpers.fits import Fixed, new_fit
from helpers.programs import small_vae
from torch import nn

from pyro_vae.evaluate import AISConfig, impute, per_image_elbos, sbc_ranks
from pyro_vae.infer import Fit
from pyro_vae.instruments.annealing import measure_ais
from pyro_vae.instruments.probe import probe_rows
from pyro_vae.instruments.score_figures import draw_scores
from pyro_vae.instruments.scores import measure_scores
from pyro_vae.model import VAE
from pyro_vae.report import curves
from pyro_vae.runs import Checkpoints, LabeledImages, RunFolder, checkpoint

pytestmark = pytest.mark.usefixtures("short_annealing")

Look = Callable[[VAE, Fit, RunFolder], Any]


def scores(vae: VAE, fit: Fit, folder: RunFolder) -> None:
    measure_scores(vae, Fixed().valid, 30, density=False, seed=0)


def annealing(vae: VAE, fit: Fit, folder: RunFolder) -> None:
    if fit.svi.steps % 8 == 1:  # takes about a second
        x, settings = Fixed().valid[:4], AISConfig(2, 4, 2)
        measure_ais(vae, x, settings, 0)
        holes = x.clone()
        holes[:, 0] = torch.nan
        impute(vae.model, vae.guide, holes, settings, fill_value=torch.zeros_like(x[0]), seed=0)


def pictures(vae: VAE, fit: Fit, folder: RunFolder) -> None:
    if fit.svi.steps % 8 == 1:  # takes about a second
        found, _ = measure_scores(vae, Fixed().valid, 30, density=False, seed=0)
        folder.write_scores(found)
        draw_scores(folder, vae, Fixed().valid, found, seed=0)
        assert not folder.undrawn
        folder.save_figure("bounds", curves.bounds({"a": found}))


def records_of_it(vae: VAE, fit: Fit, folder: RunFolder) -> None:
    folder.append_epoch({"epoch": fit.svi.steps, "elbo": float(fit.svi.elbo)})
    Checkpoints(folder.checkpoints, {}).save(fit.svi.steps, fit.state_dict())


def instruments(vae: VAE, fit: Fit, folder: RunFolder) -> None:
    if fit.svi.steps % 8 == 1:
        per_image_elbos(vae.model, vae.guide, Fixed().valid[:4], num_steps=3, seed=0)
    sbc_ranks(vae.model, vae.guide, Fixed().valid[:4], 9, seed=0)


def probes(vae: VAE, fit: Fit, folder: RunFolder) -> None:
    if fit.svi.steps % 32 == 1:
        known = LabeledImages(Fixed().valid[:8], np.arange(8) % 2)
        with pyro.get_param_store().scope(), torch.random.fork_rng():
            untrained = small_vae()
        folder.save_figure("probe", curves.probe(probe_rows(vae, untrained, known, known, 0)))


def run(look: Look, graph: str | None, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a program with dropout and batch statistics, call `look` after each step; return state and epochs."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    vae = small_vae()
    vae.likelihood.net.append(nn.Dropout(0.2))
    fit = new_fit(vae, graph=graph)
    results = RunFolder(folder)
    results.create({}, overwrite=True)
    epochs = []
    for epoch in fit.iterate(lambda: True):
        epochs.append(epoch)
        look(vae, fit, results)
    checkpoint.save(folder / "end", fit.state_dict())
    return untimed(checkpoint.load(folder / "end")), records(epochs)


@cache
def trained_without_evaluation(graph: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train without evaluation."""
    with TemporaryDirectory() as folder:
        return run(lambda vae, fit, folder: None, graph, Path(folder) / "plain")


@pytest.mark.parametrize("graph", [None, "recorded"])
@pytest.mark.parametrize("look", [scores, annealing, pictures, records_of_it, instruments, probes])
def test_evaluation_does_not_change_training(
    look: Look, graph: str | None, tmp_path: Path, promised: Callable[[str], None]
) -> None:
    plain = trained_without_evaluation(graph)
    seen = run(look, graph, tmp_path / "seen")
    assert_same(seen[0], plain[0])
    assert seen[1] == plain[1]
    promised("evaluation after each training step: the run ends bit-identical")
