r"""One run of a program for K particles, in any of the layouts of `plates`, which give the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.trace.batch import Batch, Program
from pyro_vae.trace.elements import element
from pyro_vae.trace.plates import (
    PARTICLES,
    DataPlate,
    Frame,
    Layout,
    Site,
    find_data_plate,
    from_particles,
    in_data_plate,
    names_in_guide,
    outside_data_plate,
    per_image,
    plates_of,
    to_particles,
)

Values = Mapping[str, Tensor]


class Terms(NamedTuple):
    """Log-densities of the sites of a run, {site: (K, B)} in nats, float64.

    `densities` are unscaled; `weighed` are the same times the scales of `poutine.scale` and of mini-batch plates; both
    leave out `losses`: factors, and what a guide observes, which are no densities of anything drawn. These are scaled.
    """

    densities: dict[str, Tensor]
    weighed: dict[str, Tensor]
    losses: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Run:
    """A run of a program for K particles of B images: one trace, or one for each particle where read singly."""

    traces: tuple[poutine.Trace, ...]
    frame: Frame  # of each trace
    layout: Layout
    held: frozenset[str] = frozenset()  # latents at given values

    @property
    def num_samples(self) -> int:
        """K."""
        return len(self.traces) * self.frame.num_samples

    @property
    def batch_size(self) -> int:
        """B."""
        return self.frame.batch_size

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The sample sites proper, of the first trace: no plate's subsample and no `pyro.deterministic`."""
        return proper_sites(self.traces[0])

    @cached_property
    def latents(self) -> list[str]:
        """Names of the latent sites: drawn, neither auxiliary nor the unobserved half of an `obs_mask`."""
        return [name for name in self.drawn if not self.sites[name]["infer"].get("is_auxiliary")]

    @cached_property
    def drawn(self) -> list[str]:
        """Names of the sites that are drawn, auxiliary ones included."""
        return [name for name, site in self.sites.items() if not site["is_observed"] and not self._is_unobserved(name)]

    @property
    def shared(self) -> list[str]:
        """Names of the drawn sites that stand outside the data plate."""
        return [name for name in self.drawn if not in_data_plate(self.sites[name], self.frame)]

    @property
    def values(self) -> dict[str, Tensor]:
        """The values of the latent sites: {site: (K, B, ...)}, (K, ...) of a shared one."""
        return self.values_of(self.latents)

    def values_of(self, names: list[str]) -> dict[str, Tensor]:
        """Return the values of some sites: {site: (K, B, ...)}, (K, ...) of a shared one."""
        return {name: self.joined(name, lambda site: to_particles(site["value"], site, self.frame)) for name in names}

    @property
    def deltas(self) -> dict[str, Delta]:
        """The latent sites that are a `Delta`: {site: distribution of its elements}."""
        elements = {name: element(self.sites[name]["fn"])[0] for name in self.latents}
        return {name: delta for name, delta in elements.items() if isinstance(delta, Delta)}

    @property
    def observed(self) -> dict[str, tuple[Any, Tensor]]:
        """The observed sites, of the first trace: {site: (distribution, data)}; a `pyro.factor` observes nothing."""
        return {
            name: (site["fn"], site["value"])
            for name, site in self.sites.items()
            if site["is_observed"] and not isinstance(site["fn"], Unit)
        }

    def subsamples(self) -> dict[str, Tensor]:
        """Return what the plates have chosen, which another run of the same step takes as well."""
        nodes: dict[str, Any] = self.traces[0].nodes
        return {n: node["value"] for n, node in nodes.items() if node["type"] == "sample" and site_is_subsample(node)}

    def native(self) -> dict[str, Tensor]:
        """Return the tensors of the latents as they are in the trace, with the subsamples."""
        return self.subsamples() | {name: self.sites[name]["value"] for name in self.latents}

    def beside(self, model: Run) -> Run:
        """Return the run of a guide with the plate of the images that a run of its model has found."""
        data = names_in_guide(model.frame, model.sites, self.sites)
        return Run(self.traces, self.frame._replace(data=data), self.layout._replace(data=data), self.held)

    def is_factor(self, name: str) -> bool:
        """Whether a site is a `pyro.factor`."""
        return isinstance(self.sites[name]["fn"], Unit)

    def is_loss(self, name: str, *, guide: bool) -> bool:
        """Whether a site is a term of the loss and no density: a factor, or what a guide observes."""
        return self.is_factor(name) or (guide and bool(self.sites[name]["is_observed"]))

    def terms(self, *, guide: bool = False) -> Terms:
        """Score every site once. Masks count, and the scales count in what is weighed alone."""
        terms = Terms({}, {}, {})
        for name, site in self.sites.items():
            if self._is_unobserved(name):
                continue  # drawn from the model itself: its density cancels
            plain = [scale_and_mask(log_prob(s), 1.0, s["mask"]) for s in self.each(name)]
            if is_unit(site["scale"]):
                density = weighed = self._spread(name, plain)
            else:
                # In the precision of the network, as in stock Pyro: so gradients come out with its bits.
                scaled = [term * s["scale"] for term, s in zip(plain, self.each(name), strict=True)]
                density, weighed = self._spread(name, plain), self._spread(name, scaled)
            if self.is_loss(name, guide=guide):
                terms.losses[name] = weighed
            else:
                terms.densities[name], terms.weighed[name] = density, weighed
        return terms

    def log_probs(self) -> dict[str, Tensor]:
        """Return {site: log-density (K, B)} in nats, float64, without scales; factors are left out."""
        return self.terms().densities

    def per_image(self, name: str, of: Callable[[Site], Tensor], extra: int = 0) -> Tensor:
        """Return a quantity of a site, a function of it of its batch shape and `extra` dimensions: (K, B, *extra)."""
        return self.joined(name, lambda site: per_image(of(site), site, self.frame, extra))

    def _is_unobserved(self, name: str) -> bool:
        """Whether a site is what an `obs_mask` leaves out, and the model alone draws."""
        stem = name.removesuffix("_unobserved")
        if stem == name or name in self.held or f"{stem}_observed" not in self.sites:
            return False
        whole: Any = self.traces[0].nodes.get(stem, {})
        return bool(whole.get("infer", {}).get("_deterministic"))

    def each(self, name: str) -> list[Site]:
        """Return a site of every trace."""
        return [trace.nodes[name] for trace in self.traces]

    def joined(self, name: str, of: Callable[[Site], Tensor]) -> Tensor:
        """Return a function of a site, of every trace, joined over particles."""
        parts = [of(site) for site in self.each(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _spread(self, name: str, terms: list[Tensor]) -> Tensor:
        """Return terms of a site, of each trace, as (K, B), float64; what all images share is divided among them."""
        parts = []
        for term, site in zip(terms, self.each(name), strict=True):
            # Pyro's improper prior scores on the CPU, wherever its values are.
            part = per_image(term.to(site["value"].device, torch.float64), site, self.frame)
            if part.dim() == 1:
                part = (part / self.batch_size).unsqueeze(1).expand(-1, self.batch_size)
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def proper_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Return the sample sites of a trace that have a density or a factor."""
    nodes: dict[str, Any] = trace.nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def is_unit(scale: Any) -> bool:
    """Whether a scale is the number 1; a tensor is taken for another one, since reading it would wait for a device."""
    return not isinstance(scale, Tensor) and bool(scale == 1)


def log_prob(site: Site) -> Tensor:
    """Return the log-density of a site at its value, of its batch shape.

    Raises:
        ValueError: the value would be broadcast against the event of its distribution, which adds up what is no part
            of it: images of the whole batch, for one.
    """
    if "log_prob" in site:
        known: Tensor = site["log_prob"]
        return known
    fn, value = site["fn"], site["value"]
    event = tuple(fn.event_shape)
    if not isinstance(fn, Unit) and event and tuple(value.shape[-len(event) :]) != event:
        raise ValueError(
            f"Site {site['name']!r} has a value of shape {tuple(value.shape)} under a distribution of batch shape "
            f"{tuple(fn.batch_shape)} and event shape {event}: give the value these shapes, (batch..., event...), with "
            "reshape or unsqueeze."
        )
    result: Tensor = fn.log_prob(value)
    return result


def run_laid_out(
    program: Program,
    batch: Batch,
    num_samples: int,
    layout: Layout,
    given: Values,
    native: Values | None = None,
    *,
    guess: bool = False,
) -> Run:
    """Run a program in one layout.

    Args:
        program: a model or a guide.
        batch: what it is called with.
        num_samples: K.
        layout: how; its data plate is looked up where it has none.
        given: values of latents, {site: (K, B, ...)}.
        native: values in the very tensors of a run of the same layout, subsamples of plates included.
        guess: whether the program may have no data plate, as a guide of global latents alone; the model has it then.

    Raises:
        ValueError: a value has no latent site in the program, or a site does not stand in the data plate.
    """
    if layout.kind == "singly":
        parts = [{name: value[k : k + 1] for name, value in given.items()} for k in range(num_samples)]
        runs = []
        for part in parts:
            run = run_laid_out(program, batch, 1, layout._replace(kind="plain"), part, native)
            for site in run.sites.values():  # at once, since a flow without an inverse knows its last draw alone
                site["log_prob"] = log_prob(site)  # type: ignore[index]
            runs.append(run)
        return Run(tuple(run.traces[0] for run in runs), runs[0].frame, layout, runs[0].held)
    rows = layout.kind == "rows"
    called = batch.repeat(num_samples) if rows else batch
    held = _Held(given, native or {}, layout, num_samples, batch.x)
    with _SampleSites() as tracer, held, _explained(called.x):
        if layout.kind == "particles":
            with pyro.plate(PARTICLES, num_samples, dim=layout.particle_dim):
                called.call(program)
        else:
            called.call(program)
    trace = tracer.trace
    sites = proper_sites(trace)
    data = layout.data or find_data_plate(sites.values(), called.x, guess=guess)
    frame = Frame(layout.kind, layout.particle_dim, num_samples, len(batch), data)
    _check_latents(sites, given, frame)
    return Run((trace,), frame, layout._replace(data=data), frozenset(held.used))


@contextmanager
def _explained(x: Tensor) -> Iterator[None]:
    """Say of an error of torch about types that x has another one than the program."""
    try:
        yield
    except RuntimeError as error:
        default = torch.get_default_dtype()
        if "type" not in str(error) or not x.is_floating_point() or x.dtype == default:
            raise
        raise ValueError(
            f"x is {x.dtype} and the program computes in {default}: convert it, x.to({default}) ({error})."
        ) from error


def _check_latents(sites: Mapping[str, Site], given: Values, frame: Frame) -> None:
    latents = [name for name, site in sites.items() if not site["is_observed"]]
    if missing := sorted(given.keys() - set(latents)):
        raise ValueError(f"The program has no latent site {missing[0]!r}; it has {latents}.")
    for site in sites.values():
        named = [plate for plate in site["cond_indep_stack"] if plate.name == frame.data.name]
        if named and named[0].size not in (frame.rows, -1):
            raise ValueError(outside_data_plate(site, frame.rows))


class _Held(Messenger):
    """Holds latents at given values, brought into the layout of the run; plates choose no subsample of their own."""

    def __init__(self, given: Values, native: Values, layout: Layout, num_samples: int, x: Tensor) -> None:
        super().__init__()
        self.given, self.native = given, native
        self.layout, self.num_samples, self.x = layout, num_samples, x
        self.used: set[str] = set()

    def _pyro_sample(self, msg: Message) -> None:
        name = str(msg["name"])
        if msg["is_observed"] or msg["done"]:
            return
        if name in self.native:
            value = self.native[name]
        elif name in self.given:
            site: Any = msg
            data = self.layout.data or _only_plate(site, self.x)
            frame = Frame(self.layout.kind, self.layout.particle_dim, self.num_samples, len(self.x), data)
            value = from_particles(self.given[name], site, frame)
        else:
            return
        msg["value"], msg["done"] = value, True
        self.used.add(name)


def _only_plate(site: Site, x: Tensor) -> DataPlate:
    """Guess the data plate from one latent site, where a program is scored of which nothing is known yet."""
    if not any(plate.size in (len(x), -1) for plate in plates_of(site)):
        return DataPlate("", 0, len(x))  # shared by all images
    return find_data_plate([site], x)


class _SampleSites(TraceMessenger):
    """Records sample sites alone: a program names its parameters anew at every run, and there may be many."""

    def _pyro_post_param(self, msg: Message) -> None:
        pass
