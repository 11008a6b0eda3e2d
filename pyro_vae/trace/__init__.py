"""How any program is read: draws and per-site log-densities of K particles, without leaving a mark."""

from pyro_vae.trace.backends import CompiledReader, Reader
from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.densities import draw, log_density, run, run_again, run_at, run_pair
from pyro_vae.trace.graphs.fx import GraphError
from pyro_vae.trace.graphs.graph import Graph
from pyro_vae.trace.isolation import quietly, reading, stored_ids
from pyro_vae.trace.layout import Layouts, choose_layout, choose_layouts
from pyro_vae.trace.missing import seen
from pyro_vae.trace.modes import ModulesThatRun
from pyro_vae.trace.noise import SharedNoise
from pyro_vae.trace.plates import Layout
from pyro_vae.trace.roles import Description, SiteInfo, describe, description, refuse_whole_batch
from pyro_vae.trace.run_result import Run
from pyro_vae.trace.seeds import derive
from pyro_vae.trace.simulation import as_images, elements_of_x, image_site, simulate
from pyro_vae.trace.support import check_domain, check_support, outside_prior
from pyro_vae.trace.terms import Terms
from pyro_vae.trace.unconstrained import Unconstrained

__all__ = [
    "Batch",
    "CompiledReader",
    "Data",
    "Description",
    "Graph",
    "GraphError",
    "Layout",
    "Layouts",
    "ModulesThatRun",
    "Program",
    "Reader",
    "Run",
    "SharedNoise",
    "SiteInfo",
    "Terms",
    "Unconstrained",
    "as_images",
    "check_domain",
    "check_support",
    "choose_layout",
    "choose_layouts",
    "derive",
    "describe",
    "description",
    "draw",
    "elements_of_x",
    "image_site",
    "log_density",
    "outside_prior",
    "quietly",
    "reading",
    "refuse_whole_batch",
    "run",
    "run_again",
    "run_at",
    "run_pair",
    "seen",
    "simulate",
    "stored_ids",
]
