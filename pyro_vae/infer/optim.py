r"""One torch optimizer behind Pyro's optimizer interface."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from pyro_vae.errors import UserError
from pyro_vae.infer.parameters import State, unconstrained_param
from pyro_vae.infer.stock import check_adoptable, redirect
from pyro_vae.trace.graphs import devices

# Keys of a parameter group that are restored from a state; all other options come from the code.
_SAVED = ("params", "lr", "eta", "initial_lr")
_CLIPS = {"clip_norm", "clip_value"}


class Optim(PyroOptim):
    """One torch optimizer over all parameters, in the order of their names in the param store.

    Stock `PyroOptim` keeps one optimizer per tensor; its arithmetic is the same, with more overhead.

    Args:
        constructor: A `torch.optim.Optimizer` class.
        arguments: Its keyword arguments, e.g. ``{"lr": 1e-3, "fused": True}``.
        schedule: Function that maps the number of steps taken to a factor on the learning rate.
        clip_args: ``clip_norm`` or ``clip_value``, to which the gradient of each tensor is clipped, as in `PyroOptim`.

    The attribute `lr_scale` is a further factor on the learning rate, see `scale_lr`.

    Raises:
        ValueError: If `clip_args` has another key.
    """

    def __init__(
        self,
        constructor: Callable[..., torch.optim.Optimizer],
        arguments: State,
        schedule: Callable[[int], float] | None = None,
        clip_args: State | None = None,
    ) -> None:
        if unknown := sorted(set(clip_args or ()) - _CLIPS):
            raise UserError(f"pyro_vae.Optim clips by clip_norm or clip_value: remove {unknown[0]!r} from clip_args.")
        super().__init__(constructor, arguments, clip_args)
        self.constructor = constructor
        self.arguments = arguments
        self.schedule = schedule
        self.clip_args = clip_args or {}
        self.params: dict[str, Tensor] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: LambdaLR | None = None
        self.learning_rate: float | Tensor = math.nan  # at the last step
        self.lr_scale = 1.0
        self.moved = False  # whether the next step has already been taken, jointly with other fits

    @staticmethod
    def adopt(optim: Any) -> Optim:
        """Return an `Optim` unchanged, or for an optimizer of `pyro.optim` an `Optim` that takes the same steps.

        In stock Pyro, two SVIs that are given one optimizer share its moments. Here they share one `Optim`, as long as
        some of its parameters are in the param store. The stock optimizer can no longer save or load a state.

        Raises:
            ValueError: If the optimizer cannot be adopted, see `stock.check_adoptable`.
        """
        if isinstance(optim, Optim):
            return optim
        check_adoptable(optim)
        adopted = _ADOPTED.get(optim)
        if adopted is None or (adopted.params and not adopted._in_store()):
            adopted = Optim(optim.pt_optim_constructor, dict(optim.pt_optim_args), clip_args=dict(optim.pt_clip_args))
            _ADOPTED[optim] = adopted
            redirect(optim)
        return adopted

    def _in_store(self) -> bool:
        """Return whether some parameter is still in the param store under its name."""
        store = pyro.get_param_store()
        return any(name in store and unconstrained_param(name) is p for name, p in self.params.items())

    def add_params(self, params: Iterable[Tensor]) -> None:
        """Add parameters, which must be in the param store; late ones start at the current learning rate."""
        store = pyro.get_param_store()
        named = {str(store.param_name(p)): p for p in params}
        new = {name: named[name] for name in sorted(named) if self.params.get(name) is not named[name]}
        if self.optimizer is not None and not new:
            return
        for name in new.keys() & self.params.keys():  # the store was loaded or cleared: nothing reads the old tensor
            self._drop(self.params[name])
        self.params |= new
        optimizer = self.constructor(list(new.values()), **(self.arguments | self._on_device(new.values())))
        if self.optimizer is not None:
            self.optimizer.param_groups[0]["params"] += new.values()
            self.optimizer.state |= optimizer.state  # e.g. Adagrad creates state in its constructor
            return
        self.optimizer = optimizer
        if (schedule := self.schedule) is not None:
            self.scheduler = LambdaLR(self.optimizer, lambda step: self.lr_scale * schedule(step))
            # Numbers, even where the rate is a tensor: the host computes the rates of later steps (`schedules.skip`).
            self.scheduler.base_lrs = [float(rate) for rate in self.scheduler.base_lrs]

    def _drop(self, param: Tensor) -> None:
        if self.optimizer is not None:
            group = self.optimizer.param_groups[0]
            group["params"] = [p for p in group["params"] if p is not param]
            self.optimizer.state.pop(param, None)

    def _on_device(self, params: Iterable[Tensor]) -> State:
        """Return the options that make a fused optimizer capturable in a CUDA graph, learning rate included."""
        params = list(params)
        if not self._fused or not params or not all(map(devices.can_capture, params)):
            return {}
        rate = self.arguments.get("lr", 1e-3)
        # Fused kernels accept the rate only as float32, whatever the dtype of the parameters and torch's default dtype.
        return {"capturable": True, "lr": torch.tensor(rate, dtype=torch.float32, device=params[0].device)}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take one step over all parameters, including those that are passed for the first time."""
        known = {id(p) for p in self.params.values()}
        if new := [p for p in params if id(p) not in known]:
            self.add_params(new)
        self.step()
        self.step_schedule()

    def step(self) -> None:
        """Update the parameters by their gradients, which are clipped first if requested."""
        assert self.optimizer is not None
        if self.moved:
            self.moved = False
            return
        clips = self.clip_args or "clip_norm" in self.optimizer.defaults  # in the optimizer itself: ClippedAdam
        for p in self.params.values() if clips else ():
            if p.grad is not None:
                p.grad = p.grad.clone()  # clipping is in place; a gradient of a recorded step may share memory
                self._clip_grad(p, **self.clip_args)
        self.optimizer.step()

    def step_schedule(self) -> None:
        """Advance the schedule by one step."""
        assert self.optimizer is not None
        group = self.optimizer.param_groups[0]
        rate = group[_rate_of(group)]
        self.learning_rate = rate.clone() if isinstance(rate, Tensor) else rate  # a tensor changes in place
        if self.scheduler is not None:
            self.scheduler.step()

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate by a factor, from the next step on and for any schedule."""
        assert self.optimizer is not None
        self.lr_scale *= factor
        for group in self.optimizer.param_groups:
            group[_rate_of(group)] *= factor  # in place: a captured step reads a tensor

    def get_state(self) -> State:
        """Return the state of the optimizer and of the schedule."""
        assert self.optimizer is not None
        scheduler = None if self.scheduler is None else {"last_epoch": self.scheduler.last_epoch}
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": scheduler,
            "scale": self.lr_scale,
            "learning_rate": float(self.learning_rate),
        }

    def set_state(self, state: State) -> None:
        """Restore the result of `get_state`; the parameters must have been added in the same order.

        Raises:
            ValueError: If the state belongs to other parameters, or its moments have other shapes.
        """
        assert self.optimizer is not None
        self._check(state["optimizer"])
        rates = [group[_rate_of(group)] for group in self.optimizer.param_groups]
        options = [{k: v for k, v in group.items() if k not in _SAVED} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate, option in zip(self.optimizer.param_groups, rates, options, strict=True):
            group.update(option)  # from the code, not from the state
            if isinstance(rate, Tensor):  # in place: a captured step reads this tensor
                group["lr"] = rate.copy_(torch.as_tensor(group["lr"]))
        self.lr_scale, self.learning_rate = float(state["scale"]), float(state["learning_rate"])
        if self.scheduler is not None:
            self.scheduler.last_epoch = state["scheduler"]["last_epoch"]

    def _check(self, state: State) -> None:
        """Raise if a state does not match the parameters; fused kernels do not check shapes."""
        groups, moments = state["param_groups"], state["state"]
        if [group["params"] for group in groups] != [list(range(len(self.params)))]:
            raise UserError("The state does not belong to this program: its parameters differ.")
        for index, (name, p) in enumerate(self.params.items()):
            shaped = [m for key, m in moments.get(index, {}).items() if isinstance(m, Tensor) and key != "step"]
            if any(m.shape != p.shape for m in shaped) and self._fused:
                raise UserError(f"The state does not belong to this program: moments of {name!r} have another shape.")
            if (step := moments.get(index, {}).get("step")) is not None and torch.as_tensor(step).numel() != 1:
                raise UserError(f"The state does not belong to this program: {name!r} has no valid step count.")

    @property
    def _fused(self) -> bool:
        return bool(self.arguments.get("fused"))


_ADOPTED: WeakKeyDictionary[PyroOptim, Optim] = WeakKeyDictionary()


def _rate_of(group: State) -> str:
    """Return the key of the learning rate, which Pyro's AdagradRMSProp calls `eta`."""
    return "lr" if "lr" in group else "eta"
