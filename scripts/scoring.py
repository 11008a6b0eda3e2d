"""The speed of scores: importance sampling, and the log-densities of annealed importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baselines import decoder_layers, handwritten_scores
from contenders import CHAINS, annealing, as_json, batches_of
from timing import Contender, Timing

from pyro_vae import config, data
from pyro_vae.config import programs
from pyro_vae.evaluate import log_weights
from pyro_vae.trace import CompiledBackend, EagerBackend, read_only

_IMAGES_SCORED = 100  # test images whose scores are timed


def times_of_scores(
    settings: config.Config,
    images: data.Observed,
    num_samples: int,
    flops_per_second: float,
    race: Callable[[dict[str, Contender], data.Batches], dict[str, Timing]],
) -> dict[str, Any]:
    """Time importance sampling, and the log-densities of AIS with their gradients; print and return the results.

    Args:
        settings: Configuration of the program.
        images: Images of the data set.
        num_samples: Number of particles per image.
        flops_per_second: Rate of a large matrix product.
        race: Function that times contenders.
    """
    x = images.split("test")[:_IMAGES_SCORED]
    program: Any = programs.build(settings, images.pixels)

    def ours(backend: EagerBackend) -> Contender:
        return Contender(lambda _: log_weights(program.model, program.guide, x, num_samples, seed=0, backend=backend))

    contenders = {
        "pyro_vae, compiled": ours(CompiledBackend()),
        "pyro_vae, run by Pyro": ours(EagerBackend()),
        "hand-written": Contender(handwritten_scores(program, x, num_samples)),
    }
    timings = race(contenders, batches_of(settings, images))
    decodes = len(x) * num_samples
    flops = decodes * 2 * sum(a * b for a, b in decoder_layers(settings, images))
    print(f"\nimportance sampling, {len(x)} images x {num_samples} particles")
    for name, timing in timings.items():
        fraction = flops / timing.seconds / flops_per_second
        print(
            f"  {name:30}{decodes / timing.seconds:12,.0f} decodes/s{1 / timing.ratio:8.2f}x hand-written"
            f"{100 * fraction:6.0f} % of the rate of a large matrix product"
        )
    report: dict[str, Any] = {"decodes": decodes, "flops": flops, "importance_sampling": as_json(timings)}
    with read_only(program.model, program.guide, x=x):
        timings = race(annealing(program, x), batches_of(settings, images))
    print(f"annealed importance sampling, {len(x)} images x {CHAINS} chains")
    for name, timing in timings.items():
        rate = CHAINS * len(x) / timing.seconds
        print(f"  {name:30}{rate:12,.0f} log-densities with gradient/s{1 / timing.ratio:8.2f}x bare decoder")
    return {**report, "annealing": as_json(timings)}
