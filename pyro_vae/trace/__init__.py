"""How any program is read: draws and per-site log-densities of K particles, without leaving a mark."""

from pyro_vae.trace.backends import CompiledBackend, EagerBackend
from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.densities import draw, log_density, replay, replay_at, trace_model_and_guide, trace_particles
from pyro_vae.trace.graphs.batched import BatchedGraph
from pyro_vae.trace.graphs.fx import GraphError
from pyro_vae.trace.graphs.graph import Graph
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.isolation import read_only, stored_ids
from pyro_vae.trace.layout import Layouts, choose_layout, choose_layouts
from pyro_vae.trace.missing import with_missing_pixels
from pyro_vae.trace.modes import ModuleRecorder
from pyro_vae.trace.noise import SharedNoise
from pyro_vae.trace.plates import Layout
from pyro_vae.trace.roles import Description, SiteInfo, describe, describe_traces, require_per_image
from pyro_vae.trace.run_result import ParticleTrace
from pyro_vae.trace.seeds import derive_seed, global_generator
from pyro_vae.trace.simulation import find_image_site, find_x_elements, simulate, to_images
from pyro_vae.trace.support import check_support, check_trace_support, find_outside_prior
from pyro_vae.trace.terms import Terms
from pyro_vae.trace.unconstrained import UnconstrainedSpace

__all__ = [
    "Batch",
    "BatchedGraph",
    "CompiledBackend",
    "Data",
    "Description",
    "EagerBackend",
    "Graph",
    "GraphError",
    "Layout",
    "Layouts",
    "ModuleRecorder",
    "ParticleTrace",
    "Program",
    "Record",
    "SharedNoise",
    "SiteInfo",
    "Terms",
    "UnconstrainedSpace",
    "check_support",
    "check_trace_support",
    "choose_layout",
    "choose_layouts",
    "derive_seed",
    "describe",
    "describe_traces",
    "draw",
    "find_image_site",
    "find_outside_prior",
    "find_x_elements",
    "global_generator",
    "log_density",
    "read_only",
    "replay",
    "replay_at",
    "require_per_image",
    "simulate",
    "stored_ids",
    "to_images",
    "trace_model_and_guide",
    "trace_particles",
    "with_missing_pixels",
]
