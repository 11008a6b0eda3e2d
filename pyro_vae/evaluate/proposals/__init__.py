"""Proposals of importance sampling that are fitted to the posterior of each image."""
