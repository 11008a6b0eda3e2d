r"""Adopt optimizers of `pyro.optim`: users who only replace the SVI class keep their optimizer and its steps."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from pyro.optim import PyroLRScheduler, PyroOptim

from pyro_vae.errors import UserError


def check_adoptable(optim: Any) -> None:
    """Raise if an optimizer cannot be adopted.

    Args:
        optim: Candidate; it must be a `PyroOptim` with one set of arguments for all parameters that has taken no step.

    Raises:
        ValueError: If it is not; the message names what to pass instead.
    """
    if refusal := _refusal(optim):
        raise UserError(refusal)


def redirect(optim: PyroOptim) -> None:
    """Make an adopted optimizer raise if it is saved or loaded, and name the replacement.

    Otherwise it would silently save nothing, and discard what it loads.
    """
    for name in ("get_state", "set_state"):  # `save` and `load` go through them
        setattr(optim, name, _raise_replaced)


def _raise_replaced(*_: Any) -> NoReturn:
    raise RuntimeError(
        "This optimizer has been replaced by a pyro_vae.Optim: svi.state_dict() holds its state, and "
        "svi.load_state_dict restores it."
    )


def _refusal(optim: Any) -> str | None:
    """Return in one line why an optimizer cannot be adopted and what to pass instead; None if it can."""
    if not isinstance(optim, PyroOptim):
        kind = type(optim)
        name = _name(kind) if isinstance(optim, torch.optim.Optimizer) else "torch.optim.Adam"
        return f"pyro_vae.SVI cannot use a {kind.__name__} as its optimizer: write pyro_vae.Optim({name}, {{...}})."
    replacement = f"pyro_vae.Optim({_name(optim.pt_optim_constructor)}, {{...}}"
    if isinstance(optim, PyroLRScheduler):
        return (
            f"pyro_vae.SVI does not support schedulers of pyro.optim: pass {replacement}, schedule=...), which maps "
            "the number of steps taken to a factor on the learning rate."
        )
    if type(optim) is not PyroOptim:
        return f"pyro_vae.SVI cannot reproduce the steps of a {type(optim).__name__}: pass {replacement})."
    if callable(optim.pt_optim_args) or callable(optim.pt_clip_args):
        return (
            "pyro_vae.SVI needs one set of arguments for all parameters, not a function of their names: pass "
            f"{replacement}, clip_args={{...}})."
        )
    if optim.optim_objs or optim._state_waiting_to_be_consumed:
        return f"This optimizer already has a state, which would be lost: pass a new one, or {replacement})."
    return None


def _name(constructor: Any) -> str:
    """Return the name by which user code refers to a constructor."""
    name = getattr(constructor, "__name__", "...")
    return f"torch.optim.{name}" if getattr(torch.optim, name, None) is constructor else name
