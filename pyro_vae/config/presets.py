r"""Names for sets of flags: programs that are another one with some flags set, and the systems of the field."""

from __future__ import annotations

from typing import Any

# What `--program` stands for where it names a program with other components. Flags that a preset sets are not read.
PRESETS: dict[str, dict[str, Any]] = {
    "autoencoder": {"program": "vae", "posterior": "point-mass", "prior": "flat"},
    "pixelvae": {"program": "vae", "likelihood": "pixelcnn"},
}
# What `compare.py --systems` fits: the flags that make each what it is. The rest are as asked for, the same for all.
SYSTEMS: dict[str, dict[str, Any]] = {
    "pixelcnn": {"program": "pixelcnn"},
    "autoencoder": {"program": "autoencoder"},
    "wae": {"program": "autoencoder", "objective": "wae-mmd"},
    "vae": {},
    # Two units and a loss of gray pixels: the small notebook that most people meet first.
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
