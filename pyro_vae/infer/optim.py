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

# What the state of a parameter group holds beside the options, which are the program's.
_SAVED = ("params", "lr", "eta", "initial_lr")
_CLIPS = {"clip_norm", "clip_value"}


class Optim(PyroOptim):
    """One torch optimizer over all parameters, in the order of their names in the param store.

    Stock `PyroOptim` keeps one optimizer per tensor; the arithmetic is the same, the overhead is not.

    Args:
        constructor: a `torch.optim.Optimizer` class.
        arguments: its keyword arguments, ``{"lr": 1e-3, "fused": True}``.
        schedule: factor on the learning rate as a function of the number of steps taken.
        clip_args: ``clip_norm`` or ``clip_value``, to which the gradient of each tensor is clipped, as in `PyroOptim`.

    `lr_scale` is another factor, of `scale_lr`.

    Raises:
        ValueError: `clip_args` names something else.
    """

    def __init__(
        self,
        constructor: Callable[..., torch.optim.Optimizer],
        arguments: State,
        schedule: Callable[[int], float] | None = None,
        clip_args: State | None = None,
    ) -> None:
        if unknown := sorted(set(clip_args or ()) - _CLIPS):
            raise UserError(f"pyro_vae.Optim clips by clip_norm and clip_value: take {unknown[0]!r} out of clip_args.")
        super().__init__(constructor, arguments, clip_args)
        self.constructor = constructor
        self.arguments = arguments
        self.schedule = schedule
        self.clip_args = clip_args or {}
        self.params: dict[str, Tensor] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: LambdaLR | None = None
        self.learning_rate: float | Tensor = math.nan  # of the last step
        self.lr_scale = 1.0

    @staticmethod
    def adopt(optim: Any) -> Optim:
        """Return an `Optim` as it is, and for an optimizer of `pyro.optim` one that takes its steps.

        Under stock Pyro two SVIs that are given one optimizer share its moments; they are given one `Optim` here, too,
        as long as parameters of it stand in the param store. The stock optimizer no longer saves or loads a state.

        Raises:
            ValueError: as `stock.check_adoptable`.
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
        """Whether some parameter is that of its name in the param store."""
        store = pyro.get_param_store()
        return any(name in store and unconstrained_param(name) is p for name, p in self.params.items())

    def add_params(self, params: Iterable[Tensor]) -> None:
        """Take parameters on, each of which stands in the param store; a later one joins at the present rate."""
        store = pyro.get_param_store()
        named = {str(store.param_name(p)): p for p in params}
        new = {name: named[name] for name in sorted(named) if self.params.get(name) is not named[name]}
        if self.optimizer is not None and not new:
            return
        for name in new.keys() & self.params.keys():  # the store has been loaded or cleared: the old one trains no more
            self._drop(self.params[name])
        self.params |= new
        optimizer = self.constructor(list(new.values()), **(self.arguments | self._on_device(new.values())))
        if self.optimizer is not None:
            self.optimizer.param_groups[0]["params"] += new.values()
            self.optimizer.state |= optimizer.state  # Adagrad, for one, makes it in the constructor
            return
        self.optimizer = optimizer
        if (schedule := self.schedule) is not None:
            self.scheduler = LambdaLR(self.optimizer, lambda step: self.lr_scale * schedule(step))

    def _drop(self, param: Tensor) -> None:
        if self.optimizer is not None:
            group = self.optimizer.param_groups[0]
            group["params"] = [p for p in group["params"] if p is not param]
            self.optimizer.state.pop(param, None)

    def _on_device(self, params: Iterable[Tensor]) -> State:
        """Return what keeps a fused optimizer on a CUDA device, learning rate included: such a step can be captured."""
        devices = {p.device for p in params}
        if not self._fused or {device.type for device in devices} != {"cuda"}:
            return {}
        rate = self.arguments.get("lr", 1e-3)
        # Fused kernels take the rate in float32 only, whatever the type of the parameters and torch's default type.
        return {"capturable": True, "lr": torch.tensor(rate, dtype=torch.float32, device=devices.pop())}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take one step over all parameters, those given for the first time included."""
        known = {id(p) for p in self.params.values()}
        if new := [p for p in params if id(p) not in known]:
            self.add_params(new)
        self.step()
        self.step_schedule()

    def step(self) -> None:
        """Move the parameters by their gradients, clipped."""
        assert self.optimizer is not None
        clips = self.clip_args or "clip_norm" in self.optimizer.defaults  # by itself, as Pyro's ClippedAdam does
        for p in self.params.values() if clips else ():
            if p.grad is not None:
                p.grad = p.grad.clone()  # clipped in place, and that of a recorded step may share its memory
                self._clip_grad(p, **self.clip_args)
        self.optimizer.step()

    def step_schedule(self) -> None:
        """Move on along the schedule."""
        assert self.optimizer is not None
        group = self.optimizer.param_groups[0]
        rate = group[_rate_of(group)]
        self.learning_rate = rate.clone() if isinstance(rate, Tensor) else rate  # a tensor changes in place
        if self.scheduler is not None:
            self.scheduler.step()

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate, from the next step on, whatever the schedule."""
        assert self.optimizer is not None
        self.lr_scale *= factor
        for group in self.optimizer.param_groups:
            group[_rate_of(group)] *= factor  # in place where it is the tensor that a captured step reads

    def get_state(self) -> State:
        """Return the state of optimizer and schedule."""
        assert self.optimizer is not None
        scheduler = None if self.scheduler is None else {"last_epoch": self.scheduler.last_epoch}
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": scheduler,
            "scale": self.lr_scale,
            "learning_rate": float(self.learning_rate),
        }

    def set_state(self, state: State) -> None:
        """Restore what `get_state` returned, over parameters that have been added in the same order.

        Raises:
            ValueError: the moments are of parameters of other shapes.
        """
        assert self.optimizer is not None
        self._check(state["optimizer"])
        rates = [group[_rate_of(group)] for group in self.optimizer.param_groups]
        options = [{k: v for k, v in group.items() if k not in _SAVED} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate, option in zip(self.optimizer.param_groups, rates, options, strict=True):
            group.update(option)  # what the program says, not the file
            if isinstance(rate, Tensor):  # the very tensor that a captured step reads
                group["lr"] = rate.copy_(torch.as_tensor(group["lr"]))
        self.lr_scale, self.learning_rate = float(state["scale"]), float(state["learning_rate"])
        if self.scheduler is not None:
            self.scheduler.last_epoch = state["scheduler"]["last_epoch"]

    def _check(self, state: State) -> None:
        """Refuse moments that are not of these parameters: a fused kernel takes their sizes on trust."""
        groups, moments = state["param_groups"], state["state"]
        if [group["params"] for group in groups] != [list(range(len(self.params)))]:
            raise UserError("The state is of another program: it has other parameters.")
        for index, (name, p) in enumerate(self.params.items()):
            shaped = [m for key, m in moments.get(index, {}).items() if isinstance(m, Tensor) and key != "step"]
            if any(m.shape != p.shape for m in shaped) and self._fused:
                raise UserError(f"The state is of another program: the moments of {name!r} have another shape.")
            if (step := moments.get(index, {}).get("step")) is not None and torch.as_tensor(step).numel() != 1:
                raise UserError(f"The state is of another program: {name!r} has no number of steps.")

    @property
    def _fused(self) -> bool:
        return bool(self.arguments.get("fused"))


_ADOPTED: WeakKeyDictionary[PyroOptim, Optim] = WeakKeyDictionary()


def _rate_of(group: State) -> str:
    """Return the key of the learning rate, which has a name of its own in Pyro's AdagradRMSProp."""
    return "lr" if "lr" in group else "eta"
