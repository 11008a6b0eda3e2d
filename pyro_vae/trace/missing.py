r"""Run programs on images with missing pixels, which are NaN in x.

The model scores only the observed pixels, p(x_observed, z), so that AIS targets p(z | x_observed). Model and guide both
receive x with missing pixels filled; the filled values are masked from the log-density.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.batch import Batch, Program


def with_missing_pixels(
    model: Program, guide: Program, fill_value: Tensor, order: Tensor | None = None
) -> tuple[Program, Program]:
    """Return a model and a guide for images whose missing pixels are NaN.

    Args:
        model: Model, p(x, z), with one observed site of independent pixels.
        guide: Guide, q(z | x).
        fill_value: Image of fill values inside the support of the likelihood, e.g. the mean image. It affects only the
            quality of the guide, not p(x_observed).
        order: Flat pixel index of each element of the event of the observed site. None if the event has the shape of an
            image.

    Returns:
        (model, guide), both called with x, shape (B, ...). The model raises ValueError if the pixels are not
        independent given z.
    """

    def masked_model(*args: Any, **kwargs: Any) -> Any:
        batch = Batch(*args, **kwargs)
        mask = ~batch.x.isnan()
        if order is not None:
            mask = mask.flatten(1)[:, order.flatten()].reshape(len(mask), *order.shape)
        with _MaskMissing(mask):
            return _fill_missing(batch, fill_value).call(model)

    def filled_guide(*args: Any, **kwargs: Any) -> Any:
        return _fill_missing(Batch(*args, **kwargs), fill_value).call(guide)

    return masked_model, filled_guide


def _fill_missing(batch: Batch, fill_value: Tensor) -> Batch:
    return batch.replace_x(torch.where(batch.x.isnan(), fill_value, batch.x))


class _MaskMissing(Messenger):
    """Mask the missing pixels of the observed site."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def _pyro_sample(self, msg: Message) -> None:
        fn: Any = msg["fn"]
        if not msg["is_observed"] or isinstance(fn, Unit) or (msg["infer"] or {}).get("_deterministic"):
            return
        if msg["mask"] is not None and not torch.as_tensor(msg["mask"]).any():
            return  # fully masked: nothing is observed
        if not isinstance(fn, Independent) or fn.event_shape != self.mask.shape[1:]:
            raise UserError(
                f"Site {msg['name']!r} cannot be scored with pixels missing: its pixels must be independent given z "
                f"and its event shape {tuple(fn.event_shape)} must be that of an image, {tuple(self.mask.shape[1:])}."
            )
        msg["fn"] = fn.base_dist.mask(self.mask).to_event(fn.reinterpreted_batch_ndims)
