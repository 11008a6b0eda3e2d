"""How good a program is: importance weights, bounds on log p(x), their diagnostics, and its latents."""

from pyro_vae.evaluate.annealing.ais import Annealed, Annealing, Bidirectional, ais, bdmc
from pyro_vae.evaluate.annealing.imputation import Imputed, impute
from pyro_vae.evaluate.features.finetune import NoMeanError, finetune
from pyro_vae.evaluate.features.frechet import Features, frechet_distance, train_features
from pyro_vae.evaluate.features.probe import (
    Accuracy,
    labelled_subsets,
    logistic,
    mean_accuracy,
    principal_components,
    probe,
)
from pyro_vae.evaluate.latents.decoding import (
    averaged_images,
    completed_images,
    drawn_images,
    mean_images,
    posterior_latents,
    prior_latents,
    shown_images,
)
from pyro_vae.evaluate.latents.disentanglement import Disentanglement, disentanglement
from pyro_vae.evaluate.latents.moments import (
    Moments,
    active_units,
    closed_mean,
    posterior_means,
    posterior_moments,
)
from pyro_vae.evaluate.latents.traversals import decoded, interpolated, most_visible, traversed
from pyro_vae.evaluate.likelihood.bounds import iwae, ladder, standard_error
from pyro_vae.evaluate.likelihood.diagnostics import (
    good_khat,
    paired_differences,
    psis,
    verdict,
)
from pyro_vae.evaluate.likelihood.jackknife import jackknife
from pyro_vae.evaluate.likelihood.outliers import OutlierPValues, outlier_p_values
from pyro_vae.evaluate.likelihood.scores import Scores, reduce, score
from pyro_vae.evaluate.likelihood.summary import summary
from pyro_vae.evaluate.likelihood.weights import Parts, log_weight_parts, log_weights
from pyro_vae.evaluate.posterior.calibration import calibration_ranks
from pyro_vae.evaluate.posterior.classes import discrete_values, posterior_probs
from pyro_vae.evaluate.posterior.local import local_elbos
from pyro_vae.evaluate.posterior.surgery import Surgery, surgery

__all__ = [
    "Accuracy",
    "Annealed",
    "Annealing",
    "Bidirectional",
    "Disentanglement",
    "Features",
    "Imputed",
    "Moments",
    "NoMeanError",
    "OutlierPValues",
    "Parts",
    "Scores",
    "Surgery",
    "active_units",
    "ais",
    "averaged_images",
    "bdmc",
    "calibration_ranks",
    "closed_mean",
    "completed_images",
    "decoded",
    "discrete_values",
    "disentanglement",
    "drawn_images",
    "finetune",
    "frechet_distance",
    "good_khat",
    "impute",
    "interpolated",
    "iwae",
    "jackknife",
    "labelled_subsets",
    "ladder",
    "local_elbos",
    "log_weight_parts",
    "log_weights",
    "logistic",
    "mean_accuracy",
    "mean_images",
    "most_visible",
    "outlier_p_values",
    "paired_differences",
    "posterior_latents",
    "posterior_means",
    "posterior_moments",
    "posterior_probs",
    "principal_components",
    "prior_latents",
    "probe",
    "psis",
    "reduce",
    "score",
    "shown_images",
    "standard_error",
    "summary",
    "surgery",
    "train_features",
    "traversed",
    "verdict",
]
