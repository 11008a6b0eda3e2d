r"""Find the plate that holds the images, and define the layouts of particles around it.

The data plate is the one that all observed sites share, whatever its name, dimension or size. Sites outside it are
shared by all images. See `shapes` for the shapes of values in each layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import Unit
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.enumeration import FiniteSite

PARTICLES = "_particles"
Site = Mapping[str, Any]


class DataPlate(NamedTuple):
    """The plate of the images.

    Attributes:
        name: Name of the plate in the model. Empty if there is none.
        dim: Its dimension, negative.
        full_size: Number of images in the whole data set.
        aliases: Names that the guide uses for the same plate.
    """

    name: str
    dim: int
    full_size: int
    aliases: tuple[str, ...] = ()


class Layout(NamedTuple):
    """How K particles of a model or guide are run.

    Attributes:
        kind: ``plain`` (one run of one particle), ``particles`` (a particle plate), ``rows`` (repeated rows),
            ``singly`` (K plain runs), or ``states`` (``particles`` with the values of summed-out sites in one more
            dimension to the left).
        data: Data plate, or None if not yet determined.
        nesting: Number of dimensions that the plates of the program occupy.
        reason: Reason why the kind is not ``particles``, if any.
        summed: Latents that the guide does not sample. Particles are repeated at their joint values, which are summed
            out.
        enumerated: Latents that the guide enumerates. Particles are repeated at their joint values.
    """

    kind: str
    data: DataPlate | None = None
    nesting: int = 1
    reason: str | None = None
    summed: tuple[FiniteSite, ...] = ()
    enumerated: tuple[FiniteSite, ...] = ()

    @property
    def particle_dim(self) -> int:
        """Dimension of the particle plate, to the left of all others."""
        return -self.nesting - 1


class Frame(NamedTuple):
    """The dimensions of one run.

    Attributes:
        kind: Kind of its `Layout`.
        particle_dim: Dimension of the particle plate.
        num_samples: Number of particles: K, or S * K with S joint values of summed-out or enumerated sites.
        batch_size: Number of images, B.
        data: Data plate.
        states: Number of joint values that have a separate dimension, in the kind ``states``. Else 1.
    """

    kind: str
    particle_dim: int
    num_samples: int
    batch_size: int
    data: DataPlate
    states: int = 1

    @property
    def leading(self) -> list[int]:
        """Dimensions to the left of the plates: of the joint values (``states``) and of the particles."""
        if self.kind == "states":
            return [self.particle_dim - 1, self.particle_dim]
        return [self.particle_dim] if self.kind == "particles" else []

    @property
    def rows(self) -> int:
        """Size of the data plate."""
        return self.num_samples * self.batch_size if self.kind == "rows" else self.batch_size


def get_plates(site: Site) -> list[Any]:
    """Return the vectorized plates around a site, except the particle plate."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]


def find_data_plate(sites: Iterable[Site], x: Tensor, *, guess: bool = False) -> DataPlate:
    """Find the data plate: the plate shared by the observed sites, or by the latent ones if none is observed.

    Several plates may have the size of the batch, e.g. one of pixels or time steps inside that of the images. In that
    case the data plate is the one whose rows hold the elements of the rows of x.

    Args:
        sites: Sample sites of a model or guide.
        x: First tensor argument of the program, (B, ...).
        guess: Whether to accept no plate or several plates of that size, because another program determines it.

    Raises:
        ValueError: No plate has the size of the batch, or several have it and are indistinguishable.
    """
    size = len(x)
    proper = [site for site in sites if not isinstance(site["fn"], Unit)]
    latent = [site for site in proper if not site["is_observed"]]
    observed = [site for site in proper if site["is_observed"]]
    anchors = [site for site in observed if get_plates(site)] or observed or latent
    names = _names(anchors, size, every=True) or _names(anchors, size, every=False)
    if len(names) > 1:
        names = [name for name in names if any(_holds_rows(site, name, x) for site in observed)] or names
    if not anchors or (guess and not names):
        return DataPlate("", 0, size)  # dim 0 belongs to no plate: every site is shared
    if len(names) > 1 and not guess:
        raise UserError(
            f"The plates {' and '.join(map(repr, names))} both have the size of the batch, {size}, and it is "
            "ambiguous which of them holds the images: use another batch size."
        )
    if not names:
        raise UserError(_no_data_plate(anchors, size))
    frame = next(frame for site in anchors for frame in get_plates(site) if frame.name == names[0])
    return DataPlate(frame.name, frame.dim, max(frame.full_size or 0, size))


def _names(sites: list[Site], size: int, *, every: bool) -> list[str]:
    """Return the names of the plates with a given size, or without a size.

    Args:
        sites: Sample sites.
        size: Size of the plates.
        every: Whether a plate must be around all sites rather than around any of them.
    """
    names_of_sites = [[frame.name for frame in get_plates(site) if frame.size in (size, -1)] for site in sites]
    names = list(dict.fromkeys(name for site_names in names_of_sites for name in site_names))
    return [name for name in names if not every or all(name in site_names for site_names in names_of_sites)]


def _holds_rows(site: Site, name: str, x: Tensor) -> bool:
    """Return whether the rows of a site along a plate hold the elements of the rows of x, in any order."""
    value, dims = site["value"], [plate.dim for plate in get_plates(site) if plate.name == name]
    axis = value.dim() - site["fn"].event_dim + dims[0] if dims else -1
    if axis < 0 or value.numel() != x.numel() or value.shape[axis] != len(x):
        return False
    rows = value.movedim(axis, 0).reshape(len(x), -1)
    return torch.equal(rows.sort(1).values, x.reshape(len(x), -1).sort(1).values.to(rows))


def _no_data_plate(anchors: list[Site], size: int) -> str:
    for frame in (frame for site in anchors for frame in get_plates(site)):
        if frame.full_size == size and frame.size != size:
            return (
                f"Plate {frame.name!r} draws {frame.size} of the {size} rows of x by itself: pass mini-batches "
                "instead and set subsample_size=len(x) in the plate."
            )
    return data_plate_message(anchors[0], size)


def data_plate_message(site: Site, size: int) -> str:
    """Return the error message for a site that is not inside the data plate."""
    plates = ", ".join(f"{f.name!r} of size {f.size} at dim {f.dim}" for f in get_plates(site)) or "none"
    return (
        f"Site {site['name']!r} must be inside one data plate of size {size}, found {plates}: put it inside "
        "`with pyro.plate('data', x.shape[0])`."
    )


def in_data_plate(site: Site, frame: Frame) -> bool:
    """Return whether a site is inside the data plate, i.e. has one row per image and is not shared by all images.

    The plate decides, not its size: a global latent may be inside a different plate of the size of the batch.
    """
    return any(plate.name == frame.data.name or plate.name in frame.data.aliases for plate in get_plates(site))


def add_guide_names(model: Frame, of_model: Mapping[str, Site], of_guide: Mapping[str, Site]) -> DataPlate:
    """Return the data plate of a model with the guide's names for it as aliases.

    An alias is the name of a plate of the guide that has the dimension of the data plate and is around a latent that
    the model has inside the data plate.

    Args:
        model: Frame of the run of the model.
        of_model: Sample sites of the model.
        of_guide: Sample sites of the guide.
    """
    data = model.data
    names = [
        plate.name
        for name, site in of_guide.items()
        if name in of_model and in_data_plate(of_model[name], model)
        for plate in get_plates(site)
        if plate.dim == data.dim and plate.name != data.name
    ]
    return data._replace(aliases=tuple(dict.fromkeys(names)))
