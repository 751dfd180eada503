"""Regional volumes: label table, SynthSeg's CSV, TIV adjustment, effect sizes and what stands beside them.

`tables` reads and names; `effects` compares the regions of two cohorts as Wu et al. (MICCAI 2024, arXiv:2409.08463) do,
with intervals, tests and verdicts; `structure` compares how regions go together (correlation, left against right, age
and sex); `norms` judges single cases, large effects and the noise of a segmentation engine.
"""

from core.anatomy.effects import (
    EFFECT_COLUMNS,
    MIN_CASES,
    MIN_CASES_FOR_VERDICT,
    REGIONAL_COLUMNS,
    compare_regions,
    effect_sizes,
    verdicts,
)
from core.anatomy.norms import (
    EXCLUSION_COLUMNS,
    LARGE_EFFECT,
    NORM_COLUMNS,
    count_effects,
    exclusions,
    noise_floor,
    noise_in_d,
    normative_percentiles,
    read_noise_floor,
)
from core.anatomy.statistics import adjust_for_tiv, cohens_d, hedges_g
from core.anatomy.structure import (
    ASYMMETRY_COLUMNS,
    PAIR_COLUMNS,
    SLOPE_COLUMNS,
    CorrelationDifference,
    asymmetry_index,
    compare_asymmetry,
    compare_slopes,
    correlation_difference,
)
from core.anatomy.tables import (
    DATA,
    TIV,
    atlas_labels,
    check_volumes,
    in_words,
    paper_table,
    read_volumes,
    regional_volumes,
    regions,
    structures,
    volume_columns,
    write_volumes,
)

__all__ = [
    "ASYMMETRY_COLUMNS",
    "DATA",
    "EFFECT_COLUMNS",
    "EXCLUSION_COLUMNS",
    "LARGE_EFFECT",
    "MIN_CASES",
    "MIN_CASES_FOR_VERDICT",
    "NORM_COLUMNS",
    "PAIR_COLUMNS",
    "REGIONAL_COLUMNS",
    "SLOPE_COLUMNS",
    "TIV",
    "CorrelationDifference",
    "adjust_for_tiv",
    "asymmetry_index",
    "atlas_labels",
    "check_volumes",
    "cohens_d",
    "compare_asymmetry",
    "compare_regions",
    "compare_slopes",
    "correlation_difference",
    "count_effects",
    "effect_sizes",
    "exclusions",
    "hedges_g",
    "in_words",
    "noise_floor",
    "noise_in_d",
    "normative_percentiles",
    "paper_table",
    "read_noise_floor",
    "read_volumes",
    "regional_volumes",
    "regions",
    "structures",
    "verdicts",
    "volume_columns",
    "write_volumes",
]
