r"""How a step is taken: `pyro.infer.SVI` with one torch optimizer and no wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from pyro_vae.infer.objectives import Objective
from pyro_vae.infer.parameters import State, load_parameters, parameters, roots, unconstrained
from pyro_vae.trace import Program


class NonFiniteError(FloatingPointError):
    """A loss or a gradient that is not finite; the weights are those before the step it names."""


class Optim(PyroOptim):
    """One torch optimizer over all parameters, in the order of their names in the param store.

    Stock `PyroOptim` keeps one optimizer per tensor; the arithmetic is the same, the overhead is not.

    Args:
        constructor: a `torch.optim.Optimizer` class.
        arguments: its keyword arguments, ``{"lr": 1e-3, "fused": True}``.
        schedule: factor on the learning rate as a function of the number of steps taken.
    """

    def __init__(
        self,
        constructor: Callable[..., torch.optim.Optimizer],
        arguments: State,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(constructor, arguments)
        self.constructor = constructor
        self.arguments = arguments
        self.schedule = schedule
        self.params: dict[str, Tensor] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: LambdaLR | None = None

    def build(self, params: Iterable[Tensor]) -> None:
        """Create the optimizer over the parameters, which must stand in the param store."""
        store = pyro.get_param_store()
        self.params = dict(sorted((str(store.param_name(p)), p) for p in params))
        self.optimizer = self.constructor(list(self.params.values()), **self.arguments)
        if self.schedule is not None:
            self.scheduler = LambdaLR(self.optimizer, self.schedule)

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take one step; `params` are those of the first call, in any order."""
        if self.optimizer is None:
            self.build(params)
        assert self.optimizer is not None
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.arguments["lr"] if self.optimizer is None else self.optimizer.param_groups[0]["lr"]

    def get_state(self) -> State:
        """Return the state of optimizer and schedule."""
        assert self.optimizer is not None
        scheduler = None if self.scheduler is None else {"last_epoch": self.scheduler.last_epoch}
        return {"optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def set_state(self, state: State) -> None:
        """Restore what `get_state` returned; the optimizer must have been built."""
        assert self.optimizer is not None
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.last_epoch = state["scheduler"]["last_epoch"]


class SVI(pyro.infer.SVI):
    """`pyro.infer.SVI` for programs with pathwise gradients: same `step` and `evaluate_loss`.

    `step` returns the loss as a tensor, so that nothing waits for the device. A loss or a gradient that is
    not finite never reaches the weights: on the CPU, and with optimizers that are not fused, the step raises;
    on CUDA the fused optimizer skips it and every later one, and `check` raises.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        optim: one torch optimizer over all parameters.
        loss: an `Objective`, or any Pyro ELBO.
    """

    def __init__(self, model: Program, guide: Program, optim: Optim, loss: ELBO) -> None:
        super().__init__(model, guide, optim, loss)
        self.objective = loss
        self.steps = 0
        self.elbo: Tensor | None = None  # of the last step, summed over its batch, in nats
        self._failed_step = torch.tensor(-1)

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take one gradient step.

        Returns:
            The loss summed over the batch, in nats, detached, on the device.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; the weights have not changed.
            ValueError: the first step captures no parameter, or one that has a gradient is not captured.
        """
        loss = self._first_backward(*args, **kwargs) if self.steps == 0 else self._backward(*args, **kwargs)
        self._gate(loss)
        self.optim(self.optim.params.values())
        for p in self.optim.params.values():
            p.grad = None
        self.steps += 1
        return loss

    def check(self) -> None:
        """Wait for the device and raise if a step was not finite.

        Raises:
            NonFiniteError: names the first such step.
        """
        if (step := int(self._failed_step)) >= 0:
            raise NonFiniteError(
                f"The loss or a gradient is not finite at step {step} (steps count from 0); the weights are "
                "those before it. Lower the learning rate, or look for extreme values in the data."
            )

    def state_dict(self) -> State:
        """Return parameters, module buffers and optimizer state; tensors and plain numbers only."""
        return {"steps": self.steps, **parameters(self.model, self.guide), **self.optim.get_state()}

    def load_state_dict(self, state: State, *args: Any, **kwargs: Any) -> None:
        """Restore `state_dict`; the arguments are those of a step, from which the parameters are known."""
        load_parameters(self.model, self.guide, state, *args, **kwargs)
        self.optim.build([unconstrained(name) for name in state["params"]])
        self.optim.set_state(state)
        self.steps = state["steps"]

    def _backward(self, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(self.objective, Objective):
            objective, elbo = self.objective.bounds(self.model, self.guide, *args, **kwargs)
            loss, self.elbo = -objective.sum(), elbo.sum()
            loss.backward()
            return loss.detach()
        return torch.as_tensor(self.loss_and_grads(self.model, self.guide, *args, **kwargs))

    def _first_backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Capture the parameters, and refuse a program of which some part would silently not train."""
        own = [
            (f"{type(root).__name__}.{name}", p)
            for root in roots(self.model, self.guide)
            for name, p in root.named_parameters()
            if p.grad is None
        ]
        with poutine.trace(param_only=True) as capture:
            loss = self._backward(*args, **kwargs)
        nodes: dict[str, Any] = capture.trace.nodes
        captured = [site["value"].unconstrained() for site in nodes.values()]
        if not any(p.grad is not None for p in captured):
            raise ValueError("No parameter trains: call pyro.module(name, module) in the model and the guide.")
        self.optim.build({id(p): p for p in captured}.values())
        known = {id(p) for p in captured}
        for name, p in own:
            if p.grad is not None and id(p) not in known:
                raise ValueError(
                    f"{name} has a gradient but would not train: its name in the param store belongs to another "
                    "tensor, or no pyro.module names it. Call pyro.clear_param_store() between programs."
                )
        return loss

    def _gate(self, loss: Tensor) -> None:
        assert self.optim.optimizer is not None
        grads = [p.grad for p in self.optim.params.values() if p.grad is not None]
        finite = (loss + torch.nn.utils.get_total_norm(grads)).isfinite()
        if loss.is_cuda and self.optim.optimizer.defaults.get("fused"):
            failed = self._failed_step.to(loss.device)
            self._failed_step = torch.where(finite | (failed >= 0), failed, self.steps)
            # A fused optimizer leaves weights, moments and step count alone where this is not zero.
            self.optim.optimizer.found_inf = (self._failed_step >= 0).float()
        elif not finite:
            self._failed_step = torch.tensor(self.steps)
            self.check()
