"""Programs of tables: densities are in the units of the data, whatever these units are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae import data
from pyro_vae.config import Config, programs
from pyro_vae.evaluate import log_weights

SETTINGS: dict[str, Any] = {"data": "./mine", "latent_dim": 2, "hidden_dim": 5, "device": "cpu"}


def program_of(rows: Tensor, likelihood: str, *, counts: bool = False) -> Any:
    torch.manual_seed(0)
    images = data.Numbers("mine", rows, rows, rows, counts=counts)
    return programs.build(Config(likelihood=likelihood, **SETTINGS), images).to(rows.device)


@pytest.mark.parametrize("likelihood", ["gaussian", "isotropic-gaussian"])
def test_density_changes_with_the_units_by_the_jacobian(likelihood: str) -> None:
    """That of y = a x + b is that of x divided by the product of |a|: networks receive equal standardized numbers."""
    rows = torch.randn(40, 3) @ torch.randn(3, 3)
    scale, shift = torch.tensor([10.0, 0.02, 3.0]), torch.tensor([5.0, 1.0, -70.0])
    changed = scale * rows + shift
    first, second = program_of(rows, likelihood), program_of(changed, likelihood)
    before = log_weights(first.model, first.guide, rows, 7, seed=0)
    after = log_weights(second.model, second.guide, changed, 7, seed=0)
    expected = before - scale.log().sum()
    torch.testing.assert_close(
        torch.as_tensor(after), torch.as_tensor(expected), rtol=1e-5, atol=1e-5, check_dtype=False
    )


def test_initialization_is_independent_columns_with_their_own_mean() -> None:
    rows = 5 + torch.randn(2000, 3) * torch.tensor([0.1, 1.0, 100.0])
    likelihood = program_of(rows, "isotropic-gaussian").likelihood
    with torch.no_grad():
        likelihood.net[-2][-1].weight.zero_()
    q = likelihood(torch.zeros(2)).base_dist
    torch.testing.assert_close(q.mean, rows.mean(0))
    torch.testing.assert_close(q.stddev, rows.std(0) * (1 + 1 / 256))  # plus the floor


def test_encoders_of_counts_receive_standardized_logarithms() -> None:
    """log(1 + x), so that a column of thousands weighs no more than one of ones."""
    rows = torch.poisson(torch.tensor([1.0, 30.0, 4000.0]).expand(500, 3))
    program = program_of(rows, "poisson", counts=True)
    read: list[Tensor] = []
    net = program.posterior.net
    net[2].register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    net(rows)
    torch.testing.assert_close(read[0].mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(read[0].std(0), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(read[0] * rows.log1p().std(0) + rows.log1p().mean(0), rows.log1p(), rtol=1e-4, atol=1e-4)
