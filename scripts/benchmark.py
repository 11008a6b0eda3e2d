"""Time a training step against hand-written PyTorch and against stock Pyro, in one run.

    python scripts/benchmark.py --data mnist --data-root DIR

Blocks of steps of the three programs take turns, so that a machine whose speed drifts slows all of them; the
medians of the paired ratios are what counts. Same network, prior N(0, I), one particle, same data path. Ours and
the hand-written one take a fused Adam under a cosine schedule; stock Pyro its own, one for each tensor.

Then, in the same way, the densities of annealed importance sampling with their gradients in z, 16 chains of a batch
from the guide, against a bare loop over the decoder, forward and backward.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyro
import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae import cli, config, data, programs
from pyro_vae.evaluate import paths
from pyro_vae.infer import ELBO, SVI, Optim, schedules
from pyro_vae.model import nets
from pyro_vae.trace import quietly

Step = Callable[[Tensor], object]

_CHAINS = 16


@dataclass(frozen=True)
class Arguments:
    """Time a training step against hand-written PyTorch and against stock Pyro."""

    data: str = "digits"
    """Data set, as in fit.py."""
    data_root: Path = Path("data")
    """Folder of the downloaded data sets."""
    batch_size: int = 100
    """Images per step."""
    hidden_dim: int = 200
    """Units of a hidden layer."""
    blocks: int = 10
    """Blocks of each program that are timed."""
    steps: int = 100
    """Steps of a block."""


def main(arguments: Arguments) -> None:
    """Run the script."""
    chosen = {name: value for name, value in vars(arguments).items() if name not in ("blocks", "steps")}
    settings = config.Config(**chosen).resolved()
    images = config.load_images(settings)
    look = config.look(settings, density=False)
    batches = data.Batches(images.train, settings.batch_size, settings.seed, look)
    stream = (batches.observe(batch) for epoch in count() for batch in batches(epoch))
    print(f"{settings.data}, batch {settings.batch_size}, torch {torch.__version__}, {settings.device}")
    steps = {
        "pyro_vae SVI": ours(settings, images),
        "stock pyro.infer.SVI": stock(settings, images),
        "hand-written PyTorch": handwritten(settings, images),
    }
    for name, seconds, ratio in compare(steps, stream, arguments.blocks, arguments.steps, settings.device):
        epoch = seconds * settings.epoch_steps(batches.num_images)
        print(f"{name:24}{seconds * 1e3:8.2f} ms/step{epoch:8.2f} s/epoch{ratio:8.2f}x hand-written")
    with annealing(settings, images, next(stream)) as densities:
        turns = max(1, arguments.steps // 10)
        for name, seconds, ratio in compare(densities, stream, arguments.blocks, turns, settings.device):
            rate = _CHAINS * settings.batch_size / seconds
            print(f"{name:24}{rate:12,.0f} densities with gradient/s{1 / ratio:8.2f}x bare decoder")


def compare(
    steps: Mapping[str, Step], stream: Iterator[Tensor], blocks: int, turns: int, device: str
) -> Iterator[tuple[str, float, float]]:
    """Time blocks of each in turn; yield (name, median seconds of one, median ratio to the last in the same block)."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(-1, blocks):  # the first warms up
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(turns):
                step(next(stream))
            if device == "cuda":
                torch.cuda.synchronize()
            if block >= 0:
                seconds[name].append((time.perf_counter() - start) / turns)
    base = list(seconds.values())[-1]
    for name, times in seconds.items():
        yield name, statistics.median(times), statistics.median(a / b for a, b in zip(times, base, strict=True))


def ours(settings: config.Config, images: data.Images) -> Step:
    """Return the step that scripts/fit.py takes, the decay of the learning rate included."""
    program = programs.build(settings, images)
    schedule = schedules.over(schedules.cosine, 100_000)
    svi = SVI(
        program.model,
        program.guide,
        Optim(torch.optim.Adam, {"lr": settings.learning_rate, "fused": True}, schedule),
        ELBO(),
    )
    return alone(svi)


def stock(settings: config.Config, images: data.Images) -> Step:
    """Return the step of Pyro's own SVI, as its tutorials write it, validation off."""
    program = programs.build(settings, images)
    adam = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": settings.learning_rate})
    svi = pyro.infer.SVI(program.model, program.guide, adam, pyro.infer.Trace_ELBO())
    return alone(svi)


def alone(svi: pyro.infer.SVI) -> Step:
    """Return the step of a driver with a param store of its own and validation off; that costs microseconds."""
    store: Any = {"params": {}, "constraints": {}}

    def step(x: Tensor) -> object:
        with pyro.get_param_store().scope(store), pyro.validation_enabled(False):
            return svi.step(x)

    return step


def handwritten(settings: config.Config, images: data.Images) -> Step:
    """Return a step written by hand: networks of the same layers, the analytic KL, one fused Adam, no Pyro."""
    pixels, latents, hidden = math.prod(images.pixel_shape), settings.latent_dim, [settings.hidden_dim] * 2
    encoder = nets.MLP([pixels, *hidden, 2 * latents]).to(settings.device)
    decoder = nets.MLP([latents, *hidden, pixels]).to(settings.device)
    params = nn.ModuleList([encoder, decoder]).parameters()
    adam = torch.optim.Adam(params, lr=settings.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 100_000)

    def step(x: Tensor) -> object:
        x = x.flatten(1)
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        scale = log_scale.exp()
        logits = decoder(loc + scale * torch.randn_like(scale))
        distortion = binary_cross_entropy_with_logits(logits, x, reduction="sum")
        rate = 0.5 * (loc**2 + scale**2 - 1 - 2 * log_scale).sum()
        loss = distortion + rate
        loss.backward()
        adam.step()
        scheduler.step()
        adam.zero_grad()
        return loss.detach()

    return step


@contextmanager
def annealing(settings: config.Config, images: data.Images, x: Tensor) -> Iterator[dict[str, Step]]:
    """Make the densities and gradients of annealed importance sampling, and a bare loop over the same decoder."""
    program: Any = programs.build(settings, images)
    decoder, bias = program.likelihood.net, program.likelihood.bias
    u = torch.randn(_CHAINS, len(x), settings.latent_dim, device=x.device)

    def bare(_: Tensor) -> object:
        z = u.clone().requires_grad_()
        log_likelihood = -binary_cross_entropy_with_logits(
            decoder(z).squeeze(-3) + bias[0], x.expand(len(z), *x.shape), reduction="none"
        ).sum((-2, -1))
        log_joint = log_likelihood - 0.5 * z.square().sum(-1)
        return torch.autograd.grad(log_joint.sum(), z)

    with quietly(program.model, program.guide, x=x):
        path = paths.Path(program.model, program.guide, x, "guide")
        yield {"pyro_vae annealing": lambda _: path.at(u), "bare decoder": bare}


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__))
