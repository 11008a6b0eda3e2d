r"""Whether a program computes images separately, so that the sum over the parts of a batch is that of the whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae import parallel, ranks
from pyro_vae.errors import UserError, is_out_of_memory
from pyro_vae.infer.exchange import check_same_parameters
from pyro_vae.infer.graph_step import Preprocess
from pyro_vae.infer.isolated_step import IsolatedStep, Results
from pyro_vae.infer.parts import Parts
from pyro_vae.trace import Batch, Draw, RowNoise, global_generator
from pyro_vae.trace.graphs.comparison import agree

_LOG = logging.getLogger("pyro_vae")


class _Whole(NamedTuple):
    """What all processes know of the step for all images: loss, shapes of the gradients, and buffers after it."""

    loss: float
    shapes: dict[str, tuple[int, ...]]
    buffers: list[Tensor]
    changes_buffers: bool


class CouplingCheck:
    """Compares a step for a batch with the sum over its parts, with all gradients.

    A few of the images show a weak coupling, which would be lost in a sum over many. The whole batch shows a coupling
    of distant images, and whatever depends on the size of the batch or of a gradient, e.g. a hook that clips it. The
    first process computes the whole. If it has not enough memory for that, every second image is compared instead, and
    so on; a warning says how many.

    Args:
        step: Computes a step.
        parts: The parts of a batch.
        tolerance: Relative difference attributed to rounding.
    """

    def __init__(self, step: IsolatedStep, parts: Parts, tolerance: float) -> None:
        self._step, self._parts, self._tolerance = step, parts, tolerance

    def __call__(
        self, whole: Batch, preprocess: Preprocess | None, draws: Sequence[Draw], params: Mapping[str, Tensor]
    ) -> None:
        """Compare a step for a batch with its parts.

        Args:
            whole: The batch, the same in all processes.
            preprocess: As for `SVI.step`.
            draws: The random operations of the step.
            params: Parameters by name.

        Raises:
            UserError: If they differ, the processes have different batches or weights, or parts cannot repeat the noise
                or the changes to buffers.
        """
        if self._parts.shards is not None and any(draw.rejects for draw in draws):
            # The number of proposals of an image depends on the images before it, which other parts contain.
            raise UserError(
                "The program draws by rejection, e.g. from a gamma distribution, which several parts of a batch cannot "
                "repeat: leave out shards (--deterministic-shards)."
            )
        _check_same(whole, params)
        number = 2 * self._parts.number
        few = whole[:: max(1, (len(whole) - 1) // (number - 1))][:number]  # from the first to nearly the last image
        for images in [few, whole] if len(few) < len(whole) else [whole]:
            self._compare(images, preprocess, draws)

    def _compare(self, images: Batch, preprocess: Preprocess | None, draws: Sequence[Draw]) -> None:
        """Compare the step for some images with the sum over their parts."""
        kept: list[Results] = []
        images, whole = self._compute_whole(images, preprocess, kept)
        # Several parts in one process would change buffers several times in a step.
        if self._parts.shards is not None and whole.changes_buffers:
            raise UserError(
                "The program changes buffers in a step, which the parts of a batch would do repeatedly: leave out "
                "shards (--deterministic-shards)."
            )
        every_rows = self._parts.rows(len(images))
        found = [
            self._step(rows.of(images), preprocess, partial(RowNoise, draws, rows, ranks.gather)) for rows in every_rows
        ]
        shapes = [whole.shapes, *(_shapes(part.gradients) for part in found)]
        check_same_parameters([each for every in ranks.gather(shapes) for each in every])
        sums = _add_up([part for rows, part in zip(every_rows, found, strict=True) if len(rows)], like=found[0])
        if not parallel.on_first(lambda: agree(list(zip(_tensors(kept[0]), sums, strict=True)), self._tolerance)):
            alone = "." if self._parts.shards is None else ", and leave out shards (--deterministic-shards)."
            raise UserError(
                f"The objective of {len(images)} images is {-whole.loss:.6g} nats, and the sum over their parts "
                f"{-float(sums[0]):.6g}, or their gradients differ: the program or the objective couples the images of "
                "a batch, e.g. by batch normalization or by a hook that clips gradients, which several processes "
                f"cannot compute. Use one process{alone}"
            )
        # A counter has the same value for any images.
        if not all(ranks.gather(all(all(map(torch.equal, part.after, whole.buffers)) for part in found))):
            raise UserError(
                "The program computes buffers from the images of a batch, which would differ between processes: use "
                "one process."
            )

    def _compute_whole(self, images: Batch, preprocess: Preprocess | None, kept: list[Results]) -> tuple[Batch, _Whole]:
        """Compute the images, or those of them for which it has memory, in the first process, which keeps the results.

        The others need no gradients of it, which may be large.
        """

        def compute() -> _Whole:
            results = self._step(chosen, preprocess)
            kept.append(results)
            changes = not all(map(torch.equal, results.after, results.before))
            return _Whole(float(results.loss), _shapes(results.gradients), results.after, changes)

        chosen = images
        while True:
            try:
                whole = parallel.on_first(compute)
                break
            except Exception as error:  # raised in all processes
                if not is_out_of_memory(error) or len(chosen) <= 2 * self._parts.number:
                    raise
            chosen = chosen[::2]
        if len(chosen) < len(images):
            _LOG.warning(
                "One process has not enough memory for a batch of %d images; whether the program couples images has "
                "been checked for %d of them.",
                len(images),
                len(chosen),
            )
        return chosen, whole


def _tensors(results: Results) -> list[Tensor]:
    return [results.loss, *results.gradients.values()]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _add_up(parts: Sequence[Results], like: Results) -> list[Tensor]:
    """Return the sums of loss and gradients over the parts of all processes, in float64."""
    tensors = _tensors(like)
    sizes = [tensor.numel() for tensor in tensors]
    flat = torch.zeros(sum(sizes), dtype=torch.float64, device=like.loss.device)
    for part in parts:
        flat += torch.cat([tensor.double().flatten() for tensor in _tensors(part)])
    ranks.sum_flat(flat)
    return [total.view(tensor.shape) for total, tensor in zip(flat.split(sizes), tensors, strict=True)]


def _check_same(whole: Batch, params: Mapping[str, Tensor]) -> None:
    """Raise if the processes have different batches, weights or random states."""
    states = [global_generator(torch.device(device)).get_state() for device in ("cpu", whole.device)]
    weights = [p.detach() for p in params.values()]
    facts = {"batches": whole.flatten()[0], "weights": weights, "random states": states}
    every = ranks.gather({what: repr([float(t.double().sum()) for t in values]) for what, values in facts.items()})
    for what in facts:
        if len({own[what] for own in every}) > 1:
            raise UserError(f"The {what} of the processes differ: use the same seed and data in each.")
