r"""Convert the values and densities of a site from the layout of a run to (K, B, ...), and back.

The value of a site has shape (plates..., event...), where every plate has its own dimension, counted from the right. In
the layout ``particles`` there is one more plate to the left of all others:

    plain        (T, B, D)        one run: B images, T time steps in a plate inside the data plate, event size D
    rows         (T, K*B, D)      the particles as rows of one larger batch
    particles    (K, T, B, D)     the particles in a separate plate
    states       (S, K, T, B, D)  the values of summed-out sites to their left, for sites that depend on them

The converted shape is (K, B, T, D) in all layouts, or (K, ...) for a site outside the data plate, which all images
share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.plates import Frame, Site, get_plates, in_data_plate


def per_image(tensor: Tensor, site: Site, frame: Frame, extra: int = 0) -> Tensor:
    """Sum a quantity of a site over all plates except the data plate and the particle plate.

    Args:
        tensor: Quantity, of the batch shape of the site followed by `extra` dimensions.
        site: The site.
        frame: Dimensions of the run.
        extra: Number of additional dimensions on the right, which are kept.

    Returns:
        (K, B, *extra), or (K, *extra) for a site that all images share.

    Raises:
        ValueError: The batch shape does not match the plates around the site.
    """
    plates = get_plates(site)
    batch = tensor.dim() - extra
    kept = [batch + dim for dim in frame.leading if batch + dim >= 0]
    if local := in_data_plate(site, frame):
        kept.append(batch + frame.data.dim)
        if kept[-1] < 0 or tensor.shape[kept[-1]] != frame.rows:
            raise UserError(_wrong_shape(site, tensor.shape[:batch], frame))
    known = {*kept, *(batch + plate.dim for plate in plates)}
    # A larger dimension without a plate around the site cannot be assigned to images.
    if any(tensor.shape[axis] > 1 for axis in range(batch) if axis not in known):
        raise UserError(_wrong_shape(site, tensor.shape[:batch], frame))
    if summed := [axis for axis in range(batch) if axis not in kept]:
        tensor = tensor.sum(summed)
    if frame.kind == "rows" and local:
        return tensor.unflatten(0, (frame.num_samples, frame.batch_size))
    if frame.kind == "states":
        return _expand_over_states(tensor, len(kept) - local, local, frame)
    return tensor if frame.kind == "particles" else tensor.unsqueeze(0)


def _expand_over_states(tensor: Tensor, leading: int, local: bool, frame: Frame) -> Tensor:
    """Expand a tensor that may depend on the joint values to (S * K, B, ...).

    Args:
        tensor: Tensor with `leading` of the dimensions S and K, followed by B if it is local.
        leading: Number of leading dimensions.
        local: Whether the tensor has one row per image.
        frame: Dimensions of the run.
    """
    whole = frame.states, frame.num_samples // frame.states
    rest = list(tensor.shape[leading:])
    if local:  # of size 1 if all images have the same value
        rest[0] = frame.batch_size
    return tensor.expand(*whole, *rest).flatten(0, 1)


def _wrong_shape(site: Site, shape: Any, frame: Frame) -> str:
    dims = {plate.dim: plate.size for plate in get_plates(site)}
    if frame.kind == "particles":
        dims[frame.particle_dim] = frame.num_samples
    allowed = tuple(dims.get(dim, 1) for dim in range(min(dims, default=0), 0))
    return (
        f"The log-densities of site {site['name']!r} have shape {tuple(shape)}, but its plates have shape {allowed}: "
        "declare other dimensions as event dimensions with .to_event(n); every image needs its own row."
    )


def to_particles(value: Tensor, site: Site, frame: Frame) -> Tensor:
    """Convert the value of a site to (K, B, other plates..., event...), or (K, ...) if all images share it."""
    event = site["fn"].event_dim
    dims = sorted(plate.dim for plate in get_plates(site))
    local = in_data_plate(site, frame)
    batch = value.dim() - event
    leading = [dim for dim in frame.leading if batch + dim >= 0]
    kept = leading + dims
    if local and batch + frame.data.dim < 0:
        raise UserError(_wrong_shape(site, value.shape[:batch], frame))
    # Drop the singleton dimensions of plates that are not around this site.
    if gaps := [axis for axis in range(batch) if axis - batch not in kept and value.shape[axis] == 1]:
        value = value.squeeze(gaps)
    first = len(leading)
    if local and (index := first + dims.index(frame.data.dim)) != first:
        value = value.movedim(index, first)
    if frame.kind == "rows":
        return value.unflatten(0, (frame.num_samples, frame.batch_size))
    if frame.kind == "states":
        return _expand_over_states(value, first, local, frame)
    return value if frame.kind == "particles" else value.unsqueeze(0)


def from_particles(value: Tensor, site: Site, frame: Frame) -> Tensor:
    """Convert a value to the layout of a run, the inverse of `to_particles`.

    Args:
        value: (K, B, ...), or (K, ...) if all images share it. In the layout ``states`` it may also depend on the joint
            values, as (S, 1, 1, ...).
        site: The site that takes the value.
        frame: Dimensions of the run.
    """
    own_dims = sorted(plate.dim for plate in get_plates(site))
    local = in_data_plate(site, frame)
    if frame.kind == "rows":
        if not local:
            raise UserError(f"Site {site['name']!r} is shared by all images, which repeated rows do not support.")
        value = value.flatten(0, 1)
    elif frame.kind == "plain":
        value = value[0]
    leading = frame.leading
    if frame.kind == "states":  # a value that does not depend on the joint values has one leading dimension fewer
        leading = leading[len(own_dims) + site["fn"].event_dim + len(leading) - value.dim() :]
    first = len(leading)
    if local and (index := first + own_dims.index(frame.data.dim)) != first:
        value = value.movedim(first, index)
    dims = leading + own_dims
    for dim in range(min(dims, default=0), 0):  # singletons for plates not around this site
        if dim not in dims:
            value = value.unsqueeze(value.dim() - site["fn"].event_dim + dim + 1)
    return value


def plate_nesting(sites: Iterable[Site]) -> int:
    """Return the number of dimensions that the plates of a program occupy, at least 1."""
    return max((-plate.dim for site in sites for plate in get_plates(site)), default=1) or 1


def event_size(site: Site) -> int:
    """Return the number of elements in the event of a site."""
    return math.prod(site["fn"].event_shape)
