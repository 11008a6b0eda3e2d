"""Recorded programs: FX graphs of tensor operations, and the checks that such a graph is still valid."""
