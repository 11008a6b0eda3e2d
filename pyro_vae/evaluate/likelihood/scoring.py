r"""Score any number of images of a program, batch by batch."""

from __future__ import annotations

from dataclasses import replace

from tqdm import tqdm

from pyro_vae.errors import UserError, check_count, is_out_of_memory
from pyro_vae.evaluate.likelihood.scores import Scores, scores_from_terms
from pyro_vae.evaluate.likelihood.weights import log_weight_terms
from pyro_vae.evaluate.proposals.adaptive import PROPOSALS, adapted_log_weights
from pyro_vae.trace import Batch, CompiledBackend, Data, EagerBackend, Program, derive_seed


def score(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    batch_size: int | None = None,
    chunk: int | None = None,
    seed: int | None = None,
    compile: bool = False,
    backend: EagerBackend | None = None,
    proposal: str = "guide",
    progress: bool = False,
) -> Scores:
    """Score images: ELBO, IWAE bounds, log p(x), and diagnostics of the importance weights.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        x: Images (N, ...), a tuple of positional arguments, or a `Batch`.
        num_samples: Number of weights per image, K.
        batch_size: Images scored at once. None scores all of them, and holds K x N weights in memory. Samples are drawn
            batch by batch: another batch size gives other samples of the same distribution, hence other estimates.
        chunk: Particles scored at once, as in `log_weight_terms`.
        seed: Random seed. With `batch_size`, each batch uses a seed derived from it. None uses fresh entropy.
        compile: Evaluate the program with compiled graphs, compiled once for all batches of the same size.
        backend: Backend that evaluates the program, which overrides `compile`. A `CompiledBackend` that is passed to
            several calls compiles once.
        proposal: Proposal of the weights that estimate log p(x): ``"guide"``, ``"adaptive"``, ``"laplace"`` or
            ``"local"``. The last three are fitted to the posterior of each image, at a higher cost; see
            `adapted_log_weights`. The bounds are those of the guide either way, and so is the estimate where a proposal
            cannot be adapted, e.g. if no latent is continuous; `Scores.not_adapted` is then the reason.
        progress: Show a progress bar over batches, if on a terminal.

    Raises:
        ValueError: `batch_size` is below 1, or as `log_weight_terms`.

    Example:
        With the exact posterior as the guide, every weight is p(x) = N(x; 0, 2 I), here 1 / (4 pi):

        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> print(score(model, guide, torch.zeros(3, 2), num_samples=100, seed=0))
        log p(x) -2.53 +- 0.00 nats (ELBO -2.53, K = 100, 3 images); no k-hat
    """
    if proposal not in PROPOSALS:
        raise UserError(f"proposal is {proposal!r}; choose one of {', '.join(PROPOSALS)}.")
    backend = backend or (CompiledBackend() if compile else EagerBackend())
    x = Batch.of(x)
    if batch_size is None or len(x) == 0:  # an empty batch raises below
        return _score_batch(model, guide, x, num_samples, chunk, seed, backend, proposal)
    check_count("batch_size", batch_size, 1)
    bar = tqdm(
        x.split(batch_size),
        desc="log p(x)",
        unit="batch",
        disable=None if progress else True,
        leave=False,
    )
    return Scores.concatenate(
        _score_batch(model, guide, batch, num_samples, chunk, derive_seed(seed, "batch", index), backend, proposal)
        for index, batch in enumerate(bar)
    )


def _score_batch(
    model: Program,
    guide: Program,
    batch: Batch,
    num_samples: int,
    chunk: int | None,
    seed: int | None,
    backend: EagerBackend,
    proposal: str,
) -> Scores:
    """Score the images of one batch."""
    terms = log_weight_terms(model, guide, batch, num_samples, chunk=chunk, seed=seed, backend=backend)
    scores = scores_from_terms(terms)
    if proposal == "guide" or terms.reason:
        return scores
    compiled = isinstance(backend, CompiledBackend)
    try:
        weights = adapted_log_weights(model, guide, batch, num_samples, proposal=proposal, seed=seed, compiled=compiled)
    except UserError as error:  # the program has no density where a proposal would be adapted
        return replace(scores, proposal=proposal, not_adapted=str(error))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return replace(scores, proposal=proposal, not_adapted="memory ran out while a proposal was fitted")
    return scores.with_adapted(proposal, weights)
