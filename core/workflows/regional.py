"""Regional comparison of a study: everything beside effect_sizes.csv, before and after the gate."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from core import anatomy, quality
from core.errors import InputError
from core.study import Cohort

REGIONAL_COLUMNS = ("cohort", "gated", *anatomy.REGIONAL_COLUMNS, "noise_floor")
CORRELATION_COLUMNS = ("cohort", "gated", "frobenius", "floor", "p_value", "n_regions", "n_real", "n_synthetic")
PAIR_COLUMNS = ("cohort", "gated", *anatomy.PAIR_COLUMNS)
ASYMMETRY_COLUMNS = ("cohort", "gated", *anatomy.ASYMMETRY_COLUMNS)
SLOPE_COLUMNS = ("cohort", "gated", *anatomy.SLOPE_COLUMNS)
EXCLUSION_COLUMNS = ("cohort", "gated", *anatomy.EXCLUSION_COLUMNS)
PERCENTILE_COLUMNS = ("cohort", *anatomy.NORM_COLUMNS)
TABLES = {
    "regional": REGIONAL_COLUMNS,
    "correlation": CORRELATION_COLUMNS,
    "correlation_pairs": PAIR_COLUMNS,
    "asymmetry": ASYMMETRY_COLUMNS,
    "slopes": SLOPE_COLUMNS,
    "exclusions": EXCLUSION_COLUMNS,
    "percentiles": PERCENTILE_COLUMNS,
}
TEXT_COLUMNS = ("region_a", "region_b", "term", "unit")
FLAG_COLUMNS = ("gated", "certain")


@dataclass(frozen=True)
class Side:
    """One cohort of a comparison: volumes, QC scores when known, and facts about its people."""

    volumes: pd.DataFrame
    qc: pd.DataFrame | None
    people: pd.DataFrame

    @property
    def participants(self) -> dict[str, str]:
        """Subject to participant, where the study's table says who it is."""
        return {str(k): str(v) for k, v in self.people["participant"].items() if v}

    def passing(self, threshold: float | None) -> Side:
        """Return the volumes whose eight scores reach the threshold; without scores, or threshold, all of them."""
        if threshold is None or self.qc is None:
            return self
        failing = quality.failing_cases(self.qc, threshold)["subject"].tolist()
        kept = self.volumes.drop(index=failing, errors="ignore")
        kept.attrs.update(self.volumes.attrs)
        return Side(kept, self.qc, self.people)


@dataclass(frozen=True)
class Comparison:
    """Rows of the regional tables of one cohort, by table name; what is missing, and what needs care, with reasons."""

    tables: dict[str, pd.DataFrame]
    gaps: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()


def people_of(cohort: Cohort) -> pd.DataFrame:
    """Return age, sex and participant of a cohort's cases, index ``subject``."""
    rows = [{"subject": c.case_id, "participant": c.participant, "age": c.age, "sex": c.sex} for c in cohort.cases]
    table = pd.DataFrame(rows, columns=["subject", "participant", "age", "sex"]).set_index("subject")
    return table.assign(age=pd.to_numeric(table["age"], errors="coerce"))


def compare(real: Side, synthetic: Side, *, threshold: float | None, engine: str, seed: int) -> Comparison:
    """Compare one synthetic cohort with the real one, with all volumes and with those that pass the gate.

    Parameters
    ----------
    real, synthetic : Side
        Volumes of one engine.
    threshold : float or None
        Lowest QC score that passes, None when there is no gate: then there are no rows with ``gated`` True.
    engine : str
        Engine whose noise floor stands beside each difference.
    seed : int
        Of bootstrap and permutations.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        Too few volumes, unusable tables: then there is no effect size at all.
    """
    before = _rows(real, synthetic, engine, seed)
    sets = [(before, False)]
    gaps = list(before.gaps)
    if threshold is not None:
        sides = real.passing(threshold), synthetic.passing(threshold)
        same = all(len(a.volumes) == len(b.volumes) for a, b in zip(sides, (real, synthetic), strict=True))
        try:
            after = before if same else _rows(*sides, engine, seed)
        except InputError as error:
            gaps.append(("anatomy after the gate", _too_few_pass(*sides, len(synthetic.volumes)) or str(error)))
        else:
            sets.append((after, True))
            gaps += [] if same else [(f"{what} after the gate", reason) for what, reason in after.gaps]
    tables = {
        name: pd.concat([rows.tables[name].assign(gated=gated) for rows, gated in sets if name in rows.tables])
        for name in TABLES
        if any(name in rows.tables for rows, _ in sets)
    }
    tables["percentiles"] = anatomy.normative_percentiles(real.volumes, synthetic.volumes)
    return Comparison(tables, tuple(gaps), before.warnings)


def _too_few_pass(real: Side, synthetic: Side, of: int) -> str:
    """Say that the gate left too few volumes, which is a result and no fault of the data; "" when it did not."""
    left = len(synthetic.volumes)
    if left >= anatomy.MIN_CASES or len(real.volumes) < anatomy.MIN_CASES:
        return ""
    return (
        f"{left or 'none'} of the {of} synthetic volumes passed the gate, so their anatomy cannot be judged (it takes "
        f"{anatomy.MIN_CASES}). The numbers over all volumes stand on segmentations that are not reliable."
    )


def norms_of_real(real: Side) -> Comparison:
    """Return where each real case stands among the other real cases."""
    return Comparison({"percentiles": anatomy.normative_percentiles(real.volumes, real.volumes)})


def _rows(real: Side, synthetic: Side, engine: str, seed: int) -> Comparison:
    """Compute all tables for one pair of cohorts; what fails beside the effect sizes is a gap."""
    pair, who, whose = (real.volumes, synthetic.volumes), real.participants, synthetic.participants
    effects = anatomy.compare_regions(*pair, seed=seed, participants=who, synthetic_participants=whose)
    effects["noise_floor"] = anatomy.noise_in_d(effects, anatomy.read_noise_floor(engine))
    warnings = [("regional volumes", note) for note in effects.attrs["notes"]]
    gaps = []
    tables = {"regional": effects, "exclusions": anatomy.exclusions(effects)}
    try:
        difference = anatomy.correlation_difference(*pair, seed=seed, participants=who)
    except InputError as error:
        gaps.append(("regional correlation", str(error)))
    else:
        summary = {name: getattr(difference, name) for name in CORRELATION_COLUMNS[2:]}
        tables |= {"correlation": pd.DataFrame([summary]), "correlation_pairs": difference.pairs}
    tables["asymmetry"] = anatomy.compare_asymmetry(*pair, seed=seed, participants=who, synthetic_participants=whose)
    if real.people["age"].notna().any():
        known = synthetic.people["age"].notna().any()  # most generators give no age: then the real slopes stand alone
        facts = (synthetic.volumes, synthetic.people) if known else (None, None)
        tables["slopes"] = anatomy.compare_slopes(real.volumes, real.people, *facts)
        notes = tables["slopes"].attrs["notes"]
        warnings += [("age and sex slopes", n) for n in notes if known or not n.startswith("synthetic")]
    return Comparison(tables, tuple(gaps), tuple(warnings))


def stack(comparisons: Mapping[str, Comparison]) -> dict[str, pd.DataFrame]:
    """Join the rows of all cohorts into the tables to write, by table name."""
    result = {}
    for name, columns in TABLES.items():
        parts = [c.tables[name].assign(cohort=cohort) for cohort, c in comparisons.items() if name in c.tables]
        parts = [part for part in parts if len(part)]
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))
        result[name] = table[list(columns)]
    return result


# -- what the pages ask for --------------------------------------------------------------------------------------------


def at_gate(table: pd.DataFrame, gated: bool) -> pd.DataFrame:
    """Return the rows of a regional table before or after the gate, without the column that says so."""
    if table.empty:
        return table.drop(columns="gated", errors="ignore")
    return table[table["gated"] == gated].drop(columns="gated").reset_index(drop=True)


def judged(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Return a regional table with the verdicts of another margin."""
    return table.assign(verdict=anatomy.verdicts(table, margin)) if len(table) else table


def summary(rows: pd.DataFrame) -> tuple[str, str, str, str]:
    """Return how many regions of a cohort differ, are equivalent, are undetermined, and the largest effect."""
    known = rows.dropna(subset=["cohens_d"])
    if known.empty:
        return "–", "–", "–", "no region could be compared"
    counts = known["verdict"].value_counts()
    largest = known.sort_values("cohens_d", key=abs, ascending=False, kind="stable").iloc[0]
    effect = f"{largest['cohens_d']:+.2f} [{largest['ci_low']:+.2f}, {largest['ci_high']:+.2f}]"
    return (
        f"{counts.get('different', 0)} of {len(known)}",
        str(counts.get("equivalent", 0)),
        str(counts.get("undetermined", 0)),
        f"{anatomy.in_words(largest['region'])}: {effect}",
    )


def effect_words(effect: Mapping[Hashable, Any]) -> str:
    """Say which side has the larger region, as the sign of d does (positive: the real one), with the interval."""
    side = "real" if effect["cohens_d"] > 0 else "synthetic"
    return (
        f"{anatomy.in_words(effect['region'])} larger in {side} brains (d = {effect['cohens_d']:+.2f} "
        f"[{effect['ci_low']:+.2f}, {effect['ci_high']:+.2f}])"
    )


def noise_note(table: pd.DataFrame) -> str:
    """Say in words how the differences of a regional table stand to the engine's noise; "" without rows."""
    known = table.dropna(subset=["noise_floor", "cohens_d"])
    if table.empty:
        return ""
    if known.empty:
        return "The noise floor of this segmentation engine is not known: a small d may be the engine, not anatomy."
    inside = known[known["cohens_d"].abs() <= known["noise_floor"]]
    worst = known.sort_values("noise_floor", ascending=False).iloc[0]
    return (
        f"{len(inside)} of {len(known)} differences lie within the engine's own noise (the same anatomy rendered "
        f"again); largest in {anatomy.in_words(worst['region'])}: {worst['noise_floor']:.2f} in units of d."
    )


def what_if_gate(qc: Mapping[str, pd.DataFrame], real: str, threshold: float, fail_rate: float) -> pd.DataFrame:
    """Return the gate's table as it would be at another threshold.

    Parameters
    ----------
    qc : mapping of str to DataFrame
        QC scores by cohort name.
    real : str
        Name of the real cohort.
    threshold, fail_rate : float
        Lowest score that passes; share of failing volumes that still counts as reliable.
    """
    others = {name: table for name, table in qc.items() if name != real and len(table)}
    return quality.quality_table(qc[real], others, fail_rate=fail_rate, threshold=threshold)


def asymmetry_tables(volumes: pd.DataFrame, cohorts: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the asymmetry index of every case of some cohorts; ``volumes`` is the study's volume table."""
    tables = {}
    for name in cohorts:
        table = volumes[volumes["cohort"] == name].drop(columns="cohort").set_index("subject")
        if len(table):
            tables[name] = anatomy.asymmetry_index(table.dropna(axis=1, how="all"))
    return tables


def asymmetry_bars(table: pd.DataFrame) -> pd.DataFrame:
    """Return an asymmetry table with the ends of mean ± SD over people, ``real_low`` to ``synthetic_high``."""
    ends: dict[str, pd.Series] = {}
    for side in ("real", "synthetic"):
        ends |= {f"{side}_low": table[f"mean_{side}"] - table[f"sd_{side}"]}
        ends |= {f"{side}_high": table[f"mean_{side}"] + table[f"sd_{side}"]}
    return table.assign(**ends)


def most_extreme(percentiles: pd.DataFrame, cohort: str, region: str, n: int = 3) -> pd.DataFrame:
    """Return the cases of a cohort whose volume of a region is furthest from the real people's, furthest first."""
    rows = percentiles[(percentiles["cohort"] == cohort) & (percentiles["region"] == region)].dropna(subset=["z"])
    return rows.sort_values("z", key=lambda z: -z.abs(), kind="stable").head(n).reset_index(drop=True)


def difference_matrix(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the differences of one cohort's correlations as a symmetric table in the order of the paper's Table 3."""
    order = [r for r in anatomy.regions()["region"] if r in set(pairs["region_a"]) | set(pairs["region_b"])]
    place = {region: i for i, region in enumerate(order)}
    matrix = np.zeros((len(order), len(order)))
    a, b = pairs["region_a"].map(place).to_numpy(), pairs["region_b"].map(place).to_numpy()
    matrix[a, b] = matrix[b, a] = pairs["difference"].to_numpy()
    return pd.DataFrame(matrix, index=order, columns=order)


def label_values(effects: pd.DataFrame) -> dict[int, float]:
    """Return d by FreeSurfer label for painting on the atlas: both sides of a region get its value."""
    d = effects.set_index("region")["cohens_d"].dropna()
    table = anatomy.structures()
    table = table[table["region"].isin(d.index)]
    return {int(k): float(d[region]) for k, region in zip(table["id"], table["region"], strict=True)}
