"""Third-party programs: any call signature."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.any_program import Small, adam, binary
from helpers.oracles import LinearGaussian
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import ELBO, SVI, Fit, log_weights, score
from pyro_vae.trace import Batch, draw, log_density


class Conditional(nn.Module):
    """A VAE given labels, passed by position, by name, or in a list with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(9, 4), nn.Linear(5, 6)

    def model(self, x: Tensor, y: Tensor, weights: list[Any] | None = None) -> None:
        pyro.module("conditional", self)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = self.dec(torch.cat([z, y.expand(*z.shape[:-1], 3)], -1))
            logits = logits if weights is None else weights[1] * logits + weights[0].unsqueeze(-1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor, weights: list[Any] | None = None) -> None:
        pyro.module("conditional", self)
        with pyro.plate("data"):
            loc, log_scale = self.enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def batches() -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    x, y = binary(8, 6), torch.eye(3)[torch.arange(8) % 3]
    return [
        ((x, y), {}),
        ((x,), {"y": y}),
        ((x, y, [torch.randn(8), 2.0]), {}),
        ((x,), {"y": y, "weights": [y[:, 0], 0.5]}),
    ]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("graph", [None, "recorded"])
def test_any_arguments_train_as_in_stock_pyro(number: int, graph: str | None) -> None:
    args, kwargs = batches()[number]
    losses, weights = [], []
    for ours in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Conditional()
        driver: Any = (
            SVI(program.model, program.guide, adam(), ELBO(), execution=graph)
            if ours
            else pyro.infer.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        )
        losses.append([float(driver.step(*args, **kwargs)) for _ in range(5)])
        weights.append([p.detach().clone() for p in program.parameters()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("number", range(4))
def test_batch_splits_repeats_and_scores_all_tensors_with_its_rows(number: int) -> None:
    args, kwargs = batches()[number]
    program, batch = Conditional(), Batch(*args, **kwargs)
    values, _ = draw(program.guide, batch, 3)
    whole = sum(log_density(program.model, batch, values).values())
    parts = [
        sum(log_density(program.model, part, {"z": z}).values())
        for part, z in zip(batch.split(3), values["z"].split(3, 1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    chosen = torch.tensor([5, 0])
    one = sum(log_density(program.model, batch[chosen], {"z": values["z"][:, chosen]}).values())
    torch.testing.assert_close(one, whole[:, chosen])
    assert len(batch.repeat(3)) == 24
    assert score(program.model, program.guide, batch, 20, seed=0).num_images == 8


def test_data_loader_of_images_and_labels_is_fitted() -> None:
    x, y = binary(40, 6), torch.eye(3)[torch.arange(40) % 3]
    program = Conditional()
    svi = SVI(program.model, program.guide, adam(), ELBO(), execution="recorded")
    loader = DataLoader(TensorDataset(x, y), batch_size=12, shuffle=True)
    epochs = list(Fit(svi, loader, epochs=30, valid=(x, y)))
    assert epochs[-1].step == 30 * 4
    assert epochs[-1].valid_elbo > epochs[0].valid_elbo
    with pytest.raises(TypeError, match="DataLoader"):
        Fit(svi, iter(loader), epochs=1)


def test_mismatched_precision_of_x_is_named() -> None:
    program = Small().float()
    with pytest.raises(ValueError, match=r"x is torch\.\w+ and the program computes in"):
        score(
            program.model, program.guide, binary(3, 6).half() if torch.get_default_dtype() != torch.float16 else None, 5
        )


def test_table_as_long_as_the_batch_is_not_split() -> None:
    program, table = LinearGaussian(2), torch.randn(4, 7)

    def model(x: Tensor, table: Tensor) -> None:
        program.model(x - table.sum(0))

    def guide(x: Tensor, table: Tensor) -> None:
        program.guide(x - table.sum(0))

    x = program.simulate(4)
    expected = program.log_evidence(x - table.sum(0)).expand(3, 4)
    torch.testing.assert_close(log_weights(model, guide, (x, table), 3), expected)
