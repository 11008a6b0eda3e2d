r"""The table of the main scores of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyro_vae.evaluate import Scores, describe_khat
from pyro_vae.instruments.comparable import with_other_images
from pyro_vae.report.tables import format_number, format_table, format_with_error
from pyro_vae.text import printable


def scores_table(summaries: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Scores]) -> str:
    """Format the main scores of one or more runs, given summary.json and the scores by the name of the run."""
    coded = any(summary.get("bits_per_dim") is not None for summary in summaries.values())
    annealed = any("annealing" in summary for summary in summaries.values())
    lossy = any(run_scores.reason for run_scores in scores.values())
    widths = {"": -24, "ELBO": 10, "IWAE_5": 10, "IWAE_50": 10, "log p(x)": 18, "PSIS": 10, "JVI-2": 10}
    widths |= {"bits/dim": 10} if coded else {}
    widths |= {"AIS": 10, "gap": 16} if annealed else {}
    widths |= {"distortion": 12, "sq. error": 11} if lossy else {}
    widths |= {"   k-hat": -1}
    rows = []
    for name, summary in summaries.items():
        annealing = summary.get("annealing", {})
        cells = {
            "": printable(name)[-23:],
            "ELBO": format_number(summary["elbo"]),
            "IWAE_5": format_number(summary["iwae"].get("5")),
            "IWAE_50": format_number(summary["iwae"].get("50")),
            "log p(x)": format_with_error(summary["log_likelihood"], summary["log_likelihood_se"]),
            "PSIS": format_number(summary["psis"]),
            "JVI-2": format_number(summary["jvi2"]),
            "bits/dim": format_number(summary.get("bits_per_dim"), ".3f"),
            "AIS": format_number(annealing.get("log_likelihood")),
            "gap": format_with_error(annealing.get("gap"), annealing.get("gap_se")),
            "distortion": format_number(summary.get("distortion")),
            "sq. error": format_number(summary.get("squared_error")),
            "   k-hat": "   " + (scores[name].reason or describe_khat(scores[name].khat, scores[name].num_samples)),
        }
        rows.append([cells[head] for head in widths])
    lines = format_table(list(widths.items()), rows)
    lines.append("nats per image; +- 1 s.e. over images; log p(x) is a lower bound in expectation, from K samples")
    if len({summary.get("density") for summary in summaries.values()}) > 1:
        dense = ", ".join(printable(name) for name, summary in summaries.items() if summary.get("density"))
        lines.append(f"{dense}: nats of a density, not comparable with nats of a probability; compare bits/dim")
    if others := with_other_images(summaries):
        names = ", ".join(map(printable, others))
        lines.append(f"{names}: other test images, so that nats are not comparable with those of the first run")
    lines += _proposals(scores)
    if annealed:
        lines.append("AIS: annealed importance sampling; gap: upper minus lower bound on simulated images")
    return "\n".join(lines)


def _proposals(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Yield lines on the proposals that were requested instead of the guide."""
    if adapted := [run_scores for run_scores in scores.values() if run_scores.adapted.any()]:
        cost = sum(run_scores.evaluations.mean() for run_scores in adapted) / len(adapted)
        yield (
            f"log p(x), PSIS, JVI-2, k-hat: proposals fitted to each image, {cost:,.0f} density evaluations on average"
        )
    for name, run_scores in scores.items():
        if run_scores.not_adapted:
            yield f"{printable(name)}: the guide is the proposal: {run_scores.not_adapted}"
