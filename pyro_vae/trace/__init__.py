"""How any program is read: draws and per-site log-densities of K particles, without leaving a mark."""

from pyro_vae.trace.densities import draw, log_density, run, run_at, run_pair, simulate
from pyro_vae.trace.domain import (
    NoDensity,
    check_domain,
    check_support,
    is_density,
    is_deterministic,
    no_density,
    no_normalization,
    why_no_density,
)
from pyro_vae.trace.graph import Graph
from pyro_vae.trace.memory import is_out_of_memory
from pyro_vae.trace.missing import seen
from pyro_vae.trace.readers import CompiledReader, Reader
from pyro_vae.trace.reading import Program, quietly, reading
from pyro_vae.trace.records import GraphError
from pyro_vae.trace.running import Run
from pyro_vae.trace.unconstrained import Unconstrained

__all__ = [
    "CompiledReader",
    "Graph",
    "GraphError",
    "NoDensity",
    "Program",
    "Reader",
    "Run",
    "Unconstrained",
    "check_domain",
    "check_support",
    "draw",
    "is_density",
    "is_deterministic",
    "is_out_of_memory",
    "log_density",
    "no_density",
    "no_normalization",
    "quietly",
    "reading",
    "run",
    "run_at",
    "run_pair",
    "seen",
    "simulate",
    "why_no_density",
]
