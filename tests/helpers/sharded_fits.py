"""Fits whose steps several processes share, and their results: run by the test, and as a script in each process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from helpers.programs import ConvProgram, small_vae, two_layer
from helpers.unusual_programs import (
    Averaged,
    ByImages,
    Centered,
    Late,
    PerImage,
    Powered,
    Separate,
    Shared,
    Some,
    Unused,
)
from torch import Tensor, nn

from pyro_vae import cli, ranks
from pyro_vae.infer import ELBO, IWAE, STL, SVI, BetaELBO, BetaTCVAE, Fit, Optim, ShardedSVI, schedules
from pyro_vae.runs import checkpoint

NUM_IMAGES, SIZE = 29, 7  # the last batch of an epoch has one image
EPOCHS = 8


class Uneven:
    """Gray images in an order of the epoch, binarized again for every batch."""

    num_images = NUM_IMAGES

    def __init__(self, shape: tuple[int, ...], program: Any) -> None:
        self.program = program
        self.gray = torch.rand(NUM_IMAGES, *shape, generator=torch.Generator().manual_seed(0))

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        if hasattr(self.program, "epoch"):
            self.program.epoch = epoch
        yield from torch.arange(NUM_IMAGES).roll(epoch).split(SIZE)

    def observe(self, batch: Tensor) -> Tensor:
        return torch.bernoulli(self.gray[batch])


class Normalized(nn.Module):
    """A VAE whose encoder has batch normalization, dropout, or neither."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), layer, nn.Tanh(), nn.Linear(8, 4))
        self.decoder = nn.Linear(2, 6)

    def model(self, x: Tensor) -> None:
        pyro.module("program", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        pyro.module("program", self)
        loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class GammaLatent:
    """Its draws reject proposals, so that their number depends on the parameters; they are drawn at random first."""

    def model(self, x: Tensor) -> None:
        rate = pyro.param("rate", lambda: 1 + torch.rand(()), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Gamma(2.0, rate))
            pyro.sample("x", dist.Bernoulli(logits=z[:, None, None].log().expand(x.shape)).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        shape = pyro.param("shape", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Gamma(shape + x.mean((1, 2)), 1.0))


class Subsampled:
    """A plate that draws its own mini-batch, so that the program scales the terms of its images."""

    def model(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", NUM_IMAGES, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape[1:]).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


def fit_of(
    program: Any,
    loss: Any,
    execution: str | None = None,
    shape: tuple[int, ...] = (3, 2),
    *,
    dark: bool = False,
    **options: Any,
) -> Fit:
    """Return a fit, whose ELBO of dark validation images falls."""
    batches = Uneven(shape, program)
    optim = Optim(torch.optim.Adam, {"lr": 0.02, "fused": True}, schedules.per_step(schedules.cosine, 40))
    driver = SVI if ranks.size() == 1 else ShardedSVI
    valid = (batches.gray > 0.5).to(batches.gray.dtype)
    svi = driver(program.model, program.guide, optim, loss, execution=execution)
    return Fit(svi, batches, EPOCHS, valid=torch.zeros_like(valid) if dark else valid, **({"ema": 0.9} | options))


EXACT: dict[str, Callable[[], Fit]] = {
    "elbo": lambda: fit_of(small_vae(), ELBO()),
    "recorded": lambda: fit_of(small_vae(), ELBO(), "recorded"),
    "iwae": lambda: fit_of(small_vae(), IWAE(3), "recorded"),
    "beta": lambda: fit_of(small_vae(), BetaELBO(beta=2.0, warmup_steps=20), "recorded"),
    "stl with dropout": lambda: fit_of(Normalized(nn.Dropout(0.3)), STL(2)),
    "two latents": lambda: fit_of(two_layer(), ELBO(), "recorded"),
    "convolutions": lambda: fit_of(ConvProgram(), ELBO(), "recorded", (4, 4)),
    "rejection": lambda: fit_of(GammaLatent(), ELBO(), "recorded"),
    "early stopping": lambda: fit_of(small_vae(), ELBO(), "recorded", dark=True, patience=2, ema=0),
    "late parameter": lambda: fit_of(Late(), ELBO(), "recorded"),
    "unused parameters": lambda: fit_of(Unused(), IWAE(2), "recorded"),
    "parameter of some images": lambda: fit_of(Some(), ELBO()),
    "own objective": lambda: fit_of(Separate(), Powered(), "recorded"),
}
LONG: dict[str, Callable[[], Fit]] = {"compiled": lambda: fit_of(small_vae(), ELBO(), "compiled")}
COUPLED, DEPENDENT = "couples the images of a batch", "depends on the images or on their number"
REFUSED: dict[str, tuple[Callable[[], Fit], str]] = {
    "batch normalization": (lambda: fit_of(Normalized(nn.BatchNorm1d(8)), ELBO()), COUPLED),
    "total correlation": (lambda: fit_of(small_vae(), BetaTCVAE(beta=2.0, num_images=NUM_IMAGES)), COUPLED),
    "subsampled plate": (lambda: fit_of(Subsampled(), ELBO()), COUPLED),
    "objective of a batch": (lambda: fit_of(Separate(), Centered()), COUPLED),
    "mean over images": (lambda: fit_of(Separate(), Averaged()), COUPLED),
    "shared latent": (lambda: fit_of(Shared(), ELBO()), COUPLED),
    "parameter of one process": (lambda: fit_of(ByImages(), ELBO()), DEPENDENT),
    "parameters of images": (lambda: fit_of(PerImage(), ELBO()), DEPENDENT),
}


def outcome(make: Callable[[], Fit], seed: int = 0) -> dict[str, Any]:
    """Return the metrics, parameters and random state after a fit, or the message of its error."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    try:
        fit = make()
        epochs = [{**epoch.as_dict(), "seconds": 0.0} for epoch in fit]
    except ValueError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    params = {name: p.detach().clone() for name, p in fit.svi.optim.params.items()}
    recorded = fit.svi.recorded is not None and not getattr(fit.svi, "_refused", False)
    return {"epochs": epochs, "params": params, "random": torch.get_rng_state(), "recorded": recorded}


def main(folder: Path, names: list[str]) -> None:
    torch.set_default_dtype(torch.float64)
    fits = EXACT | LONG | {name: make for name, (make, _) in REFUSED.items()}
    results = {name: outcome(fits[name]) for name in names if name != "other seeds"}
    if "other seeds" in names:
        results["other seeds"] = outcome(EXACT["elbo"], seed=ranks.rank())
    checkpoint.save(folder / str(ranks.rank()), results)


if __name__ == "__main__":
    with cli.exit_status(), ranks.process_group("cpu"):
        main(Path(sys.argv[1]), sys.argv[2:])
