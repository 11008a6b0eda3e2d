r"""Adam and AdamW without rare options, whose steps can be taken outside of the optimizer object.

With the gradient g at step t, Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015
(https://arxiv.org/abs/1412.6980) update

    m <- m + (1 - beta_1) (g - m),    v <- beta_2 v + (1 - beta_2) g^2,
    p <- p - lr / (1 - beta_1^t) m / (sqrt(v) / sqrt(1 - beta_2^t) + eps).

Before that, Adam adds weight_decay p to g, and AdamW multiplies p by 1 - lr weight_decay (Loshchilov, Hutter,
"Decoupled Weight Decay Regularization", ICLR 2019, https://arxiv.org/abs/1711.05101).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as hooks

from pyro_vae.infer.optim import Optim
from pyro_vae.infer.parameters import State


def plain_group(optim: Optim) -> State | None:
    """Return the parameter group of a fused Adam or AdamW without hooks, clipping and rare options, else None."""
    optimizer: Any = optim.optimizer
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or len(optimizer.param_groups) != 1:
        return None
    (group,) = optimizer.param_groups
    hooked = (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or hooks._global_optimizer_pre_hooks
        or hooks._global_optimizer_post_hooks
    )
    captured = group["capturable"]  # on CUDA, where the gate sets found_inf
    plain = (
        group["fused"] is True
        and isinstance(group["lr"], Tensor if captured else float)
        and all(isinstance(beta, float) for beta in group["betas"])
        and not (group["amsgrad"] or group["differentiable"] or group["maximize"] or hooked or optim.clip_args)
        and getattr(optimizer, "grad_scale", None) is None
        and (captured or getattr(optimizer, "found_inf", None) is None)
    )
    return group if plain else None


def step_sizes(steps: list[Tensor], lr: Tensor, group: State, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return lr / (1 - beta_1^t) and sqrt(1 - beta_2^t) of the next step, each of shape (N,).

    Args:
        steps: Numbers of steps taken, N tensors of shape ().
        lr: Learning rate, of shape ().
        group: Parameter group.
        dtype: Dtype of the computation.
    """
    t = torch.stack(steps).to(dtype) + 1
    # 1 - beta^t would cancel in float32.
    first, second = (-torch.expm1(t * (math.log(beta) if beta else -math.inf)) for beta in group["betas"])
    return lr / first, second.sqrt()


def updated(
    param: Tensor, gradient: Tensor, m: Tensor, v: Tensor, lr: Tensor, size: Tensor, root: Tensor, group: State
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the new parameter and its new moments, given its learning rate and `step_sizes`."""
    beta1, beta2 = group["betas"]
    if group["weight_decay"] and group["decoupled_weight_decay"]:
        param = param * (1 - lr * group["weight_decay"])
    elif group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * param
    m = m + (1 - beta1) * (gradient - m)
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return param - size * m / (v.sqrt() / root + group["eps"]), m, v
