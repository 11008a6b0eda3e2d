r"""Adam steps of several fits in one call, with the same arithmetic as one call per fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import adam

from pyro_vae.infer.plain_adam import plain_group
from pyro_vae.infer.step_result import StepResult
from pyro_vae.infer.svi import SVI

_OPTIONS = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay")


def step_together(steps: Sequence[tuple[SVI, StepResult]]) -> None:
    """Update the weights of all drivers with a plain fused Adam on the CPU, and mark their next step as taken.

    The other drivers take their steps themselves.

    Args:
        steps: Drivers and the results of their steps.
    """
    alike: dict[Any, list[tuple[SVI, StepResult]]] = {}
    for svi, result in steps:
        if _is_plain(svi, result):
            (group,) = svi.optim.optimizer.param_groups
            alike.setdefault(tuple(group[name] for name in _OPTIONS), []).append((svi, result))
    for options, members in alike.items():
        _step(dict(zip(_OPTIONS, options, strict=True)), members)


def _is_plain(svi: SVI, result: StepResult) -> bool:
    """Return whether a step can be taken for a driver: no new parameter, no rare option, and a finite result."""
    optim, optimizer = svi.optim, svi.optim.optimizer
    group = plain_group(optim)
    return (
        group is not None
        and optimizer is not None
        and not group["capturable"]
        and (optim.scheduler is None or getattr(optimizer, "_opt_called", False))  # it asks for one ordinary step
        and result.stored == svi._stored  # or the driver has parameters to take on first
        and result.loss.device.type == "cpu"
        and all(optimizer.state.get(optim.params[name]) for name in result.gradients)
        and not any(gradient.is_complex() for gradient in result.gradients.values())
        and bool(result.finite)
    )


def _step(options: dict[str, Any], members: Sequence[tuple[SVI, StepResult]]) -> None:
    params: list[Tensor] = []
    gradients: list[Tensor] = []
    states: list[Any] = []
    for svi, result in members:
        optim = svi.optim
        own = [optim.params[name] for name in result.gradients]
        params += own
        gradients += result.gradients.values()
        states += [optim.optimizer.state[p] for p in own]
        optim.moved = True
    beta1, beta2 = options.pop("betas")
    with torch.no_grad():
        adam.adam(
            params,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            **options,
        )
