r"""One or several fits with different seeds: training in their run folders, scores, and figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from pyro_vae import parallel
from pyro_vae.config import Config
from pyro_vae.config.fields_read import set_model_flags
from pyro_vae.data import DATASETS, Observed
from pyro_vae.evaluate import Scores
from pyro_vae.infer import Epoch, Fit, FitMany, rehearse_last_batch
from pyro_vae.instruments.fitted import draw_fit, score_fit
from pyro_vae.instruments.scores import rehearse
from pyro_vae.runs import Run, RunFolder, check_flags_read, fit_in_folder, fit_many_in_folders, make_fit, prepare
from pyro_vae.trace import Batch, check_support


class Fits:
    """Fits of a program.

    Args:
        configs: Configuration of each fit by its seed.
        folders: Run folder of each fit by its seed; there may be more.
        images: Data of all fits.
        together: Whether to compute their steps as one batched graph; a single fit needs no graph for several.

    Attributes:
        errors: Errors of the fits that failed while others continued, by seed.
    """

    def __init__(
        self, configs: Mapping[int, Config], folders: Mapping[int, RunFolder], images: Observed, *, together: bool
    ) -> None:
        self.errors: Mapping[int, Exception] = {}
        self._configs, self._folders, self._images, self._together = configs, folders, images, together
        self._runs: dict[int, Run] = {}
        self._fit: Fit | FitMany | None = None
        self._fits: Mapping[int, Fit] = {}

    def prepare(self) -> None:
        """Build programs and fits. Their errors, and those of the evaluation, are raised before training.

        The weights of a single fit are drawn from the global generators, and those of several from their seeds.
        """
        first = next(iter(self._configs))
        if self._together:
            many = FitMany(self._make, self._configs)
            self._fit, self._fits = many, many.fits
        else:
            self._fit = self._make(first)
            self._fits = {first: self._fit}
        batch_size = self._configs[first].batch_size
        rehearse_last_batch(self._fits[first], len(self._images.pixels.train), batch_size)

    @property
    def description(self) -> str:
        """Description of your own data and how they are observed, or an empty string for a named data set."""
        run = next(iter(self._runs.values()))
        if run.config.data in DATASETS:
            return ""
        binarized = "" if run.config.binarize == "none" else f", binarized ({run.config.binarize})"
        return f"{run.images.pixels}; --likelihood {run.config.likelihood}{binarized}"

    def train(self, **options: Any) -> None:
        """Train in the run folders with a progress bar; see `fit_in_folder` for the options."""
        epochs: Iterable[Sequence[Epoch]]
        configs = {seed: run.config for seed, run in self._runs.items()}  # with what is left to the data filled in
        ((first, settings), *_) = configs.items()
        if isinstance(self._fit, FitMany):
            by_seed = fit_many_in_folders(self._fit, self._folders, configs, **options)
            epochs = (list(members.values()) for members in by_seed)
        else:
            assert self._fit is not None
            epochs = ([epoch] for epoch in fit_in_folder(self._fit, self._folders[first], settings, **options))
        with tqdm(total=settings.epochs, desc="fit", unit="epoch", disable=None, leave=False) as bar:
            for members in epochs:
                bar.update(members[0].index + 1 - bar.n)
                bar.set_postfix_str(_validation(members))
        if isinstance(self._fit, FitMany):
            self.errors = self._fit.errors

    def score(self) -> dict[int, tuple[Scores, dict[str, Any]]]:
        """Score the fits that have succeeded, and write and return their scores and summaries by seed."""
        scored = {}
        for seed in self._succeeded():
            params = self._fits[seed].svi.optim.params.values()
            with self._fits[seed].scope():
                scored[seed] = score_fit(self._runs[seed], self._folders[seed], sum(p.numel() for p in params))
        return scored

    def draw(self, scores: Mapping[int, Scores]) -> None:
        """Draw the figures of the fits that have succeeded; errors are kept in their folders."""
        for seed in self._succeeded():
            with self._fits[seed].scope():
                parallel.on_first(partial(draw_fit, self._runs[seed], self._folders[seed], scores[seed]))

    def _succeeded(self) -> list[int]:
        return [seed for seed in self._runs if seed not in self.errors]

    def _make(self, seed: int) -> Fit:
        settings, first = self._configs[seed], not self._runs
        run = self._runs[seed] = prepare(settings, self._images)
        if first:
            check_flags_read(settings, self._images, set_model_flags(settings))
            _check(run)
        return make_fit(run)


def _check(run: Run) -> None:
    """Report errors of the program and its evaluation before training."""
    test = run.observed("test")
    check_support(run.program.model, run.program.guide, Batch.of(test)[:100])
    rehearse(run.program, test, density=run.density)


def _validation(members: Sequence[Epoch]) -> str:
    """Return the mean over fits of their validation, for the progress bar."""
    elbos = [epoch.valid_elbo for epoch in members if epoch.valid_elbo is not None]
    distortions = [epoch.valid_distortion for epoch in members if epoch.valid_distortion is not None]
    name, values = ("ELBO", elbos) if elbos else ("distortion", distortions)
    return f"validation {name} {statistics.fmean(values):.2f} nats"
