"""What the latent units hold."""
