r"""Batches for evaluation, each with its own random seed, which several processes share out among themselves.

Every batch is evaluated by one process and with its own seed, so that no result depends on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae import parallel, ranks
from pyro_vae.evaluate import Scores, posterior_means, score
from pyro_vae.trace import Batch, CompiledBackend, Data, EagerBackend, derive_seed

EVAL_BATCH_SIZE = 100

Part: TypeAlias = tuple[Batch, int | None]


def batches(x: Data, seed: int) -> Iterator[Part]:
    """Yield batches of at most 100 images of x, shape (N, ...), each with a seed derived from `seed`."""
    for index, batch in enumerate(Batch.of(x).split(EVAL_BATCH_SIZE)):
        yield batch, derive_seed(seed, "batch", index)


def progress_bar(desc: str, unit: str) -> Callable[..., Any]:
    """Return a wrapper of loops that shows a progress bar, if on a terminal and in the first process."""
    return partial(tqdm, desc=desc, unit=unit, disable=None if ranks.is_first() else True, leave=False)


def posterior_means_batched(program: Any, x: Data, seed: int) -> Tensor:
    """Compute the posterior means of x, shape (N, ...), in batches. The result is float64 of shape (N, units)."""

    def means(part: Part) -> Tensor:
        images, batch_seed = part
        return posterior_means(program.guide, images, batch_seed)

    return torch.cat(list(parallel.map_parts(means, batches(x, seed))))


def score_batched(
    program: Any, x: Data, num_samples: int, *, seed: int, compiled: bool, proposal: str = "guide"
) -> Scores:
    """Score x, shape (N, ...), in batches. The result is that of `evaluate.score` with this seed and batch size.

    Args:
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Images as the program observes them, shape (N, ...).
        num_samples: Number K of importance samples per image.
        seed: Random seed of the samples.
        compiled: Whether to evaluate log-densities with compiled graphs.
        proposal: Proposal of the weights that estimate log p(x), as in `evaluate.score`.
    """
    parts = list(batches(x, seed))
    bar = progress_bar("log p(x)", "batch")
    if compiled and ranks.size() > 1:
        return _score_compiled(program, parts, num_samples, proposal, bar)
    backend = CompiledBackend() if compiled else EagerBackend()
    if not ranks.is_first():  # only the first batch is checked, as in one process
        backend.checked.add((program.model, program.guide))
    score_part = partial(_score_part, program, num_samples, backend, proposal)
    return Scores.concatenate(parallel.map_parts(score_part, bar(parts)))


def _score_part(program: Any, num_samples: int, backend: EagerBackend, proposal: str, part: Part) -> Scores:
    images, batch_seed = part
    return score(program.model, program.guide, images, num_samples, seed=batch_seed, backend=backend, proposal=proposal)


def _score_compiled(
    program: Any, parts: Sequence[Part], num_samples: int, proposal: str, bar: Callable[..., Any]
) -> Scores:
    """Score with compiled graphs in several processes, as one process would.

    A backend compiles the shapes of the first batch, and runs smaller ones eagerly. If a graph fails, it runs eagerly
    from that batch on. Every process therefore scores the first batch before its own ones. If a graph fails later, the
    batches after it depend on that, and every process scores all of them.
    """
    backend = CompiledBackend()
    score_part = partial(_score_part, program, num_samples, backend, proposal)
    refused_at_first: list[int] = []

    def scores(part: Part) -> tuple[Scores, bool]:
        first = None
        if not refused_at_first:
            own = proposal if part is parts[0] else "guide"
            first = _score_part(program, num_samples, backend, own, parts[0])
            refused_at_first.append(backend.num_refused)
        found = first if first is not None and part is parts[0] else score_part(part)
        return found, backend.num_refused > refused_at_first[0]

    found = list(parallel.map_parts(scores, bar(parts)))
    if any(failed for _, failed in found):
        return Scores.concatenate(
            map(partial(_score_part, program, num_samples, CompiledBackend(), proposal), bar(parts))
        )
    return Scores.concatenate(part_scores for part_scores, _ in found)
