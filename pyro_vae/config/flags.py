r"""The single source of flags, defaults and help."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from pyro_vae import data
from pyro_vae.config.choices import AUTO, CHOICES, LEFT_TO_DATA, Count, Device, OptionalCount, flag, one_of
from pyro_vae.errors import UserError
from pyro_vae.infer import objectives
from pyro_vae.infer.averaging import check_decay

# Steps from which on a run is compiled: the compiler takes 5 to 60 seconds, and saves 1 to 5 milliseconds of a step.
_COMPILED_STEPS = 10_000


@dataclass(frozen=True)
class Config:
    """One run. Nats are per image throughout."""

    program: str = "vae"
    """vae; two-layer; gmvae, with a mixture of ten Gaussians as its prior whose class is summed out; cvae, of images
    given their labels; m2, semi-supervised, given few of them (--labels); autoencoder, the VAE
    of --posterior point-mass and --prior flat; pixelcnn, an autoregressive density of 0/1 pixels without latents;
    pixelvae, the VAE of --likelihood pixelcnn; or path/to/file.py:factory, a program of your own: factory(config,
    images) returns an object with model(x) and guide(x). Its code is run."""
    data: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "digits"
    """digits (8x8, embedded) or shapes (32x32, of five known factors, drawn); mnist, fashion-mnist, kmnist, emnist or
    svhn, which are downloaded into --data-root where absent; static-mnist, omniglot, caltech-silhouettes, cifar10,
    dsprites or celeba64, which must be there; or a folder of images of your own, whose sub-folders are classes, or
    train, test and valid, and which are otherwise split by their content; or a file of arrays (.npy, .npz) or
    a table (.csv, .parquet, .h5ad); or a folder of Hugging Face's save_to_disk."""
    image_size: OptionalCount = None
    """Height and width of images of your own, which are cropped and resized (None: as they are, all of one size)."""
    channels: Annotated[int | None, tyro.conf.arg(metavar="1|3")] = None
    """Of images of your own: 1 for gray, 3 for color (None: 1 if all files are gray, otherwise 3)."""
    skip_bad: bool = False
    """Leave out image files that cannot be used, with a warning for each, instead of stopping."""
    data_root: Path = Path("data")
    """Folder of the data sets that are read by name, and of the decoded images of folders, in its cache/."""
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of training, validation and test data of your own, where they do not come split."""
    binarize: Annotated[str, one_of("binarize")] = AUTO
    """dynamic: Bernoulli(gray) anew per batch, the test images once; fixed: all once; threshold: gray >= 128;
    none: gray pixels, dequantized uniformly under a density; auto: as the likelihood needs it."""
    train_images: OptionalCount = None
    """Train on the first so many images (None: all)."""
    test_images: OptionalCount = None
    """Test on the first so many images (None: all)."""

    prior: Annotated[str, one_of("prior")] = "standard"
    """p(z). flat: none, a constant instead of a density, so that there is no log p(x)."""
    posterior: Annotated[str, one_of("posterior")] = "meanfield"
    """q(z|x). point-mass: a code without noise, as of an autoencoder, so that there is no log p(x)."""
    likelihood: Annotated[str, one_of("likelihood")] = AUTO
    """p(x|z). auto: bernoulli for gray images of a data set by name, as published, and for 0/1 pixels; logistic-mixture
    for gray levels and colors of your own; gaussian for real numbers; negative-binomial for counts.
    bernoulli and pixelcnn (pixels in order, each given those before it) take binarized pixels. Gray ones
    (--binarize none) go with categorical and logistic-mixture, over their 256 levels (the latter in color: green given
    red, blue given both), and with the densities gaussian (learned mean and scale), isotropic-gaussian (one scale for
    all pixels) and continuous-bernoulli. cross-entropy, of gray pixels, is a loss and no likelihood: there is no log
    p(x) of it. Counts also go with poisson."""
    net: Annotated[str, one_of("net")] = "mlp"
    """Networks of encoder and decoder. mlp: two hidden tanh layers; relu and gated: the same with other units; funnel:
    relu, with half as many units in each layer nearer to the code; conv and resnet: convolutions, which halve the
    image twice, and from 64 pixels on more often; resnet with residual blocks."""
    depth: OptionalCount = None
    """Hidden layers of --net mlp, relu, gated and funnel (None: 2), or residual blocks at each resolution of conv
    (None: 0) and resnet (None: 2)."""
    width: OptionalCount = None
    """Channels of --net conv and resnet where the image is halved once (None: 32); they double at each further halving,
    up to 256."""
    labels: Annotated[int, tyro.conf.arg(metavar="N")] = 100
    """Training images with a label, as many of each class, for --program m2."""
    latent_dim: Count = 50
    """Latent units."""
    hidden_dim: Count = 200
    """Units of a hidden layer; a PixelCNN has one channel for every twelve."""

    objective: Annotated[str, one_of("objective")] = "elbo"
    """What is maximised, per image."""
    num_particles: Count = 1
    """Particles per image in training."""
    beta: float = 1.0
    """Weight of the rate, of --objective beta, or of the total correlation, of beta-tcvae."""
    warmup_epochs: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Epochs over which beta rises to its value, of --objective beta and beta-tcvae."""
    free_bits: float = 0.1
    """Nats that a latent unit may cost for free, of --objective free-bits."""
    mmd_weight: float = 100.0
    """Nats per unit of the squared discrepancy between codes and prior, of --objective wae-mmd."""
    epochs: OptionalCount = None
    """Passes over the training images (None: 300 on digits and caltech-silhouettes, 30 on celeba64, 10 on dsprites, 100
    on the others)."""
    batch_size: Count = 100
    """Images per step."""
    optimizer: Annotated[str, one_of("optimizer")] = "adam"
    """adam, or adamax, whose steps are scaled by the largest recent gradient instead of the mean square."""
    learning_rate: float = 3e-3
    """Step size of the optimizer at the start."""
    schedule: Annotated[str, one_of("schedule")] = "cosine"
    """Learning rate over the run: constant, cosine to 0, or burda (8 stages of 3^i parts, each 10^(-1/7) lower)."""
    patience: Annotated[int, tyro.conf.arg(metavar="EPOCHS")] = 0
    """Stop after so many epochs without a better validation ELBO and keep the best (0: off)."""
    ema: Annotated[float, tyro.conf.arg(metavar="DECAY")] = 0.0
    """Decay of an exponential moving average of the weights over the steps, such as 0.999 (0: off). Validation, scores
    and figures are of the averaged weights; training goes on with the others."""

    on_nonfinite: Annotated[str, one_of("on_nonfinite")] = "stop"
    """Where a loss or a gradient is not finite: stop, or rollback to the last milestone with half the learning rate, up
    to three times."""

    num_samples: OptionalCount = None
    """K of the importance-sampled log-likelihood (None: 5000 on named data sets of 28x28 pixels, 1000 on the
    others)."""
    seed: int = 0
    """Seed of initial weights, order, noise and evaluation."""
    device: Device = "auto"
    """auto takes CUDA where it is available."""
    compile: Annotated[str, one_of("compile")] = "auto"
    """Run the program once and from then on the tensor operations it issued: on compiles them, and scores as well; auto
    does so from 10,000 steps on and takes them one by one in shorter runs; off runs the program at every step."""
    precision: Annotated[str, one_of("precision")] = "float32"
    """Of matrix products in training: tf32 (CUDA), or bf16, which are bfloat16. Densities are float32 or better."""

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images", "image_size", "latent_dim", "hidden_dim", "num_particles"):
            self._at_least(name, 1)
        for name in ("epochs", "batch_size", "num_samples"):
            self._at_least(name, 1)
        self._at_least("depth", 0)
        self._at_least("width", 1)
        self._at_least("patience", 0)
        self._at_least("warmup_epochs", 0)
        # A path is not asked for: a saved run may name a folder that lies elsewhere now.
        if self.data not in data.DATASETS and os.sep not in self.data and not os.path.exists(self.data):
            known = ", ".join(data.DATASETS)
            own = "the path of a folder of images or a file of arrays"
            raise UserError(f"Unknown data {self.data!r}; choose one of {known}, or {own}.")
        if self.channels not in (None, 1, 3):
            raise UserError(f"--channels is {self.channels}; choose 1 or 3.")
        if not all(0 < share < 1 for share in self.splits) or not math.isclose(sum(self.splits), 1.0):
            shown = " ".join(map(str, self.splits))
            raise UserError(f"--splits is {shown}; the three shares must be positive and sum to 1.")
        for name in ("beta", "free_bits", "mmd_weight"):
            objectives.require_nonnegative(flag(name), getattr(self, name))
        if not 0 < self.learning_rate < 1e6:  # float32 has no room for the steps of many more
            raise UserError(f"--learning-rate is {self.learning_rate}; it must be a positive number below 1e6.")
        check_decay(flag("ema"), self.ema)
        for name, choices in CHOICES.items():
            open_to_data = name in LEFT_TO_DATA and getattr(self, name) == AUTO
            if getattr(self, name) not in choices and not open_to_data:
                raise UserError(f"Unknown {name} {getattr(self, name)!r}; choose one of {', '.join(choices)}.")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise UserError(f"{flag(name)} is {value}; it must be at least {least}.")

    def steps_per_epoch(self, num_images: int) -> int:
        """Return the steps of an epoch over so many training images."""
        return math.ceil(num_images / self.batch_size)

    def resolve(self) -> Config:
        """Return the configuration with the defaults that depend on the data set or the machine filled in.

        Raises:
            ValueError: CUDA is asked for and not there.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = auto if self.device == "auto" else self.device
        if self.precision == "tf32" and device != "cuda":
            raise UserError("--precision tf32 is of CUDA devices; on a CPU choose float32 or bf16.")
        dataset = data.defaults(self.data)
        return replace(
            self,
            data=self.data if self.data in data.DATASETS else os.path.abspath(self.data),
            epochs=self.epochs or dataset.epochs,
            num_samples=self.num_samples or dataset.num_samples,
            device=device,
        )

    def execution(self, num_images: int) -> str | None:
        """Return how steps over so many training images run, ``compiled``, ``recorded`` or None.

        It depends on nothing else, so that a run that is resumed goes on as it began.
        """
        if self.compile != "auto":
            return "compiled" if self.compile == "on" else None
        steps = (self.epochs or 0) * self.steps_per_epoch(num_images)
        return "compiled" if steps >= _COMPILED_STEPS else "recorded"

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        values = asdict(self) | {"data_root": str(self.data_root), "splits": list(self.splits)}
        return {name: values[name] for name in asdict(self)}
