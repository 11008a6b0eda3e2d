"""Priors p(z): modules whose ``forward()`` returns a distribution over one latent vector, one file each."""
