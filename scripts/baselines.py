"""Baselines of the benchmark: stock Pyro, and the same step and scores written by hand in PyTorch."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pyro
import torch
from timing import Contender, Step
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae import data
from pyro_vae.config import Config, programs
from pyro_vae.model import nets

STEPS = 100_000  # length of the learning-rate schedule
_ROWS_SCORED = 4000  # rows (particles x images) per chunk of the hand-written loop: the fastest on the tested CPU


def encoder_layers(settings: Config, images: data.Observed) -> list[tuple[int, int]]:
    """Return the numbers of inputs and outputs of each layer of the encoder."""
    pixels, hidden = math.prod(images.pixels.pixel_shape), settings.hidden_dim
    return [(pixels, hidden), (hidden, hidden), (hidden, 2 * settings.latent_dim)]


def decoder_layers(settings: Config, images: data.Observed) -> list[tuple[int, int]]:
    """Return the numbers of inputs and outputs of each layer of the decoder."""
    pixels, hidden = math.prod(images.pixels.pixel_shape), settings.hidden_dim
    return [(settings.latent_dim, hidden), (hidden, hidden), (hidden, pixels)]


def floor(settings: Config, images: data.Observed, machine: tuple[float, float]) -> tuple[float, float]:
    """Return lower bounds on the seconds of a step: for its matrix products, and for the bytes that it moves.

    Args:
        settings: Configuration of the step.
        images: Images of the data set.
        machine: Operations per second and bytes per second of the device.
    """
    encoder, decoder = encoder_layers(settings, images), decoder_layers(settings, images)
    rows = settings.batch_size * settings.num_particles
    # One product in the forward pass and two in the backward pass, for the gradients of weights and inputs; the
    # first layer needs no gradient of its input.
    products = settings.batch_size * (3 * sum(a * b for a, b in encoder) - math.prod(encoder[0]))
    products += rows * 3 * sum(a * b for a, b in decoder)
    weights = sum((a + 1) * b for a, b in (*encoder, *decoder))
    # Adam reads weight, gradient and two moments, and writes all but the gradient: 7 values per weight. Each unit
    # is written and read in the forward and in the backward pass: 4 values per unit.
    units = settings.batch_size * sum(b for _, b in encoder) + rows * sum(b for _, b in decoder)
    copied = 4 * (7 * weights + 4 * units)
    return 2 * products / machine[0], copied / machine[1]


def stock(settings: Config, images: data.Observed, batches: data.Batches) -> Contender:
    """Return a step of `pyro.infer.SVI` as in Pyro's tutorials, without validation."""
    program = programs.build(settings, images.pixels)
    adam = pyro.optim.PyroOptim(torch.optim.Adam, {"lr": settings.learning_rate})
    loss = pyro.infer.Trace_ELBO(settings.num_particles, max_plate_nesting=1, vectorize_particles=True)
    svi = pyro.infer.SVI(program.model, program.guide, adam, loss)
    return alone(lambda batch: svi.step(batches.observe(batch)))


def alone(step: Step) -> Contender:
    """Return a contender that runs with a separate param store and without validation."""
    store: Any = {"params": {}, "constraints": {}}

    def context() -> AbstractContextManager[Any]:
        with ExitStack() as stack:
            stack.enter_context(pyro.get_param_store().scope(store))
            stack.enter_context(pyro.validation_enabled(False))
            return stack.pop_all()

    return Contender(step, context)


def handwritten(settings: Config, images: data.Observed, batches: data.Batches, *, compiled: bool = False) -> Contender:
    """Return a step in plain PyTorch: networks of the same sizes, analytic KL and a single fused Adam."""
    encoder_sizes = [encoder_layers(settings, images)[0][0], *(b for _, b in encoder_layers(settings, images))]
    decoder_sizes = [settings.latent_dim, *(b for _, b in decoder_layers(settings, images))]
    encoder, decoder = (nets.MLP(sizes).to(settings.device) for sizes in (encoder_sizes, decoder_sizes))
    params = nn.ModuleList([encoder, decoder]).parameters()
    adam = torch.optim.Adam(params, lr=settings.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    particles = [settings.num_particles] if settings.num_particles > 1 else []

    def loss_of(batch: Tensor) -> Tensor:
        x = images.observe(batches.pixels[batch]).flatten(1)
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        scale = log_scale.exp()
        logits = decoder(loc + scale * torch.randn(*particles, *scale.shape, device=x.device))
        distortion = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="sum")
        rate = 0.5 * (loc**2 + scale**2 - 1 - 2 * log_scale).sum()
        return distortion / settings.num_particles + rate

    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False, mode="reduce-overhead" if settings.device == "cuda" else None)

    def step(batch: Tensor) -> object:
        loss = loss_of(batch)
        loss.backward()
        adam.step()
        scheduler.step()
        adam.zero_grad()
        return loss.detach()

    return Contender(step)


def handwritten_scores(program: Any, x: Tensor, num_samples: int) -> Step:
    """Return importance sampling in plain PyTorch for the networks of a program: log weights, shape (K, B)."""
    encoder, decoder, bias = program.posterior.net, program.likelihood.net, program.likelihood.bias
    chunk = max(1, _ROWS_SCORED // len(x))

    @torch.no_grad()
    def weights(_: Tensor) -> object:
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        scale, log_weights = log_scale.exp(), []
        for start in range(0, num_samples, chunk):
            noise = torch.randn(min(chunk, num_samples - start), *loc.shape, device=x.device)
            z = loc + scale * noise
            logits = decoder(z).squeeze(-3) + bias[0]
            entropy = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
            log_ratio = 0.5 * (noise.square() - z.square()).sum(-1) + log_scale.sum(-1)
            log_weights.append((log_ratio - entropy.sum((-2, -1))).double())
        return torch.cat(log_weights)

    return weights
