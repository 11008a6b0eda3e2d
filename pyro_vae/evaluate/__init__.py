"""Evaluate programs: bounds on log p(x) with diagnostics, posteriors, latent units and learned features."""

from pyro_vae.evaluate.annealing.ais import AISConfig, ais, bdmc
from pyro_vae.evaluate.annealing.imputation import Imputation, impute
from pyro_vae.evaluate.annealing.rate_distortion import CURVE_TEMPERATURES, RateDistortion
from pyro_vae.evaluate.annealing.results import AISResult, BDMCResult
from pyro_vae.evaluate.features.finetune import NoAnalyticMeanError, finetune
from pyro_vae.evaluate.features.frechet import FeatureNetwork, frechet_distance, train_feature_network
from pyro_vae.evaluate.features.kernel_distance import KernelDistance, kernel_distance
from pyro_vae.evaluate.features.probe import (
    Accuracy,
    labeled_subsets,
    logistic,
    mean_accuracy,
    principal_components,
    probe,
)
from pyro_vae.evaluate.latents.decoding import (
    decode_average,
    decode_mean,
    decode_mean_or_sample,
    decode_sample,
    inpaint_exact,
    sample_posterior,
    sample_prior,
)
from pyro_vae.evaluate.latents.disentanglement import Disentanglement, disentanglement_scores
from pyro_vae.evaluate.latents.moments import (
    Moments,
    active_units,
    analytic_mean,
    posterior_means,
    posterior_moments,
)
from pyro_vae.evaluate.latents.traversals import decode_units, interpolate, most_visible_units, traverse
from pyro_vae.evaluate.likelihood.bounds import iwae, particle_counts, standard_error
from pyro_vae.evaluate.likelihood.diagnostics import (
    describe_khat,
    khat_threshold,
    paired_differences,
    psis,
)
from pyro_vae.evaluate.likelihood.jackknife import jackknife
from pyro_vae.evaluate.likelihood.outliers import OutlierPValues, outlier_p_values
from pyro_vae.evaluate.likelihood.scores import Scores, scores_from_terms
from pyro_vae.evaluate.likelihood.scoring import score
from pyro_vae.evaluate.likelihood.summary import summarize
from pyro_vae.evaluate.likelihood.weights import LogWeightTerms, log_weight_terms, log_weights
from pyro_vae.evaluate.posterior.calibration import sbc_ranks
from pyro_vae.evaluate.posterior.classes import discrete_values, posterior_probs
from pyro_vae.evaluate.posterior.local import local_log_weights, per_image_elbos
from pyro_vae.evaluate.posterior.surgery import ELBOSurgery, elbo_surgery, split_rate
from pyro_vae.evaluate.proposals.adaptive import PROPOSALS, AdaptedWeights, adapted_log_weights

__all__ = [
    "CURVE_TEMPERATURES",
    "PROPOSALS",
    "AISConfig",
    "AISResult",
    "Accuracy",
    "AdaptedWeights",
    "BDMCResult",
    "Disentanglement",
    "ELBOSurgery",
    "FeatureNetwork",
    "Imputation",
    "KernelDistance",
    "LogWeightTerms",
    "Moments",
    "NoAnalyticMeanError",
    "OutlierPValues",
    "RateDistortion",
    "Scores",
    "active_units",
    "adapted_log_weights",
    "ais",
    "analytic_mean",
    "bdmc",
    "decode_average",
    "decode_mean",
    "decode_mean_or_sample",
    "decode_sample",
    "decode_units",
    "describe_khat",
    "discrete_values",
    "disentanglement_scores",
    "elbo_surgery",
    "finetune",
    "frechet_distance",
    "impute",
    "inpaint_exact",
    "interpolate",
    "iwae",
    "jackknife",
    "kernel_distance",
    "khat_threshold",
    "labeled_subsets",
    "local_log_weights",
    "log_weight_terms",
    "log_weights",
    "logistic",
    "mean_accuracy",
    "most_visible_units",
    "outlier_p_values",
    "paired_differences",
    "particle_counts",
    "per_image_elbos",
    "posterior_means",
    "posterior_moments",
    "posterior_probs",
    "principal_components",
    "probe",
    "psis",
    "sample_posterior",
    "sample_prior",
    "sbc_ranks",
    "score",
    "scores_from_terms",
    "split_rate",
    "standard_error",
    "summarize",
    "train_feature_network",
    "traverse",
]
