"""Results -> plotly figures; computes nothing scientific.

Backgrounds are transparent and no font colour is set, so that a figure follows the theme of the page it is on.
Every cohort keeps one colour: pages pass ``colours = cohort_colours(all cohorts of the study)`` to each figure;
without it the cohorts of that figure are coloured by position.
"""

from core.plots.anatomy import correlation_matrix, effect_planes, paired_intervals
from core.plots.cohorts import (
    age_sex_histogram,
    effect_cells,
    effect_colours,
    effect_heatmap,
    qc_scatter,
    region_distribution,
)
from core.plots.readings import likert_bars
from core.plots.scores import joint_map, metric_dots, rank_bump, score_curve
from core.plots.static import picture
from core.plots.style import CLICKS, cases_of, cohort_colours, mark_cases, message_figure
from core.plots.training import loss_curves
from core.plots.volumes import triplanar

__all__ = [
    "CLICKS",
    "age_sex_histogram",
    "cases_of",
    "cohort_colours",
    "correlation_matrix",
    "effect_cells",
    "effect_colours",
    "effect_heatmap",
    "effect_planes",
    "joint_map",
    "likert_bars",
    "loss_curves",
    "mark_cases",
    "message_figure",
    "metric_dots",
    "paired_intervals",
    "picture",
    "qc_scatter",
    "rank_bump",
    "region_distribution",
    "score_curve",
    "triplanar",
]
