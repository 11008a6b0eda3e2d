r"""Sums of losses and gradients over the processes that share the images of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae import ranks
from pyro_vae.errors import UserError


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
        self._form: tuple[tuple[str, bool], ...] | None = None  # of this process
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
            gradients: Gradients by name.
            counts: Whether this process has images; otherwise its numbers are not added.
            stop: Whether this process has been asked to stop.

        Raises:
            UserError: If a parameter is registered in some processes only.
        """
        form = tuple((name, name in gradients) for name in sorted(params))
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
        for p in params.values():
            dtype = torch.promote_types(dtype, p.dtype)
        flags = torch.tensor([float(changed), float(stop)], dtype=dtype, device=loss.device)
        parts = [loss.detach().reshape(1), elbo.detach().reshape(1), flags]
        for name in self._names:
            p = params[name]
            parts.append(gradients[name].flatten() if name in gradients else p.new_zeros(p.numel()))
        return torch.cat([part.to(dtype) for part in parts])

    def _agree(self, form: tuple[tuple[str, bool], ...]) -> None:
        """Agree on the parameters that have a gradient in some process."""
        forms = ranks.gather(form)
        names: list[set[str]] = [{name for name, _ in each} for each in forms]
        if different := sorted(set().union(*names) - names[0].intersection(*names)):
            raise UserError(
                f"Parameter {different[0]!r} is registered in some processes only, as its registration depends on the "
                "images: use one process."
            )
        self._form = form
        self._names = sorted({name for each in forms for name, has_gradient in each if has_gradient})
