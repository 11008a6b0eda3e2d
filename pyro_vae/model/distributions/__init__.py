"""Distributions that neither torch nor Pyro has."""
