"""How any program is read: draws and per-site log-densities of K particles, without leaving a mark."""

from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.densities import draw, log_density, run, run_again, run_at, run_pair
from pyro_vae.trace.describe import Description, SiteInfo, describe, description, refuse_whole_batch
from pyro_vae.trace.graph import Graph
from pyro_vae.trace.layout import Layouts, choose_layout, choose_layouts
from pyro_vae.trace.memory import is_out_of_memory
from pyro_vae.trace.missing import seen
from pyro_vae.trace.modes import ModulesThatRun
from pyro_vae.trace.noise import SharedNoise
from pyro_vae.trace.plates import Layout
from pyro_vae.trace.readers import CompiledReader, Reader
from pyro_vae.trace.reading import quietly, reading, stored_ids
from pyro_vae.trace.records import GraphError
from pyro_vae.trace.runs import Run, Terms
from pyro_vae.trace.seeds import derive
from pyro_vae.trace.simulate import as_images, elements_of_x, image_site, simulate
from pyro_vae.trace.support import check_domain, check_support, outside_prior
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
    "is_out_of_memory",
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
