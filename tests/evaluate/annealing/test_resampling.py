"""Resampling of annealed particles (SMC): unbiased, with standard errors over groups that cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.oracles import LinearGaussian
from scipy.stats import binomtest
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluate import AISConfig, ais, iwae
from pyro_vae.evaluate.annealing.paths import AnnealingPath
from pyro_vae.evaluate.annealing.pilot import adapt_chains
from pyro_vae.evaluate.annealing.resampling import resample
from pyro_vae.evaluate.annealing.states import PathState
from pyro_vae.trace import read_only


def particles(num_chains: int, num_images: int) -> PathState:
    """Return particles whose every field has the number of the particle."""
    number = torch.arange(num_chains * num_images, dtype=torch.get_default_dtype()).reshape(num_chains, num_images)
    return PathState(number.unsqueeze(-1), number, number, number.unsqueeze(-1), number.unsqueeze(-1))


def test_copies_are_in_proportion_to_weights_and_stay_in_their_group() -> None:
    """Each particle has floor(S w) or ceil(S w) copies, and the mean weight of each group does not change."""
    log_w = torch.randn(3 * 8, 50, dtype=torch.float64) * torch.linspace(0, 3, 50)
    log_w[::5] = -torch.inf
    point = particles(*log_w.shape)
    moved, after = resample(point, log_w, 8)
    torch.testing.assert_close(iwae(after, 8), iwae(log_w, 8))
    changed = 0
    for group in range(3):
        rows = slice(8 * group, 8 * group + 8)
        for image in range(50):
            own, found = point.log_joint[rows, image], moved.log_joint[rows, image]
            copies = (found == own.unsqueeze(1)).sum(1)
            assert copies.sum() == 8
            share = 8 * log_w[rows, image].softmax(0)
            if (1 / (share / 8).square().sum()) < 4:
                changed += 1
                assert ((copies >= (share - 1e-9).floor()) & (copies <= (share + 1e-9).ceil())).all()
                assert (after[rows, image] == after[rows.start, image]).all()
            else:
                assert (copies == 1).all()
                assert torch.equal(after[rows, image], log_w[rows, image])
    assert 0 < changed < 150
    assert all(torch.equal(field.reshape(moved.log_joint.shape), moved.log_joint) for field in moved)


def test_groups_without_weight_or_with_equal_weights_are_kept() -> None:
    log_w = torch.tensor([[-torch.inf, 0.0], [-torch.inf, 0.0]], dtype=torch.float64)
    point = particles(2, 2)
    moved, after = resample(point, log_w, 2)
    assert torch.equal(moved.u, point.u)
    assert torch.equal(after, log_w)


def estimates(program: LinearGaussian, x: Tensor, num_groups: int, group_size: int, seed: int) -> Tensor:
    """Return w / p(x) of G groups for each image, (G, B), for few temperatures from the prior."""
    with read_only(program.model, program.guide, x=x, seed=seed):
        path = AnnealingPath(program.model, program.guide, x, "prior")
        chains = adapt_chains(path, "adaptive", 6, 2, iter)
        found = chains.forward(chains.path.draw(num_groups * group_size), iter, group_size)
        return (iwae(found.log_w, group_size) - program.log_evidence(x)).exp()


def test_mean_weights_of_groups_are_unbiased_and_vary_less_than_without_resampling() -> None:
    """E[w] = p(x) over 4,000 groups of 8, 3 images at 4 s.e.: false alarms 2e-4. Variances differ by far more."""
    program = LinearGaussian(5)
    x = program.simulate(3)
    found = estimates(program, x, 4000, 8, 0)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - 1).abs() < 4 * error).all()
    alone = estimates(program, x, 32_000, 1, 0).unflatten(0, (-1, 8)).mean(1)
    assert (found.var(0) < alone.var(0)).all()


def test_standard_errors_cover_the_truth() -> None:
    """In 300 repetitions with 32 groups of 8, log p(x) +- 2 s.e. covers the truth in 90 % or more, level 1e-3."""
    program = LinearGaussian(3)
    x = program.simulate(1).expand(300, -1)
    settings = AISConfig(256, 10, 2, start="prior", group_size=8)
    found = ais(program.model, program.guide, x, settings, seed=0)
    assert found.log_w.shape == (32, 300)
    covered = np.abs(found.lower - program.log_evidence(x).cpu().numpy()) < 2 * found.lower_se
    assert binomtest(int(covered.sum()), len(covered), 0.9, alternative="less").pvalue > 1e-3


def test_groups_divide_the_chains() -> None:
    with pytest.raises(UserError, match="group_size is 3; it must divide num_chains, 16"):
        AISConfig(group_size=3)
