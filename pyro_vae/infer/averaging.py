r"""An exponential moving average of the weights over the steps of a fit.

With theta_t the trained parameters after step t, unconstrained as the optimizer sees them,

    avg_1 = theta_1,    avg_{t+1} = d_t avg_t + (1 - d_t) theta_{t+1},    d_t = min(decay, (1 + t) / (10 + t)).

Averages of the iterates are those of Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM
Journal on Control and Optimization 30(4), 1992; Vahdat, Kautz, "NVAE", NeurIPS 2020 (https://arxiv.org/abs/2007.03898)
report those of a moving one. The smaller decay at the start forgets the initial weights: alone it is the
polynomial-decay average, eta = 8, of Shamir, Zhang, "Stochastic Gradient Descent for Non-smooth Optimization", ICML
2013 (https://arxiv.org/abs/1212.1824).

Buffers, such as the statistics of batch normalization, are not averaged: the averaged weights run with the newest.
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
    """Raise ValueError where a decay is not in [0, 1)."""
    if not 0 <= decay < 1:
        raise UserError(f"{name} is {decay}; it must be 0 (no average) or a decay below 1, such as 0.999.")


class Average:
    """The average of the parameters of a fit; of decay 0 it holds nothing and does nothing.

    Args:
        decay: d at the most, in [0, 1).

    Raises:
        ValueError: it is not.
    """

    def __init__(self, decay: float) -> None:
        check_decay("ema", decay)
        self.decay = decay
        self.steps = 0
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}  # each parameter, and its average

    @torch.no_grad()
    def update(self, svi: SVI) -> None:
        """Take in the parameters after a step.

        The average of a parameter that is new, or another tensor under an old name, starts at its present value. After
        a step that was not finite, which only the device may know by now, nothing moves.
        """
        if not self.decay:
            return
        params = svi.optim.params
        new = {name: p for name, p in params.items() if name not in self._pairs or self._pairs[name][0] is not p}
        self._pairs |= {name: (p, p.detach().clone()) for name, p in new.items()}
        rate = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        # Made on the device: a copy of a number from the host would wait for all that has been launched.
        failed = svi.failed
        moves = torch.full((), rate, dtype=torch.float64, device=failed.device).masked_fill(failed, 0.0)
        for device in {param.device for param, _ in self._pairs.values()}:
            pairs = [pair for pair in self._pairs.values() if pair[0].device == device]
            differences = torch._foreach_sub([param for param, _ in pairs], [average for _, average in pairs])
            torch._foreach_mul_(differences, moves.to(device))
            torch._foreach_add_([average for _, average in pairs], differences)
        self.steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the parameters their averages for a while; they are what they were, to the bit, afterwards."""
        before = [param.detach().clone() for param, _ in self._pairs.values()]
        self._write(average for _, average in self._pairs.values())
        try:
            yield
        finally:
            self._write(before)

    def settle(self) -> None:
        """Give the parameters their averages for good, and forget these: another average would start from there."""
        self._write(average for _, average in self._pairs.values())
        self.forget()

    def forget(self) -> None:
        """Start anew at the next step."""
        self.steps, self._pairs = 0, {}

    @torch.no_grad()
    def _write(self, values: Iterable[Tensor]) -> None:
        # In place, so that a captured step goes on with the very tensors.
        for (param, _), value in zip(self._pairs.values(), values, strict=True):
            param.copy_(value)

    def state_dict(self, svi: SVI) -> State | None:
        """Return the `program_state` of the averaged program, and the steps; None where nothing is averaged."""
        if not self.decay:
            return None
        with self.in_place():
            values = program_state(svi.modules, svi.optim.params)
            return {"steps": self.steps, **torch.utils._pytree.tree_map_only(Tensor, torch.clone, values)}

    def load_state_dict(self, state: State | None, svi: SVI) -> None:
        """Restore `state_dict`, of the parameters that the driver has.

        Raises:
            ValueError: it is of others, or of a fit with an average where this one has none, or the other way round.
        """
        if (state is None) == bool(self.decay):
            has, lacks = ("a fit without", "has one") if state is None else ("a fit with", "has none")
            raise UserError(f"The state is of {has} an average of the weights (ema), and this fit {lacks}.")
        self.forget()
        if state is not None and state["steps"] > 0:
            targets = match_values(svi.optim.params, state["params"], " of the average")
            averages = [(param, torch.empty_like(param, requires_grad=False).copy_(value)) for param, value in targets]
            self._pairs = dict(zip(svi.optim.params, averages, strict=True))
            self.steps = state["steps"]
