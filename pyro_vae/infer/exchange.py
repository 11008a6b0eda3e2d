r"""Sums of losses and gradients over the processes that share the images of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae import ranks
from pyro_vae.errors import UserError

Form = tuple[tuple[str, tuple[int, ...], bool], ...]
"""Name and shape of each parameter, and whether it has a gradient."""


class Sums(NamedTuple):
    """Sums over all processes.

    Attributes:
        loss: Loss summed over the batch, in nats.
        elbo: ELBO summed over the batch, in nats.
        finite: Whether the loss and all gradients are finite in all processes, a boolean tensor.
        gradients: Gradients by name; those that no process has are absent.
        stops: Whether some process has been asked to stop.
    """

    loss: Tensor
    elbo: Tensor
    finite: Tensor
    gradients: dict[str, Tensor]
    stops: bool


class Exchange:
    """Adds losses and gradients of all processes, in one message of fixed form per step.

    The form, i.e. the parameters and which of them have a gradient, is agreed on at the first step and after a step in
    which one process reports another form.
    """

    def __init__(self) -> None:
        self._form: Form | None = None  # of this process
        self._names: list[str] = []  # of the parameters that have a gradient in some process

    def __call__(
        self,
        loss: Tensor,
        elbo: Tensor,
        params: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        *,
        counts: bool,
        stop: bool,
    ) -> Sums:
        """Return the sums over all processes.

        Args:
            loss: Loss of this process, in nats.
            elbo: ELBO of this process, in nats.
            params: Parameters by name.
            gradients: Gradients by name, of some or all of the parameters.
            counts: Whether this process has images; otherwise its numbers are not added.
            stop: Whether this process has been asked to stop.

        Raises:
            UserError: If a parameter is registered in some processes only, or in other shapes.
        """
        form = tuple((name, tuple(params[name].shape), name in gradients) for name in sorted(params.keys() | gradients))
        changed = form != self._form
        while True:
            agreed = not changed
            flat = self._flatten(loss, elbo, params, gradients if counts else {}, changed=changed, stop=stop)
            if not counts:
                flat[:2] = 0.0
            ranks.sum_flat(flat)
            loss_sum, elbo_sum, changes, stops = flat[:4].unbind()
            if agreed and not bool(changes > 0):
                break
            self._agree(form)
            changed = False
        totals: dict[str, Tensor] = {}
        start = 4
        for name in self._names:
            p = params[name]
            totals[name] = flat[start : start + p.numel()].view(p.shape).to(p.dtype)
            start += p.numel()
        finite = flat.sum().isfinite()
        return Sums(loss_sum.to(loss.dtype), elbo_sum.to(elbo.dtype), finite, totals, bool(stops > 0))

    def _flatten(
        self,
        loss: Tensor,
        elbo: Tensor,
        params: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        *,
        changed: bool,
        stop: bool,
    ) -> Tensor:
        dtype = loss.dtype
        for name in self._names:  # the same in all processes, unlike `params`
            dtype = torch.promote_types(dtype, params[name].dtype)
        flags = torch.tensor([float(changed), float(stop)], dtype=dtype, device=loss.device)
        parts = [loss.detach().reshape(1), elbo.detach().reshape(1), flags]
        for name in self._names:
            p = params[name]
            parts.append(gradients[name].flatten() if name in gradients else p.new_zeros(p.numel()))
        return torch.cat([part.to(dtype) for part in parts])

    def _agree(self, form: Form) -> None:
        """Agree on the parameters that have a gradient in some process."""
        forms = ranks.gather(form)
        check_same_parameters([{name: shape for name, shape, _ in each} for each in forms])
        self._form = form
        self._names = sorted({name for each in forms for name, _, has_gradient in each if has_gradient})


def check_same_parameters(shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
    """Raise UserError if the shapes of parameters by name differ between parts of the images."""
    for name in sorted(set().union(*shapes)):
        if len({each.get(name) for each in shapes}) > 1:
            raise UserError(
                f"Parameter {name!r} is registered in some processes only, or in other shapes, as it depends on the "
                "images or on their number: use one process."
            )
