"""Fits whose steps several processes share, and their results: run by the test, and as a script in each process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from helpers.programs import ConvProgram, Layered, small_vae, two_layer
from helpers.unusual_programs import (
    Averaged,
    Bounded,
    ByImages,
    Centered,
    Clipped,
    Distant,
    Late,
    OfLargeBatches,
    OfOtherBatches,
    PerImage,
    Powered,
    Separate,
    Shared,
    Some,
    Unused,
)
from torch import Tensor, nn

from pyro_vae import cli, ranks
from pyro_vae.infer import ELBO, IWAE, STL, SVI, BetaELBO, BetaTCVAE, Fit, Optim, ShardedSVI, schedules, validation
from pyro_vae.runs import checkpoint

NUM_IMAGES, SIZE = 29, 7  # the last batch of an epoch has one image
EPOCHS = 8
VALID_BATCH = 8  # four batches of validation images, which the processes share


class Uneven:
    """Gray images in an order of the epoch, binarized again for every batch."""

    num_images = NUM_IMAGES

    def __init__(self, shape: tuple[int, ...], program: Any, size: int = SIZE) -> None:
        self.program, self.size = program, size
        self.gray = torch.rand(NUM_IMAGES, *shape, generator=torch.Generator().manual_seed(0))

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        if hasattr(self.program, "epoch"):
            self.program.epoch = epoch
        yield from torch.arange(NUM_IMAGES).roll(epoch).split(self.size)

    def observe(self, batch: Tensor) -> Tensor:
        return torch.bernoulli(self.gray[batch])


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


class Tracking(Layered):
    """A program that keeps a moving average of its images, which no loss depends on."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.register_buffer("average", torch.zeros(3, 2))

    def model(self, x: Tensor) -> None:
        self.average.mul_(0.9).add_(0.1 * x.mean(0))
        super().model(x)


class RandomStart:
    """Parameters whose initial values are drawn when the program first runs."""

    def model(self, x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.randn(6))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=loc * z[:, None]).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        weights = pyro.param("weights", lambda: torch.randn(6))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x.flatten(1) @ weights, 0.5))


class Counting(nn.Module):
    """A program that counts its steps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(6))
        self.register_buffer("steps", torch.zeros(()))

    def model(self, x: Tensor) -> None:
        pyro.module("program", self)
        self.steps += 1
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=self.loc).expand_by([1]).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        pass


def fit_of(
    program: Any,
    loss: Any,
    execution: str | None = None,
    shape: tuple[int, ...] = (3, 2),
    shards: int | None = None,
    *,
    dark: bool = False,
    size: int = SIZE,
    **options: Any,
) -> Fit:
    """Return a fit, whose ELBO of dark validation images falls."""
    batches = Uneven(shape, program, size)
    optim = Optim(torch.optim.Adam, {"lr": 0.02, "fused": True}, schedules.per_step(schedules.cosine, 5 * EPOCHS))
    driver = SVI if ranks.size() == 1 and shards is None else partial(ShardedSVI, shards=shards)
    valid = (batches.gray > 0.5).to(batches.gray.dtype)
    svi = driver(program.model, program.guide, optim, loss, execution=execution)
    return Fit(svi, batches, EPOCHS, valid=torch.zeros_like(valid) if dark else valid, **({"ema": 0.9} | options))


EXACT: dict[str, Callable[[], Fit]] = {
    "elbo": lambda: fit_of(small_vae(), ELBO()),
    "recorded": lambda: fit_of(small_vae(), ELBO(), "recorded"),
    "iwae": lambda: fit_of(small_vae(), IWAE(3), "recorded"),
    "beta": lambda: fit_of(small_vae(), BetaELBO(beta=2.0, warmup_steps=20), "recorded"),
    "stl with dropout": lambda: fit_of(Layered(nn.Dropout(0.3)), STL(2)),
    "two latents": lambda: fit_of(two_layer(), ELBO(), "recorded"),
    "convolutions": lambda: fit_of(ConvProgram(), ELBO(), "recorded", (4, 4)),
    "rejection": lambda: fit_of(GammaLatent(), ELBO(), "recorded"),
    "early stopping": lambda: fit_of(small_vae(), ELBO(), "recorded", dark=True, patience=2, ema=0),
    "late parameter": lambda: fit_of(Late(), ELBO(), "recorded"),
    "late parameter, run by Pyro": lambda: fit_of(Late(), ELBO()),
    "unused parameters": lambda: fit_of(Unused(), IWAE(2), "recorded"),
    "parameter of some images": lambda: fit_of(Some(), ELBO()),
    "own objective": lambda: fit_of(Separate(), Powered(), "recorded"),
}
BOUNDED: dict[str, Callable[[], Fit]] = {"little memory": lambda: fit_of(Bounded(), ELBO())}
COMPILED: dict[str, Callable[[], Fit]] = {"compiled": lambda: fit_of(small_vae(), ELBO(), "compiled")}
COUPLED, DEPENDENT = "couples the images of a batch", "depends on the images or on their number"
REFUSED: dict[str, tuple[Callable[[], Fit], str]] = {
    "batch normalization": (lambda: fit_of(Layered(nn.BatchNorm1d(8)), ELBO()), COUPLED),
    "total correlation": (lambda: fit_of(small_vae(), BetaTCVAE(beta=2.0, num_images=NUM_IMAGES)), COUPLED),
    "subsampled plate": (lambda: fit_of(Subsampled(), ELBO()), COUPLED),
    "objective of a batch": (lambda: fit_of(Separate(), Centered()), COUPLED),
    "mean over images": (lambda: fit_of(Separate(), Averaged()), COUPLED),
    "distant images": (lambda: fit_of(Separate(), Distant()), COUPLED),
    "large batches": (lambda: fit_of(Separate(), OfLargeBatches(), "recorded"), COUPLED),
    "last batch": (lambda: fit_of(Separate(), OfOtherBatches(), size=6), COUPLED),
    "clipped gradients": (lambda: fit_of(Clipped(), ELBO()), COUPLED),
    "buffer of images": (lambda: fit_of(Tracking(), ELBO()), "computes buffers from the images"),
    "shared latent": (lambda: fit_of(Shared(), ELBO()), COUPLED),
    "parameter of one process": (lambda: fit_of(ByImages(), ELBO()), DEPENDENT),
    "parameters of images": (lambda: fit_of(PerImage(), ELBO()), DEPENDENT),
}


# With four shards. Parts of a batch of seven have one and two images, and three of the last batch are empty.
SHARDS: dict[str, Callable[[], Fit]] = {
    "shards, run by Pyro": lambda: fit_of(Layered(nn.Dropout(0.3)), STL(2), shards=4),
    "shards, recorded": lambda: fit_of(small_vae(), IWAE(3), "recorded", shards=4),
    "shards, random start": lambda: fit_of(RandomStart(), ELBO(), "recorded", shards=4),
    "shards, float32": lambda: fit_of(two_layer(), ELBO(), "recorded", shards=4),
}


def _lengthened(make: Callable[[], Fit]) -> Fit:
    with mock.patch.dict(globals(), EPOCHS=40):
        return make()


LONG = {
    f"{name}, 200 steps{dtype}": partial(_lengthened, make)
    for name, make in (EXACT | COMPILED | SHARDS).items()
    for dtype in ("", ", float32")
}
SHARDS_COMPILED: dict[str, Callable[[], Fit]] = {
    "shards, compiled": lambda: fit_of(small_vae(), ELBO(), "compiled", shards=4),
    "shards, compiled, float32": lambda: fit_of(ConvProgram(), ELBO(), "compiled", (4, 4), 4),
}
SHARDS_REFUSED: dict[str, Callable[[], Fit]] = {
    "draws by rejection": lambda: fit_of(GammaLatent(), ELBO(), shards=4),
    "changes buffers": lambda: fit_of(Counting(), ELBO(), shards=4),
    "couples the images": lambda: fit_of(small_vae(), BetaTCVAE(beta=2.0, num_images=NUM_IMAGES), shards=4),
    "3 processes cannot share 2 shards": lambda: fit_of(small_vae(), ELBO(), shards=2),
}
PAUSED_AFTER = 18  # steps: in the middle of an epoch


def outcome(make: Callable[[], Fit], seed: int = 0, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the metrics, parameters and random state after a fit, or the message of its error.

    Args:
        make: Function that builds the fit.
        seed: Random seed.
        state: State of the fit at a pause, from which it continues.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    try:
        fit = make()
        if state is not None:
            fit.load_state_dict(state)
        with mock.patch.object(validation, "_VALID_BATCH", VALID_BATCH):
            epochs = [{**epoch.as_dict(), "seconds": 0.0} for epoch in fit]
    except ValueError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    params = {name: p.detach().clone() for name, p in fit.svi.optim.params.items()}
    recorded = fit.svi.recorded is not None and not getattr(fit.svi, "_refused", False)
    return {"epochs": epochs, "params": params, "random": torch.get_rng_state(), "recorded": recorded}


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of the parameters of a fit, by its name."""
    return torch.float32 if "float32" in name else torch.float64


def paused(make: Callable[[], Fit]) -> dict[str, Any]:
    """Return the state of a fit in the middle of an epoch."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    fit = make()
    next(epoch for epoch in fit.iterate(lambda: fit.svi.steps == PAUSED_AFTER) if epoch is None)
    return fit.state_dict()


def main(folder: Path, names: list[str]) -> None:
    """Run fits by name; "pause: NAME" saves the state of one, from which "resume: NAME" continues."""
    results: dict[str, Any] = {}
    for full in names:
        action, _, rest = full.rpartition(": ")
        torch.set_default_dtype(dtype_of(full))
        refused = {name: make for name, (make, _) in REFUSED.items()}
        make = (EXACT | BOUNDED | LONG | refused | SHARDS | SHARDS_COMPILED | SHARDS_REFUSED)[rest]
        if action == "pause":
            results[full] = paused(make)
        else:
            state = checkpoint.load(folder / "paused")[f"pause: {rest}"] if action == "resume" else None
            results[full] = outcome(make, seed=ranks.rank() if action == "other seeds" else 0, state=state)
    checkpoint.save(folder / str(ranks.rank()), results)


if __name__ == "__main__":
    with cli.exit_status(), ranks.process_group("cpu"):
        main(Path(sys.argv[1]), sys.argv[2:])
