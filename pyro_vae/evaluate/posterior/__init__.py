"""Quality of the guide: calibration, inference gaps, ELBO surgery, and posteriors of discrete latents."""
