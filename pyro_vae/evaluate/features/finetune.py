r"""Fine-tune a fitted encoder as a classifier, with few labels.

    logits(x)  =  E_q[z|x] W + b

The head W, b is initialized by logistic regression on the frozen posterior means. Adam then trains the head and all
parameters that the mean depends on, by the gradient of the cross-entropy. A randomly initialized head would distort the
features in its first steps: Kumar, Raghunathan, Jones, Ma, Liang, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", ICLR 2022 (https://arxiv.org/abs/2202.10054).
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

_LEARNING_RATE = 3e-4  # a tenth of the default of fits, to preserve the initialization
_BATCH_SIZE = 100
_MIN_STEPS, _MAX_STEPS, _PASSES = 300, 2000, 2
_EVAL_BATCH_SIZE = 1000


class NoAnalyticMeanError(UserError):
    """Raised if the guide has no closed-form mean to classify by, or one without parameters."""


def finetune(
    guide: Program,
    x: Tensor,
    classes: np.ndarray,
    test: Tensor,
    *,
    num_steps: int | None = None,
    seed: int | None = None,
) -> np.ndarray:
    """Fine-tune the mean of a guide as a classifier, and return its predictions on test images.

    The guide does not change: training updates copies of its parameters. It runs in evaluation mode.

    Args:
        guide: Guide q(z|x).
        x: Labeled images (N, ...).
        classes: Integer classes of the labeled images (N,), at least two different ones.
        test: Images to classify (M, ...).
        num_steps: Adam steps on batches of min(100, N) images. None uses two epochs, but at least 300 and at most 2,000
            steps.
        seed: Random seed of the batch order and of the guide's samples. None uses fresh entropy.

    Returns:
        Predicted classes (M,).

    Raises:
        NoAnalyticMeanError: The guide has no closed-form mean, or one that depends on no parameter.
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
            for indices in _batches(len(x), _default_num_steps(len(x)) if num_steps is None else num_steps):
                batch = indices.to(x.device)
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
        raise NoAnalyticMeanError("the guide does not have exactly one latent site with a closed-form mean")
    return mean


def find_parameters(value: Tensor) -> list[Tensor]:
    """Return the leaf tensors that a value depends on, found in its autograd graph wherever the program stores them."""
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
        nodes += [parent for parent, _ in node.next_functions]
    return parameters


@contextmanager
def _restored_after(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Train copies of the data of parameters, and restore their own data and gradients at the end."""
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
    """Yield `num_steps` batches of indices; each epoch covers all images once, in random order."""
    size = min(_BATCH_SIZE, num_images)
    passes = -(-num_steps * size // num_images)
    order = [torch.randperm(num_images, device="cpu") for _ in range(passes)]
    yield from torch.cat(order or [torch.empty(0)]).split(size)[:num_steps]
