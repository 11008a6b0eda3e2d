r"""The flags of a run in the groups of ``--help``, with their defaults and their help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyro_vae.config.choices import AUTO, Count, Device, DirPath, OptionalCount, one_of


@dataclass(frozen=True)
class DataFlags:
    """Data set, splits and preprocessing.

    Args:
        data: Name of a data set, or path to your own data. digits (8x8, bundled with scikit-learn) and shapes (32x32,
            generated from five known factors) need no files. mnist, fashion-mnist, kmnist, emnist and svhn are
            downloaded into --data-root if they are missing; static-mnist, omniglot, caltech-silhouettes, cifar10,
            dsprites and celeba64 must already be there. A path leads to a folder of images (its subfolders are
            classes, or train, test and valid; otherwise images are split by their content), a file
            of arrays (.npy, .npz), a table (.csv, .parquet, .h5ad), or a folder written by Hugging Face's save_to_disk.
        image_size: Height and width, in pixels, to which your own images are cropped and resized. If None, they are
            left unchanged and must all have the same size.
        channels: Number of channels of your own images, 1 for gray and 3 for color. If None, it is 1 if all files are
            gray and 3 otherwise.
        skip_bad: Skip image files that cannot be used, with a warning for each, instead of stopping.
        data_root: Folder of the named data sets. Decoded images of your own folders are cached in its cache/.
        splits: Fractions of training, validation and test data, if your own data are not split already.
        binarize: How gray pixels become 0 or 1. dynamic samples training pixels from Bernoulli(gray) for every batch,
            and test pixels once; fixed samples all pixels once; threshold sets pixels with gray >= 128 to 1; none
            keeps the gray levels, and dequantizes them uniformly if the likelihood is a density; auto does what the
            likelihood requires.
        train_images: Number of training images to use, from the first on. If None, all are used.
        test_images: Number of test images to use, from the first on. If None, all are used.
        labels: Number of training images with a label, equally many for each class (--program m2).
    """

    data: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "digits"
    image_size: OptionalCount = None
    channels: Annotated[int | None, tyro.conf.arg(metavar="1|3")] = None
    skip_bad: bool = False
    data_root: DirPath = Path("data")
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    binarize: Annotated[str, one_of("binarize")] = AUTO
    train_images: OptionalCount = None
    test_images: OptionalCount = None
    labels: Count = 100


@dataclass(frozen=True)
class ModelFlags:
    """Program, distributions and networks.

    Args:
        program: vae; two-layer, with two layers of latents; gmvae, whose prior is a mixture of ten Gaussians with the
            class summed out; cvae, a model of images given their labels; m2, semi-supervised, with
            few labels (see --labels); autoencoder, the vae with --posterior point-mass and --prior flat; pixelcnn, an
            autoregressive model of binary pixels without latents; pixelvae, the vae with --likelihood pixelcnn; or
            path/to/file.py:factory, a program of your own, where factory(config, images) returns an object with
            model(x) and guide(x). That file is executed.
        prior: Prior p(z). flat is a constant instead of a density, so that log p(x) is undefined.
        posterior: Approximate posterior q(z|x). point-mass is a code without noise, as in an autoencoder, so that
            log p(x) is undefined.
        likelihood: Likelihood p(x|z). auto chooses bernoulli for named data sets of gray images and for binary
            pixels, logistic-mixture for your own gray and color images, gaussian for real numbers, and
            negative-binomial for counts. bernoulli and pixelcnn (each pixel given those before it) take binary
            pixels. With --binarize none, categorical and logistic-mixture are distributions over 256 levels (the
            latter models green given red, and blue given both), and gaussian (learned mean and scale),
            isotropic-gaussian (one scale for all pixels) and continuous-bernoulli are densities; cross-entropy is a
            loss and not a likelihood, so that log p(x) is undefined. poisson is an alternative for counts.
        net: Networks of the encoder and the decoder. linear has no hidden layer; mlp has two hidden tanh layers; relu
            and gated are mlp with other units; funnel is relu with the width halved in each layer closer to the code;
            conv has convolutions that halve the image twice, or more often from 64 pixels on; resnet is conv with
            residual blocks.
        depth: Number of hidden layers of --net mlp, relu, gated and funnel (2 if None), or number of residual blocks
            at each resolution of conv (0 if None) and resnet (2 if None).
        width: Number of channels of --net conv and resnet where the image is halved once (32 if None). It doubles at
            each further halving, up to 256.
        latent_dim: Number of latent units.
        hidden_dim: Number of units of a hidden layer. A PixelCNN has one channel per twelve units.
    """

    program: Annotated[str, tyro.conf.arg(metavar="NAME|FILE:FACTORY")] = "vae"
    prior: Annotated[str, one_of("prior")] = "standard"
    posterior: Annotated[str, one_of("posterior")] = "meanfield"
    likelihood: Annotated[str, one_of("likelihood")] = AUTO
    net: Annotated[str, one_of("net")] = "mlp"
    depth: OptionalCount = None
    width: OptionalCount = None
    latent_dim: Count = 50
    hidden_dim: Count = 200


@dataclass(frozen=True)
class ObjectiveFlags:
    """Training objective.

    Args:
        objective: Objective to maximize, in nats per image. The objectives are described in scripts/README.md.
        num_particles: Number of particles per image in training.
        beta: Weight of the rate (--objective beta) or of the total correlation (--objective beta-tcvae).
        warmup_epochs: Number of epochs in which beta rises linearly to its value (--objective beta or beta-tcvae).
        free_bits: Free nats per latent unit (--objective free-bits).
        mmd_weight: Nats per unit of the squared MMD between codes and prior (--objective wae-mmd).
    """

    objective: Annotated[str, one_of("objective")] = "elbo"
    num_particles: Count = 1
    beta: float = 1.0
    warmup_epochs: Count = 0
    free_bits: float = 0.1
    mmd_weight: float = 100.0


@dataclass(frozen=True)
class OptimizationFlags:
    """Optimizer, learning rate and stopping.

    Args:
        epochs: Number of passes over the training images. If None, it is 300 for digits and caltech-silhouettes, 30
            for celeba64, 10 for dsprites, and 100 for all other data.
        batch_size: Number of images per training step.
        optimizer: adam, or adamax, which divides by the largest recent gradient instead of the root mean square.
        learning_rate: Initial learning rate.
        schedule: Learning-rate schedule. constant; cosine, which decays to 0; or burda, with eight stages of
            increasing length (3^i parts), each with a learning rate 10^(-1/7) times that of the stage before.
        patience: Number of epochs without a better validation ELBO after which training stops and the best weights
            are restored. Epochs in the warm-up of beta do not count. 0 disables early stopping.
        ema: Decay per step of an exponential moving average of the weights, e.g. 0.999. Validation, scores and
            figures use the averaged weights; training continues with the others. 0 disables it.
        on_nonfinite: Response to a non-finite loss or gradient. stop ends the run; rollback returns to the
            last milestone with half the learning rate, up to three times.
    """

    epochs: OptionalCount = None
    batch_size: Count = 100
    optimizer: Annotated[str, one_of("optimizer")] = "adam"
    learning_rate: float = 3e-3
    schedule: Annotated[str, one_of("schedule")] = "cosine"
    patience: Count = 0
    ema: float = 0.0
    on_nonfinite: Annotated[str, one_of("on_nonfinite")] = "stop"


@dataclass(frozen=True)
class EvaluationFlags:
    """Scores of the test images.

    Args:
        num_samples: Number K of importance samples per image for log p(x). If None, it is 5000 for named data sets with
            images of 28x28 pixels, and 1000 for all other data.
    """

    num_samples: OptionalCount = None


@dataclass(frozen=True)
class RuntimeFlags:
    """Randomness, device and execution.

    Args:
        seed: Random seed for initial weights, order of the images, noise and evaluation.
        device: Device to run on. auto uses CUDA if it is available, and the CPU otherwise.
        compile: Execution of training steps. on compiles them, and scoring as well; auto compiles runs of 10,000
            steps or more, and replays recorded tensor operations in shorter runs; off runs the Pyro program at every
            step.
        precision: Precision of matrix products in training. float32; tf32, which requires CUDA; or bf16 (bfloat16).
            Log-densities are always in float32 or better.
        deterministic_shards: Number of parts in which a batch is computed, and added up in order, so that under
            torchrun weights and losses do not depend on the number of processes to the bit, if each has the same number
            of threads. It should divide --batch-size. If None, each process computes one part, which is faster; results
            agree up to rounding.
    """

    seed: int = 0
    device: Device = "auto"
    compile: Annotated[str, one_of("compile")] = "auto"
    precision: Annotated[str, one_of("precision")] = "float32"
    deterministic_shards: OptionalCount = None
