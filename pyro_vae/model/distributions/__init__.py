"""Distributions that torch and Pyro lack, or that are less accurate there."""
