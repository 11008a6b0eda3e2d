r"""Is a fitted encoder a good start for a classifier? All its parameters, trained on few labels.

    logits(x)  =  E_q[z|x] W + b

The head W, b starts at the logistic regression of the same labels on the means as they are; from there Adam follows the
gradient of the cross entropy for the head and for every parameter that the mean depends on. From a head that knows
nothing the first steps would spoil the features: Kumar, Raghunathan, Jones, Ma, Liang, "Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution", ICLR 2022 (https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pyro_vae.errors import UserError
from pyro_vae.evaluate.features.probe import linear_head
from pyro_vae.evaluate.latents.moments import analytic_mean
from pyro_vae.trace import Program, read_only

_LEARNING_RATE = 3e-4  # a tenth of what programs are fitted with by default, so that a good start is kept
_BATCH_SIZE = 100
_MIN_STEPS, _MAX_STEPS, _PASSES = 300, 2000, 2
_EVAL_BATCH_SIZE = 1000


class NoAnalyticMeanError(UserError):
    """A guide of which no classifier can be made; says why."""


def finetune(
    guide: Program,
    x: Tensor,
    classes: np.ndarray,
    test: Tensor,
    *,
    num_steps: int | None = None,
    seed: int | None = None,
) -> np.ndarray:
    """Train a classifier that starts from a guide, and return the classes that it predicts.

    The guide is left as it was: it is trained on copies of its parameters, and read in evaluation mode.

    Args:
        guide: program of q(z|x).
        x: labeled images (N, ...).
        classes: of these (N,), two at least.
        test: images to classify (M, ...).
        num_steps: of Adam, on batches of 100 images or of all there are. None takes 300, or two turns through all
            images where these are more, and never more than 2,000.
        seed: of the order of the images, and of what the guide draws.

    Returns:
        Classes (M,).

    Raises:
        NoAnalyticMeanError: the guide has no mean in closed form, or one that depends on no parameter.
    """
    with read_only(guide, x=x, seed=seed, purpose="finetune", validate=False):
        with torch.enable_grad():
            parameters = find_parameters(_mean(guide, x[:1]))
        if not parameters:
            raise NoAnalyticMeanError("the mean of the guide depends on no parameter")
        known, targets = np.unique(classes, return_inverse=True)
        labels = torch.as_tensor(targets, device=x.device)
        with torch.no_grad():
            means = torch.cat([_mean(guide, images) for images in x.split(_EVAL_BATCH_SIZE)])
        start = linear_head(means.double().cpu().numpy(), classes)
        weight, bias = (torch.as_tensor(part).to(means).requires_grad_() for part in start)
        with _restored_after(parameters):
            trained = [*parameters, weight, bias]
            optim = torch.optim.Adam(trained, lr=_LEARNING_RATE, fused=True)
            for places in _batches(len(x), _default_num_steps(len(x)) if num_steps is None else num_steps):
                batch = places.to(x.device)
                with torch.enable_grad():
                    loss = cross_entropy(_mean(guide, x[batch]) @ weight + bias, labels[batch])
                    optim.zero_grad()
                    loss.backward(inputs=trained)
                optim.step()
            with torch.no_grad():
                logits = [_mean(guide, images) @ weight + bias for images in test.split(_EVAL_BATCH_SIZE)]
    return known[torch.cat(logits).argmax(1).cpu().numpy()]


def _mean(guide: Program, x: Tensor) -> Tensor:
    mean = analytic_mean(guide, x)
    if mean is None:
        raise NoAnalyticMeanError("the guide has several latent sites or none, or one without a mean in closed form")
    return mean


def find_parameters(value: Tensor) -> list[Tensor]:
    """Return the parameters that a value depends on: the leaves of its graph, wherever a program keeps them."""
    nodes: list[Any] = [value.grad_fn]
    seen: set[Any] = {None}
    parameters = []
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            parameters.append(node.variable)
        nodes += [behind for behind, _ in node.next_functions]
    return parameters


@contextmanager
def _restored_after(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let parameters be trained on copies of their data, and give them back their own data and gradients."""
    before = [(p, p.data, p.grad) for p in parameters]
    try:
        for p in parameters:
            p.data = p.data.clone()
        yield
    finally:
        for p, data, gradient in before:
            p.data, p.grad = data, gradient


def _default_num_steps(num_images: int) -> int:
    return min(max(_MIN_STEPS, -(-_PASSES * num_images // _BATCH_SIZE)), _MAX_STEPS)


def _batches(num_images: int, num_steps: int) -> Iterator[Tensor]:
    """Yield the places of so many batches; no image comes again before all have come."""
    size = min(_BATCH_SIZE, num_images)
    passes = -(-num_steps * size // num_images)
    order = [torch.randperm(num_images, device="cpu") for _ in range(passes)]
    yield from torch.cat(order or [torch.empty(0)]).split(size)[:num_steps]
