"""Classifiers on learned features, and a Frechet distance between samples and data."""
