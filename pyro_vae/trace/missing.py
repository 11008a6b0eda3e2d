r"""Programs of images with missing pixels, which are NaN in x.

The model scores the pixels that are seen, p(x_seen, z), so that annealing reads the program of what was seen. Both
take x with the gaps filled: what stands there is masked out of the score.
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
    """Return model and guide of images whose missing pixels are NaN.

    Args:
        model: program of p(x, z), with an observed site of independent pixels.
        guide: program of q(z|x).
        fill_value: what stands in the gaps, of the shape of an image, where the likelihood is smooth: the mean image,
            for one. It makes a better or a worse guide, and changes no p(x_seen).
        order: which pixel of the flattened image each element of that site's event is; None where it has the shape of
            an image.

    Returns:
        Two programs of x (B, ...). The model raises ValueError where pixels are not independent given z.
    """

    def of_seen(*args: Any, **kwargs: Any) -> Any:
        batch = Batch(*args, **kwargs)
        mask = ~batch.x.isnan()
        if order is not None:
            mask = mask.flatten(1)[:, order.flatten()].reshape(len(mask), *order.shape)
        with _Seen(mask):
            return _filled(batch, fill_value).call(model)

    def filled(*args: Any, **kwargs: Any) -> Any:
        return _filled(Batch(*args, **kwargs), fill_value).call(guide)

    return of_seen, filled


def _filled(batch: Batch, fill_value: Tensor) -> Batch:
    return batch.replace_x(torch.where(batch.x.isnan(), fill_value, batch.x))


class _Seen(Messenger):
    """Masks the observed site, pixel by pixel."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def _pyro_sample(self, msg: Message) -> None:
        fn: Any = msg["fn"]
        if not msg["is_observed"] or isinstance(fn, Unit) or (msg["infer"] or {}).get("_deterministic"):
            return
        if msg["mask"] is not None and not torch.as_tensor(msg["mask"]).any():
            return  # it observes nothing
        if not isinstance(fn, Independent) or fn.event_shape != self.mask.shape[1:]:
            raise UserError(
                f"Site {msg['name']!r} cannot be scored with pixels missing: they must be independent given z, and "
                f"its event shape {tuple(fn.event_shape)} that of an image, {tuple(self.mask.shape[1:])}."
            )
        msg["fn"] = fn.base_dist.mask(self.mask).to_event(fn.reinterpreted_batch_ndims)
