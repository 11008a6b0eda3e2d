r"""The systems of the field by name, each some flags of the same package: what `compare.py --systems` fits."""

from __future__ import annotations

from typing import Any

# Fields of the configuration that make each what it is; the rest are as asked for, the same for all.
SYSTEMS: dict[str, dict[str, Any]] = {
    "pixelcnn": {"program": "pixelcnn"},
    "autoencoder": {"program": "autoencoder"},
    "wae": {"program": "autoencoder", "objective": "wae-mmd"},
    "vae": {},
    # Two units and a loss of grey pixels: the small notebook that most people meet first.
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
    # Without a warm-up it leaves its latents unused: the PixelCNN explains the pixels by themselves.
    "pixelvae": {"program": "pixelvae", "objective": "beta", "warmup_epochs": 30},
}
