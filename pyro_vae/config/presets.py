r"""Presets: programs and well-known systems as sets of flags."""

from __future__ import annotations

from typing import Any

# Values of `--program` that name another program with some flags set. Setting one of those flags is an error.
PRESETS: dict[str, dict[str, Any]] = {
    "autoencoder": {"program": "vae", "posterior": "point-mass", "prior": "flat"},
    "pixelvae": {"program": "vae", "likelihood": "pixelcnn"},
}
# Systems fitted by `compare.py --systems`: the flags that define each. All other flags come from the command line.
SYSTEMS: dict[str, dict[str, Any]] = {
    "pixelcnn": {"program": "pixelcnn"},
    "autoencoder": {"program": "autoencoder"},
    "wae": {"program": "autoencoder", "objective": "wae-mmd"},
    "vae": {},
    # Two latent units and cross-entropy on gray pixels: the introductory VAE notebook.
    "notebook": {
        "binarize": "none",
        "likelihood": "cross-entropy",
        "net": "funnel",
        "latent_dim": 2,
        "objective": "meanfield-elbo",
    },
    "beta-vae": {"objective": "beta", "beta": 2.0},
    "beta-tcvae": {"objective": "beta-tcvae", "beta": 4.0},
    "vae-nsf": {"prior": "nsf"},
    "iwae": {"objective": "iwae", "num_particles": 5},
    # Without a warm-up, the latents collapse, because the PixelCNN models the pixels by itself.
    "pixelvae": {"program": "pixelvae", "objective": "beta", "warmup_epochs": 30},
}
