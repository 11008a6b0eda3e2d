"""Run any Pyro program for K particles and evaluate the log-density of every site, without side effects.

A *program* is a pair of callables: a model, p(x, z), and a guide, q(z | x). The files, from the bottom up:

    batch, terms, elements              arguments of a call; log-densities of sites; element-wise views of distributions
    enumeration, discrete, marginals    discrete latents: their values, which are enumerated, and the sums over them
    plates, shapes                      the data plate, the layouts of particles, and the shapes in each layout
    modes, isolation, noise, seeds      module modes, side effects, noise outside sample sites, seeds
    run_result, execution               one run in one layout, and its result
    layout, layout_comparison           the choice of a layout by comparison with single runs
    densities                           entry points: sample, score, replay
    roles, simulation, support          descriptions of programs, simulated data, checks of the data
    missing, unconstrained              missing pixels; latents as one vector in R^D
    graphs/, backends                   recorded FX graphs; eager and compiled backends
"""

from pyro_vae.trace.backends import CompiledBackend, EagerBackend
from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.densities import draw, log_density, replay, replay_at, trace_model_and_guide, trace_particles
from pyro_vae.trace.graphs.batched import BatchedGraph
from pyro_vae.trace.graphs.fx import GraphError
from pyro_vae.trace.graphs.graph import Graph
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.graphs.sharded import ShardedGraph
from pyro_vae.trace.isolation import read_only, stored_ids
from pyro_vae.trace.layout import Layouts, choose_layout, choose_layouts
from pyro_vae.trace.missing import with_missing_pixels
from pyro_vae.trace.modes import ModuleRecorder
from pyro_vae.trace.noise import SharedNoise
from pyro_vae.trace.plates import Layout
from pyro_vae.trace.roles import Description, SiteInfo, describe, describe_traces, require_per_image
from pyro_vae.trace.row_noise import Draw, RowNoise, Rows, find_draws
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
    "Draw",
    "EagerBackend",
    "Graph",
    "GraphError",
    "Layout",
    "Layouts",
    "ModuleRecorder",
    "ParticleTrace",
    "Program",
    "Record",
    "RowNoise",
    "Rows",
    "ShardedGraph",
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
    "find_draws",
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
