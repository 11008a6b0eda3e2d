r"""The finiteness gate: a non-finite loss or gradient never changes the parameters.

On the CPU the step raises. On CUDA, testing for it on the host would synchronize at every step; instead, a fused
optimizer skips the step on the device if its `found_inf` is nonzero. The first failed step is remembered and all later
steps are skipped, so that the error, raised once an epoch, names the step to which the parameters belong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer.optim import Optim
from pyro_vae.trace.graphs import devices


def first_failure(finite: Tensor, failed: Tensor, step: Tensor) -> Tensor:
    """Return the index of the first non-finite step, or -1, given whether a step is finite, its index, and the last."""
    return torch.where(finite | (failed >= 0), failed, step)


class Gate:
    """Takes the steps of an optimizer that are finite, and reports the first that is not.

    Args:
        optim: Optimizer.
        device: Device of the loss.
    """

    def __init__(self, optim: Optim, device: torch.device | None = None) -> None:
        self.optim = optim
        # Written in place, because a captured step refers to these tensors.
        self.step = torch.tensor(0, device=device)  # index of the current step, set by the driver
        self.failed_step = torch.tensor(-1, device=device)  # index of the first non-finite step, or -1

    def to(self, device: torch.device) -> None:
        """Move the step indices to the device of the loss."""
        self.step, self.failed_step = self.step.to(device), self.failed_step.to(device)

    @property
    def can_skip(self) -> bool:
        """Whether the optimizer is fused, so that it can skip a step on the device."""
        return self.optim.optimizer is not None and bool(self.optim.optimizer.defaults.get("fused"))

    def update(self, finite: Tensor, gradients: Mapping[str, Tensor] | None = None) -> None:
        """Apply the gradients if they and the loss are finite, and clear them.

        Args:
            finite: Whether the loss and all gradients are finite, a boolean tensor of shape ().
            gradients: Gradients by name; by default those that the parameters have.

        Raises:
            NonFiniteError: If `finite` is False, on the CPU or with an optimizer that is not fused.
        """
        for name, gradient in (gradients or {}).items():
            self.optim.params[name].grad = gradient
        if self.can_skip and devices.can_capture(finite):
            # Keep the first failed step and skip every later one, finite or not. Hundreds of steps may pass before the
            # host checks. If later steps moved the parameters, or replaced the index, the error would name a step that
            # does not belong to the parameters. This way a run on CUDA stops at the same step, and with the same
            # parameters, as one on the CPU.
            failed = self.failed_step
            failed.copy_(first_failure(finite, failed, self.step))
            # A fused optimizer does not change parameters, moments and step count if this is nonzero.
            optimizer: Any = self.optim.optimizer
            optimizer.found_inf = (failed >= 0).float()
        elif not finite:
            self.failed_step.copy_(self.step)
            self._clear()
            self.raise_if_nonfinite()
        self.optim.step()
        self._clear()

    def accept_update(self) -> None:
        """Take note of a step that a compiled graph has taken, which has written to `failed_step`.

        Raises:
            NonFiniteError: If it was non-finite, on the CPU.
        """
        optimizer: Any = self.optim.optimizer
        optimizer._opt_called = True  # or torch's schedulers would warn that no step preceded theirs
        if not devices.can_capture(self.failed_step):
            self.raise_if_nonfinite()

    def raise_if_nonfinite(self) -> None:
        """Synchronize with the device, and raise if a step was non-finite.

        Raises:
            NonFiniteError: Names the first such step.
        """
        if (step := int(self.failed_step)) >= 0:
            self.failed_step.fill_(-1)
            raise NonFiniteError(step)

    def _clear(self) -> None:
        for p in self.optim.params.values():
            p.grad = None
