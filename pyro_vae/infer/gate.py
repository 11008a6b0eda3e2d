r"""The finiteness gate: no loss or gradient that is not finite moves the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer.optim import Optim


class Gate:
    """Takes the steps of an optimizer that are finite, and reports the first that is not.

    On a CUDA device, to ask whether a gradient is finite would wait for all that has been launched, at every step. So a
    fused optimizer is told on the device to skip the step, and `raise_if_nonfinite`, once an epoch, asks for all steps
    at once. Where that is not possible the step itself raises.

    Args:
        optim: whose parameters have gradients when `update` is called.
        device: of the loss.
    """

    def __init__(self, optim: Optim, device: torch.device | None = None) -> None:
        self.optim = optim
        # Tensors that are written in place, so that a captured step reads and writes the very ones.
        self.step = torch.tensor(0, device=device)  # the number of the present step, which the driver sets
        self.failed_step = torch.tensor(-1, device=device)  # the first that was not finite; -1 if there is none

    def to(self, device: torch.device) -> None:
        """Move to the device of the loss."""
        self.step, self.failed_step = self.step.to(device), self.failed_step.to(device)

    @property
    def can_skip(self) -> bool:
        """Whether the optimizer can be told on the device not to step: it is a fused one."""
        return self.optim.optimizer is not None and bool(self.optim.optimizer.defaults.get("fused"))

    def update(self, finite: Tensor) -> None:
        """Move the weights by their gradients, unless these or the loss are not finite, and clear the gradients.

        Args:
            finite: whether they are, a tensor without dimensions.

        Raises:
            NonFiniteError: they are not, on the CPU or with an optimizer that is not fused.
        """
        if self.can_skip and finite.is_cuda:
            # The first failed step is kept, and every later one is skipped as well, finite or not. By the time that
            # the host asks, hundreds of steps may have gone by. With a later number, or with weights that later steps
            # have moved, the error would name a step and weights that do not belong together; so a run on CUDA stops
            # at the step, and with the weights, at which one on the CPU would.
            failed = self.failed_step
            failed.copy_(torch.where(finite | (failed >= 0), failed, self.step))
            # A fused optimizer leaves weights, moments and step count alone where this is not zero.
            optimizer: Any = self.optim.optimizer
            optimizer.found_inf = (failed >= 0).float()
        elif not finite:
            self.failed_step.copy_(self.step)
            self._clear()
            self.raise_if_nonfinite()
        self.optim.step()
        self._clear()

    def raise_if_nonfinite(self) -> None:
        """Wait for the device and raise if a step was not finite.

        Raises:
            NonFiniteError: names the first such step.
        """
        if (step := int(self.failed_step)) >= 0:
            self.failed_step.fill_(-1)
            raise NonFiniteError(step)

    def _clear(self) -> None:
        for p in self.optim.params.values():
            p.grad = None
