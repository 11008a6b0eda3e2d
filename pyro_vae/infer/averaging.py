r"""Exponential moving average of the parameters over the steps of a fit.

Let theta_t be the parameters after step t, in the unconstrained space of the optimizer. Then

    avg_1 = theta_1,    avg_{t+1} = d_t avg_t + (1 - d_t) theta_{t+1},    d_t = min(decay, (1 + t) / (10 + t)).

Averaging of iterates is due to Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal
on Control and Optimization 30(4), 1992. Vahdat, Kautz, "NVAE", NeurIPS 2020 (https://arxiv.org/abs/2007.03898) evaluate
an exponential average. The smaller decay of the first steps forgets the initial parameters; without the upper bound it
gives the polynomial-decay average, eta = 8, of Shamir, Zhang, "Stochastic Gradient Descent for Non-smooth
Optimization", ICML 2013 (https://arxiv.org/abs/1212.1824).

Buffers, such as the statistics of batch normalization, are not averaged: the averaged parameters are used with the
latest buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.infer.parameters import State, match_values, program_state
from pyro_vae.infer.svi import SVI


def check_decay(name: str, decay: float) -> None:
    """Raise ValueError if a decay is outside [0, 1)."""
    if not 0 <= decay < 1:
        raise UserError(f"{name} is {decay}; it must be 0 (no averaging) or a decay below 1, e.g. 0.999.")


class Average:
    """Exponential moving average of the parameters of a fit. With decay 0 it does nothing.

    Args:
        decay: Upper bound of the decay d_t, in [0, 1).

    Raises:
        ValueError: If `decay` is outside [0, 1).
    """

    def __init__(self, decay: float) -> None:
        check_decay("ema", decay)
        self.decay = decay
        self.steps = 0
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}  # (parameter, its average)

    @torch.no_grad()
    def update(self, svi: SVI) -> None:
        """Update the averages after a step.

        The average of a parameter that is new, or whose tensor has been replaced, starts at the current value. After a
        non-finite step, which may be known only on the device so far, the averages do not change.
        """
        if not self.decay:
            return
        params = svi.optim.params
        new = {name: p for name, p in params.items() if name not in self._pairs or self._pairs[name][0] is not p}
        self._pairs |= {name: (p, p.detach().clone()) for name, p in new.items()}
        rate = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        # Created on the device: copying a number from the host would synchronize with all kernels launched so far.
        failed = svi.failed
        weight = torch.full((), rate, dtype=torch.float64, device=failed.device).masked_fill(failed, 0.0)
        for device in {param.device for param, _ in self._pairs.values()}:
            pairs = [pair for pair in self._pairs.values() if pair[0].device == device]
            differences = torch._foreach_sub([param for param, _ in pairs], [average for _, average in pairs])
            torch._foreach_mul_(differences, weight.to(device))
            torch._foreach_add_([average for _, average in pairs], differences)
        self.steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the parameters by their averages inside the context; restore them exactly on exit."""
        before = [param.detach().clone() for param, _ in self._pairs.values()]
        self._write(average for _, average in self._pairs.values())
        try:
            yield
        finally:
            self._write(before)

    def settle(self) -> None:
        """Replace the parameters by their averages permanently, and discard the averages."""
        self._write(average for _, average in self._pairs.values())
        self.forget()

    def forget(self) -> None:
        """Discard the averages; the next step starts new ones."""
        self.steps, self._pairs = 0, {}

    @torch.no_grad()
    def _write(self, values: Iterable[Tensor]) -> None:
        # In place, because a captured step refers to these tensors.
        for (param, _), value in zip(self._pairs.values(), values, strict=True):
            param.copy_(value)

    def state_dict(self, svi: SVI) -> State | None:
        """Return the number of steps with the averaged values as `program_state`; None if nothing is averaged."""
        if not self.decay:
            return None
        with self.in_place():
            values = program_state(svi.modules, svi.optim.params)
            return {"steps": self.steps, **torch.utils._pytree.tree_map_only(Tensor, torch.clone, values)}

    def load_state_dict(self, state: State | None, svi: SVI) -> None:
        """Restore `state_dict` for the parameters of the optimizer.

        Raises:
            ValueError: If the state belongs to other parameters, or if only one of the state and this fit has an
                average.
        """
        if (state is None) == bool(self.decay):
            origin, current = ("a fit without", "has one") if state is None else ("a fit with", "has none")
            raise UserError(f"The state belongs to {origin} an average of the weights (ema), but this fit {current}.")
        self.forget()
        if state is not None and state["steps"] > 0:
            targets = match_values(svi.optim.params, state["params"], " of the average")
            averages = [(param, torch.empty_like(param, requires_grad=False).copy_(value)) for param, value in targets]
            self._pairs = dict(zip(svi.optim.params, averages, strict=True))
            self.steps = state["steps"]
