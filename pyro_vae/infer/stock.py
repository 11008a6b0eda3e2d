r"""Optimizers of `pyro.optim`, adopted: a user who swaps the SVI alone keeps the optimizer, and its steps."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from pyro.optim import PyroLRScheduler, PyroOptim

from pyro_vae.errors import UserError


def check_adoptable(optim: Any) -> None:
    """Refuse what is no stock optimizer that can be adopted.

    Args:
        optim: a `PyroOptim` with one set of arguments for all parameters, which has taken no step.

    Raises:
        ValueError: it is something else; says in a line what to pass instead.
    """
    if refusal := _refusal(optim):
        raise UserError(refusal)


def redirect(optim: PyroOptim) -> None:
    """Make an adopted optimizer say where its state is: it would save nothing, and lose what it loads, in silence."""
    for name in ("get_state", "set_state"):  # `save` and `load` go through them
        setattr(optim, name, _elsewhere)


def _elsewhere(*_: Any) -> NoReturn:
    raise RuntimeError(
        "A pyro_vae.Optim has taken this optimizer's place: svi.state_dict() holds its state, and "
        "svi.load_state_dict restores it."
    )


def _refusal(optim: Any) -> str | None:
    """Return why an optimizer's steps cannot be taken, and what to do, in a line; None where they can."""
    if not isinstance(optim, PyroOptim):
        kind = type(optim)
        name = _name(kind) if isinstance(optim, torch.optim.Optimizer) else "torch.optim.Adam"
        return f"pyro_vae.SVI takes no {kind.__name__} for its optimizer: write pyro_vae.Optim({name}, {{...}})."
    written = f"pyro_vae.Optim({_name(optim.pt_optim_constructor)}, {{...}}"
    if isinstance(optim, PyroLRScheduler):
        return (
            f"pyro_vae.SVI takes no scheduler of pyro.optim: pass {written}, schedule=...), with the factor on the "
            "learning rate as a function of the number of steps taken."
        )
    if type(optim) is not PyroOptim:
        return f"pyro_vae.SVI does not know the steps of a {type(optim).__name__}: pass {written})."
    if callable(optim.pt_optim_args) or callable(optim.pt_clip_args):
        return (
            "pyro_vae.SVI takes one set of arguments for all parameters, not a function of their names: pass "
            f"{written}, clip_args={{...}})."
        )
    if optim.optim_objs or optim._state_waiting_to_be_consumed:
        return f"This optimizer has a state already, which would be lost: pass a new one, or {written})."
    return None


def _name(constructor: Any) -> str:
    """Return what a constructor is called in a program."""
    name = getattr(constructor, "__name__", "...")
    return f"torch.optim.{name}" if getattr(torch.optim, name, None) is constructor else name
