r"""Which plate holds the images, and how the particles of a program are laid out around it.

The plate of the images is the one that the observed sites share, whatever its name, dimension or size. A site outside
of it is shared by all images. `shapes` says what the layouts make of a site's values.
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
    """The plate of the images: its name, its dimension, and the number of images in the whole data set.

    A guide may give it `aliases`, names of its own.
    """

    name: str
    dim: int
    full_size: int
    aliases: tuple[str, ...] = ()


class Layout(NamedTuple):
    """How K particles of a program are run.

    `kind` is one of ``plain`` (one run of one particle), ``particles``, ``rows``, ``singly`` (K plain runs) and
    ``states`` (particles, with the values of what is summed out in one more dimension to their left);
    `nesting` the number of plates around a site, at most; `reason` says why the program is not run as particles;
    `summed` are latents that the guide does not draw, `enumerated` those that it enumerates: at their joint values the
    particles are repeated.
    """

    kind: str
    data: DataPlate | None = None
    nesting: int = 1
    reason: str | None = None
    summed: tuple[FiniteSite, ...] = ()
    enumerated: tuple[FiniteSite, ...] = ()

    @property
    def particle_dim(self) -> int:
        """The dimension of the particle plate, to the left of all others."""
        return -self.nesting - 1


class Frame(NamedTuple):
    """How one run is laid out: the layout of its tensors, K (or S * K), B, and the plate of the images."""

    kind: str
    particle_dim: int
    num_samples: int
    batch_size: int
    data: DataPlate
    states: int = 1  # values in a dimension of their own, that of ``states``

    @property
    def leading(self) -> list[int]:
        """Dimensions to the left of the plates: that of the values of what is summed out, and that of the particles."""
        if self.kind == "states":
            return [self.particle_dim - 1, self.particle_dim]
        return [self.particle_dim] if self.kind == "particles" else []

    @property
    def rows(self) -> int:
        """Size of the data plate."""
        return self.num_samples * self.batch_size if self.kind == "rows" else self.batch_size


def get_plates(site: Site) -> list[Any]:
    """Return the vectorized plates around a site, that of the particles left out."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES]


def find_data_plate(sites: Iterable[Site], x: Tensor, *, guess: bool = False) -> DataPlate:
    """Find the plate of the images: the one that the observed sites share, or the latent ones where none is observed.

    Several plates may have the size of the batch, as one of pixels or time steps inside that of the images. Then it is
    the one whose rows hold the elements of the rows of x.

    Args:
        sites: of a program.
        x: (B, ...), what the program is called with.
        guess: whether a program may have none, or several of that size, since another one decides.

    Raises:
        ValueError: no plate has the size of the batch, or several have it and nothing tells them apart.
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
        return DataPlate("", 0, size)  # a dimension that no plate has: all is shared
    if len(names) > 1 and not guess:
        raise UserError(
            f"The plates {' and '.join(map(repr, names))} both have the size of the batch, {size}, and nothing tells "
            "which of them holds the images: use another batch size."
        )
    if not names:
        raise UserError(_no_data_plate(anchors, size))
    frame = next(frame for site in anchors for frame in get_plates(site) if frame.name == names[0])
    return DataPlate(frame.name, frame.dim, max(frame.full_size or 0, size))


def _names(sites: list[Site], size: int, *, every: bool) -> list[str]:
    """Return the names of the plates of a size, or of no size, around every one or any of the sites."""
    names_of_sites = [[frame.name for frame in get_plates(site) if frame.size in (size, -1)] for site in sites]
    names = list(dict.fromkeys(name for site_names in names_of_sites for name in site_names))
    return [name for name in names if not every or all(name in site_names for site_names in names_of_sites)]


def _holds_rows(site: Site, name: str, x: Tensor) -> bool:
    """Whether the rows of a site along a plate hold the elements of the rows of x, in any order."""
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
                f"Plate {frame.name!r} draws {frame.size} of the {size} rows of x by itself: pass batches instead, and "
                "write subsample_size=len(x) in the plate."
            )
    return data_plate_message(anchors[0], size)


def data_plate_message(site: Site, size: int) -> str:
    """Return the message about a site that does not stand in the data plate."""
    plates = ", ".join(f"{f.name!r} of size {f.size} at dim {f.dim}" for f in get_plates(site)) or "none"
    return (
        f"Site {site['name']!r} must stand in one data plate of size {size}, found {plates}: write "
        "`with pyro.plate('data', x.shape[0])` around it."
    )


def in_data_plate(site: Site, frame: Frame) -> bool:
    """Whether a site has a row for each image; one that has not is shared by all of them.

    The plate counts, not its size: a global latent may have a plate that is as long as the batch.
    """
    return any(plate.name == frame.data.name or plate.name in frame.data.aliases for plate in get_plates(site))


def add_guide_names(model: Frame, of_model: Mapping[str, Site], of_guide: Mapping[str, Site]) -> DataPlate:
    """Return the data plate of a model with the names that its guide has for it.

    They are those of the plates, in its dimension, around latents that stand in the data plate in the model.
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
