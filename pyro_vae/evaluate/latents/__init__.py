"""Decoding, moments, traversals and disentanglement of latent units."""
