r"""Sums of losses and gradients over the parts of a batch, which several processes may have computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import ranks
from pyro_vae.errors import UserError
from pyro_vae.trace import Rows

_HEADER = 4  # entries of a message before the gradients: loss, ELBO, and two flags, form changed and stop


class Part(NamedTuple):
    """Results of a step for a part of its batch.

    Attributes:
        loss: Loss summed over the images, in nats.
        elbo: ELBO summed over the images, in nats.
        gradients: Gradients by name.
        counts: Whether the part has images; otherwise its numbers are not added.
    """

    loss: Tensor
    elbo: Tensor
    gradients: Mapping[str, Tensor]
    counts: bool


class Sums(NamedTuple):
    """Sums over all parts of all processes.

    Attributes:
        loss: Loss summed over the batch, in nats.
        elbo: ELBO summed over the batch, in nats.
        finite: Whether the loss and all gradients are finite in all parts, a boolean tensor.
        gradients: Gradients by name, which the next step overwrites; those that no part has are absent.
        stops: Whether some process has been asked to stop.
    """

    loss: Tensor
    elbo: Tensor
    finite: Tensor
    gradients: dict[str, Tensor]
    stops: bool


class Exchange:
    """Adds losses and gradients of all parts, in one message of fixed form per step.

    The form, i.e. the parameters and which of them have a gradient, is agreed on at the first step and after a step in
    which one process reports another form. Gradients are copied into one tensor that is kept from step to step.

    Args:
        shards: Number of parts of a batch. They are gathered and added in their order, so that the sums do not depend
            on the number of processes. If None, each process has one part, and they are added in any order, which takes
            less time.
    """

    def __init__(self, shards: int | None = None) -> None:
        self._shards = shards
        self._form: Any = None  # of this process
        self._names: list[str] = []  # of the parameters that have a gradient in some process
        self._messages: Tensor | None = None  # one row for each part of this process
        self._views: list[list[Tensor]] = []  # of each row, one view for each of the names
        self._total: Tensor | None = None

    def __call__(self, parts: Sequence[Part], params: Mapping[str, Tensor], *, stop: bool) -> Sums:
        """Return the sums over all parts.

        Args:
            parts: The parts of this process, at least one.
            params: Parameters by name.
            stop: Whether this process has been asked to stop.

        Raises:
            UserError: If a parameter is registered in some processes only, or in other shapes.
        """
        present = set().union(*(part.gradients for part in parts))
        loss, elbo = parts[0].loss, parts[0].elbo
        form = (loss.dtype, *((name, p.shape, p.dtype, name in present) for name, p in sorted(params.items())))
        if self._messages is None:
            self._allocate(loss, params)
        changed = form != self._form
        while True:
            self._fill(parts, changed=changed, stop=stop)
            total = self._add_up()
            # The only read on the host in a step, which waits for the device: both flags at once.
            changes, stops = total[2:_HEADER].tolist()
            if not changes:
                break
            self._agree(form, loss, params)
            changed = False
        gradients = {}
        for name, view in zip(self._names, self._split(total, params), strict=True):
            gradients[name] = view.to(params[name].dtype)
        # Not views: the caller may keep these two.
        loss_sum, elbo_sum = total[0].to(loss.dtype, copy=True), total[1].to(elbo.dtype, copy=True)
        return Sums(loss_sum, elbo_sum, total.sum().isfinite(), gradients, bool(stops))

    def _allocate(self, loss: Tensor, params: Mapping[str, Tensor]) -> None:
        """Allocate the messages for the present names, in a dtype that holds all parameters and the loss."""
        dtype = loss.dtype
        for name in self._names:  # the same in all processes, unlike `params`
            dtype = torch.promote_types(dtype, params[name].dtype)
        # All processes send equally many rows; with shards, some may leave the last one unused.
        rows = 1 if self._shards is None else -(-self._shards // ranks.size())
        length = _HEADER + sum(params[name].numel() for name in self._names)
        self._messages = torch.zeros(rows, length, dtype=dtype, device=loss.device)
        self._views = [self._split(row, params) for row in self._messages]
        self._total = torch.empty_like(self._messages[0])

    def _split(self, row: Tensor, params: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the gradients in a message, in the order of the names."""
        shapes = [params[name].shape for name in self._names]
        pieces = row[_HEADER:].split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _fill(self, parts: Sequence[Part], *, changed: bool, stop: bool) -> None:
        """Write the messages of this process."""
        assert self._messages is not None
        for place, (part, row, views) in enumerate(zip(parts, self._messages, self._views, strict=False)):
            row[:_HEADER].zero_()
            if place == 0:
                # Numbers are filled in by kernels; a tensor from the host would wait for the device.
                row[2].fill_(float(changed))
                row[3].fill_(float(stop))
            if changed:  # the message is repeated in the form that will be agreed on
                continue
            if not part.counts:
                row[_HEADER:].zero_()
                continue
            row[0].copy_(part.loss)
            row[1].copy_(part.elbo)
            pairs = [(view, part.gradients.get(name)) for name, view in zip(self._names, views, strict=True)]
            for view, gradient in pairs:
                if gradient is None:
                    view.zero_()
            found = [(view, gradient) for view, gradient in pairs if gradient is not None]
            if found:
                torch._foreach_copy_([view for view, _ in found], [gradient for _, gradient in found])

    def _add_up(self) -> Tensor:
        """Return the sum of the messages of all processes, whose memory belongs to this object."""
        assert self._messages is not None
        assert self._total is not None
        if self._shards is None:
            ranks.sum_flat(self._messages[0])
            return self._messages[0]
        gathered = ranks.gather_flat(self._messages)
        # Not `sum`, whose order depends on the sizes of the tensor.
        self._total.zero_()
        for rank, rows in enumerate(gathered):
            for row in rows[: len(Rows.split(self._shards, rank, ranks.size()))]:
                self._total += row
        return self._total

    def _agree(self, form: Any, loss: Tensor, params: Mapping[str, Tensor]) -> None:
        """Agree on the parameters that have a gradient in some process."""
        forms = ranks.gather(tuple((name, tuple(shape), has_gradient) for name, shape, _, has_gradient in form[1:]))
        check_same_parameters([{name: shape for name, shape, _ in each} for each in forms])
        self._form = form
        self._names = sorted({name for each in forms for name, _, has_gradient in each if has_gradient})
        self._allocate(loss, params)


def check_same_parameters(shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
    """Raise UserError if the shapes of parameters by name differ between parts of the images."""
    for name in sorted(set().union(*shapes)):
        if len({each.get(name) for each in shapes}) > 1:
            raise UserError(
                f"Parameter {name!r} is registered in some processes only, or in other shapes, as it depends on the "
                "images or on their number: use one process."
            )
