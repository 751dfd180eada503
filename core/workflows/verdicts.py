"""The verdict on each synthetic cohort: one sentence, and the five reasons it stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from core.anatomy import LARGE_EFFECT
from core.encoders import label_named
from core.metrics import METRICS
from core.study import Cohort, Study
from core.workflows.comparisons import reaches_floor, wilson_interval
from core.workflows.judging import by_weight, cohort_verdicts, judge_copies
from core.workflows.ranking import rank_scores
from core.workflows.results import IMAGE, Results, qc_of

State = Literal["good", "bad", "open"]
TOPICS = ("gate", "anatomy", "similarity", "diversity", "copies")
NAMED = 3  # regions named in a reason
MOST = 0.5  # pass rate below which, by its whole interval, most volumes cannot be segmented
UNJUDGED = "not judged yet"
ODD = 0.05  # share of images unlike the real ones that is worth a word, when its whole interval is above
COLLAPSED = 0.2  # SD of regional volumes, in parts of the real one, below which a cohort is nearly one brain
ANSWERS = (
    "Graded by what is measured. Not plausible: more volumes fail the gate than it allows, and by the 95 % interval "
    "fewer than half pass. Plausible in part: more fail than it allows, but half may pass. Undecided: the interval of "
    "the pass rate holds what the gate allows, or most regions are undetermined at this N. Plausible but for some "
    f"regions: the gate is passed, but regions differ (q < 0.05) by |d| > {LARGE_EFFECT:g}; not plausible in them when "
    "they are most. Plausible with small differences: they differ by less. Plausible: passes the gate, and no region "
    f"is shown to differ. Nearly one brain: volumes of regions vary by less than {COLLAPSED:g} of the real variation. "
    "May hold copies: the copy check finds them, whatever else is measured."
)
MEANINGS = {
    "gate": "Pass rate ↑, share of volumes, higher is better: all eight quality scores of a segmentation reach the "
    "threshold. The cohort fails when more volumes fail than the gate allows. 95 % Wilson interval, N volumes judged.",
    "anatomy": "Cohen's d, in standard deviations, 0 is best: volumes of a region in real against synthetic brains of "
    "one head size; positive: the real region is larger. Different: q < 0.05; equivalent: the 90 % interval lies "
    "within ±0.2; else undetermined.",
    "similarity": "Fréchet distance ↓, no unit, lower is better: how far apart the cohorts lie in mean and covariance "
    "of what an encoder sees. 95 % interval. Floor: real against real at the same N, what a perfect generator scores.",
    "diversity": "MS-SSIM, 0 to 1, best where it equals the real value: how alike two brains of one cohort are. Above "
    "the real value the generator lacks variety. Spread: median over the regions of SD synthetic / SD real, 1 is best.",
    "copies": "Share of synthetic volumes nearer to a training person than to a held-out one, 50 % is chance and best. "
    "Suspicious: permutation p below 0.05 after correction for the number of measures. Unclear: p finds nothing, but "
    "the 95 % interval lies above 50 %; it takes volumes as independent, which look-alikes are not. No sign: neither.",
}


@dataclass(frozen=True)
class Reason:
    """What one topic says about a cohort.

    Parameters
    ----------
    topic : str
        One of `TOPICS`.
    state : {"good", "bad", "open"}
        Open: not known, or not certain.
    short : str
        A clause of the verdict's sentence.
    text : str
        The numbers with unit, interval and N; a line a number, the one that matters first.
    brief : str
        The number that matters most, alone; "" when it is not known.
    """

    topic: str
    state: State
    short: str
    text: str
    brief: str = ""

    @property
    def headline(self) -> str:
        """The number that matters most, with what belongs to it."""
        return self.text.partition("\n")[0]

    @property
    def meaning(self) -> str:
        """What the numbers are, and which way is better."""
        return MEANINGS[self.topic]


@dataclass(frozen=True)
class Verdict:
    """The answer for one cohort: a few words, the reasons in the order of `TOPICS`, and the main finding.

    ``merit`` orders cohorts, see `best_first`.
    """

    cohort: str
    label: str
    answer: str
    reasons: tuple[Reason, ...]
    finding: str
    merit: tuple[float, ...] = ()

    @property
    def because(self) -> str:
        """The reasons as one clause."""
        return "; ".join(reason.short for reason in self.reasons if reason.short)

    @property
    def sentence(self) -> str:
        """The whole verdict."""
        return f"{self.label}: {self.answer}: {self.because}."


def verdicts(study: Study, results: Results) -> list[Verdict]:
    """Return the verdict on each synthetic cohort, in the order of the study."""
    facts = cohort_verdicts(results, [cohort.name for cohort in study.synthetic])
    ranked = rank_scores(results)
    ranked = ranked[ranked["variant"] == "corrected"]
    rows = [(cohort, pd.Series(facts.loc[cohort.name])) for cohort in study.synthetic]
    copied = judge_copies(results)
    return [_verdict(study, results, cohort, row, ranked, copied) for cohort, row in rows]


def _verdict(
    study: Study, results: Results, cohort: Cohort, facts: pd.Series, ranked: pd.DataFrame, copied: pd.DataFrame
) -> Verdict:
    own = ranked[ranked["cohort"] == cohort.name]
    fid = own[own["metric"] == "fid"]
    reasons = (
        gate(facts),
        anatomy(facts),
        similarity(fid, ranked, controls_of(study)),
        diversity(own[own["metric"] == "ms-ssim"], facts),
        copies(copied[copied["cohort"] == cohort.name], known=study.training is not None),
    )
    found = " ".join(filter(None, [finding(facts, qc_of(results, cohort.name), fid), images(facts)]))
    return Verdict(cohort.name, cohort.label, answer(facts), reasons, found, _merit(cohort, facts, fid))


def _merit(cohort: Cohort, facts: pd.Series, fid: pd.DataFrame) -> tuple[float, ...]:
    passed = 1 - facts["failed_volumes"] / facts["n"] if facts["n"] else 0.0
    share = facts["large"] / facts["compared"] if facts["compared"] else 1.0
    place = fid["rank"].mean() if fid["rank"].notna().any() else np.inf
    return (is_control(cohort), not facts["gated"], _collapsed(facts) or bool(facts["copies"]), -passed, share, place)


def best_first(judged: Sequence[Verdict]) -> list[Verdict]:
    """Return verdicts with the best cohort first.

    Controls, which are no generators, come last; before them cohorts that are not judged yet, are nearly one brain or
    may hold copies. Then counts how many volumes pass the gate, how few regions differ by a large effect, and the mean
    place by the Fréchet distance.
    """
    return sorted(judged, key=lambda verdict: verdict.merit)


def _collapsed(facts: pd.Series) -> bool:
    return bool(facts["compared"] and facts["spread"] < COLLAPSED)


def is_control(cohort: Cohort) -> bool:
    """Tell whether a cohort was made by putting a known defect into brains: it is no generator."""
    return cohort.origin.startswith("control")


def controls_of(study: Study) -> tuple[str, ...]:
    """Return the names of the cohorts that are controls."""
    return tuple(cohort.name for cohort in study.synthetic if is_control(cohort))


def answer(facts: pd.Series) -> str:
    """Return the verdict in a few words, graded as `ANSWERS` says."""
    passed = facts["n"] - facts["failed_volumes"]
    if facts["copies"]:
        return "may hold copies of its training cohort"
    if not facts["gated"]:
        return UNJUDGED
    if _collapsed(facts) and passed:
        return f"not plausible as a cohort, nearly one brain; {passed} of {facts['n']} volumes pass the gate"
    if not facts["reliable"] and not facts["certain"]:
        return "undecided, fails the gate by no more than chance"
    if not facts["reliable"] and not passed:
        return "not plausible, no volume can be segmented reliably"
    if not facts["reliable"] and facts["ci_high"] < MOST:
        return f"not plausible, {facts['failed_volumes']} of {facts['n']} volumes cannot be segmented reliably"
    if not facts["reliable"]:
        return f"plausible in part, {passed} of {facts['n']} volumes pass the gate"
    if not facts["compared"]:
        return UNJUDGED
    if facts["large"] > facts["compared"] / 2:
        return f"not plausible in {facts['large']} of {facts['compared']} regions"
    if _few(facts):
        found = f"{facts['different']} of {facts['compared']} regions differ, {facts['undetermined']} undetermined"
        return f"undecided, {found if facts['different'] else 'too few volumes'}"
    if facts["large"]:
        return f"plausible but for {facts['large']} of {facts['compared']} regions"
    if facts["different"]:
        return f"plausible with small differences in {facts['different']} of {facts['compared']} regions"
    return "plausible by every check that was made"


def finding(facts: pd.Series, qc: pd.DataFrame, fid: pd.DataFrame) -> str:
    """Say what is worst about a cohort, by how much, at which N.

    The worst QC score where few volumes pass the gate, else the region that differs most, else the distance.
    """
    fails = facts["gated"] and not facts["reliable"] and facts["certain"]
    if fails and facts["ci_high"] < MOST and len(qc):
        median = qc.median()
        return (
            f"Segmented worst: {median.idxmin()}, median QC score {median.min():.2f} where {facts['threshold']:.2f} "
            f"passes; N = {len(qc)}."
        )
    if facts["findings"]:
        note = " The cohort fails the gate: not relied upon." if fails else ""
        sizes = f"N = {facts['n_real']} real, {facts['n_synthetic']} synthetic"
        return f"Differs most: {facts['findings'][0]}; {sizes}.{note}"
    scored = fid.dropna(subset=["value", "floor"])
    if scored.empty:
        return ""
    none = "No region is shown to differ. " if facts["compared"] else ""
    return f"{none}{_fid_line(scored.iloc[0])}"


def images(facts: pd.Series) -> str:
    """Say how many images are unlike the real ones, whatever their segmentation says; "" when they are few."""
    unlike, n = facts["unlike"], facts["images"]
    if not n or wilson_interval(unlike / n, n)[0] <= ODD:
        return ""
    return f"The images themselves: {unlike} of {n} unlike the real ones."


def _few(facts: pd.Series) -> bool:
    return bool(facts["undetermined"] > facts["compared"] / 2)


def gate(facts: pd.Series) -> Reason:
    """Say whether the brains can be segmented as reliably as real ones."""
    if not facts["gated"]:
        return Reason("gate", "open", "segmentation quality is not known yet", "Not known yet.")
    passed = facts["n"] - facts["failed_volumes"]
    share = f"pass rate {passed / max(facts['n'], 1):.0%} [{facts['ci_low']:.0%} – {facts['ci_high']:.0%}]"
    refused = f", {facts['failed_checks']} of them already the image checks" if facts["failed_checks"] else ""
    shapeless = f" {facts['shapeless']} are no brain in any orientation." if facts["shapeless"] else ""
    text = f"{facts['failed_volumes']} of {facts['n']} volumes fail{refused}; {share}.{shapeless}"
    brief = f"{passed} of {facts['n']}"
    if facts["reliable"]:
        return Reason("gate", "good", "passes the quality gate", text, brief)
    if facts["certain"]:
        return Reason("gate", "bad", "fails the quality gate, too unreliable for an anatomical assessment", text, brief)
    return Reason("gate", "open", "fails the quality gate, but by no more than chance", text, brief)


def anatomy(facts: pd.Series) -> Reason:
    """Say which regions differ in volume."""
    if not facts["compared"]:
        return Reason("anatomy", "open", "regional volumes are not compared yet", "Not compared yet.")
    found = facts["findings"]
    named = ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
    few = " N is small: the intervals are wide." if _few(facts) else ""
    text = (
        f"{len(found)} of {facts['compared']} regions differ, {facts['equivalent']} equivalent, "
        f"{facts['undetermined']} undetermined; N = {facts['n_real']} real, {facts['n_synthetic']} synthetic.{few}"
        + (f"\nDifferent: {named}." if found else "")
    )
    brief = f"{len(found)} of {facts['compared']}"
    if facts["gated"] and not facts["reliable"] and facts["certain"]:
        return Reason("anatomy", "open", "", f"Not relied upon: the cohort fails the gate.\n{text}", f"({brief})")
    short = "no region is shown to differ"
    if found:
        short = f"{len(found)} of {facts['compared']} regions differ, most: {found[0]}"
    state: State = "bad" if found else "open" if few else "good"
    return Reason("anatomy", state, f"{short}{' (N is small)' if few and not found else ''}", text, brief)


def similarity(own: pd.DataFrame, ranked: pd.DataFrame, controls: Sequence[str]) -> Reason:
    """Say how near the cohort is by the Fréchet distance, under every encoder; controls are no generators."""
    own = own.dropna(subset=["value"])
    if own.empty:
        return Reason("similarity", "open", "similarity is not computed yet", "Not computed yet.")
    lines = [_fid_line(row) for _, row in own.iterrows()]
    at_floor = own.apply(reaches_floor, axis=1) if own["ci_low"].notna().all() else pd.Series(False, index=own.index)
    places = own["rank"].dropna()
    brief = ""
    if places.empty:
        short = "its place by FID is not known"
    else:
        low, high, of = places.min(), places.max(), _ranked_with(own, ranked)
        where = f"place {low:.0f}" if low == high else f"places {low:.0f} to {high:.0f}"
        brief = f"{low:.0f} of {of}" if low == high else f"{low:.0f}–{high:.0f} of {of}"
        tied = "tied" if own["tie"].all() else f"tied under {own['tie'].sum()}" if own["tie"].any() else ""
        short = f"{where} of {of} by FID under {len(own)} encoders" if len(own) > 1 else f"{where} of {of} by FID"
        among = int(ranked.dropna(subset=["rank"])["cohort"].drop_duplicates().isin(list(controls)).sum())
        remark = "a control, no generator" if own["cohort"].iloc[0] in controls else f"{among} of them controls"
        remarks = [*([tied] if tied else []), *([remark] if among else []), *own["note"][own["note"] != ""].unique()]
        short += f" ({'; '.join(remarks)})" if remarks else ""
    state: State = "open"
    if at_floor.all():
        state = "open" if (own["note"] != "").any() else "good"  # a note: it lacks volumes that failed the image checks
    elif own["rank"].notna().all():
        state = "bad"
    sizes = {(row["n_real"], row["n_synthetic"]) for _, row in own.iterrows()}
    counts = "; ".join(f"{real:.0f} real, {synthetic:.0f} synthetic" for real, synthetic in sorted(sizes))
    return Reason("similarity", state, short, "\n".join([f"{lines[0]} N = {counts}.", *lines[1:]]), brief)


def _ranked_with(own: pd.DataFrame, ranked: pd.DataFrame) -> int:
    """Count the cohorts that have a place beside this one, under the encoder with most of them."""
    same = ranked[(ranked["metric"] == "fid") & ranked["encoder"].isin(own["encoder"])]
    return int(same.dropna(subset=["rank"]).groupby("encoder").size().max())


def _fid_line(row: pd.Series) -> str:
    encoder = label_named(row["encoder"])
    value = f"{row['value']:.3g}"
    if pd.notna(row["ci_low"]):
        value += f" [{row['ci_low']:.3g} – {row['ci_high']:.3g}]"
    floor = f", floor {row['floor']:.3g}" if pd.notna(row["floor"]) else ""
    place = f", place {row['rank']:.0f}{' (tie)' if row['tie'] else ''}" if pd.notna(row["rank"]) else ", not ranked"
    return f"FID {value}{floor}{place} ({encoder})."


def diversity(own: pd.DataFrame, facts: pd.Series) -> Reason:
    """Say whether the brains vary as much as real ones: by MS-SSIM, and in regional volumes."""
    scored = own.dropna(subset=["value", "floor"]).head(1)
    spread = f"varies {facts['spread']:.2f} times as much as real brains" if np.isfinite(facts["spread"]) else ""
    parts, state, words, brief = [], "open", "", ""
    if len(scored):
        row = scored.iloc[0]
        known = pd.notna(row["ci_low"]) and pd.notna(row["ci_high"])
        interval = f" [{row['ci_low']:.3g} – {row['ci_high']:.3g}]" if known else ""
        brief = f"{row['value']:.2f}"
        parts.append(f"MS-SSIM {row['value']:.3g}{interval}, real {row['floor']:.3g}, N = {row['n_synthetic']:.0f}.")
        if known:
            lacks = row["ci_low"] > row["floor"]
            state = "bad" if lacks else "good"
            words = "its brains are too alike" if lacks else "its brains are no more alike than real ones"
    if spread:
        parts.append(f"Regional volumes: {spread} (median over {facts['compared']} regions; 1 is best).")
    short = " and ".join(filter(None, [words, f"their volumes {spread.replace('varies', 'vary')}" if spread else ""]))
    text = "\n".join(parts) or "Not known yet."
    if state == "good" and facts["gated"] and facts["failed_volumes"] == facts["n"]:  # noise varies too
        text = f"Not relied upon: no volume passes the gate.\n{text}"
        return Reason("diversity", "open", "variety is not judged, for no volume passes the gate", text, f"({brief})")
    return Reason("diversity", state, short or "variety is not known yet", text, brief)  # type: ignore[arg-type]


def copies(checks: pd.DataFrame, *, known: bool) -> Reason:
    """Say whether the cohort lies nearer to its training cohort than chance explains; ``checks``: `judge_copies`."""
    if checks.empty:
        if not known:
            return Reason("copies", "open", "copies are not checked", "Not checked: the study has no training cohort.")
        return Reason("copies", "open", "copies are not checked yet", "Not checked yet.")
    parts, shares = [], []
    for _, row in by_weight(checks).iterrows():
        low, high = wilson_interval(row["share"], int(row["n_synthetic"]))
        shares.append(f"{row['share']:.0%}")
        space = "the volumes themselves" if row["space"] == IMAGE else label_named(row["space"])
        parts.append(f"{row['share']:.0%} [{low:.0%} – {high:.0%}] on {space}, p = {row['p_value']:.2g}")
    start = "Unclear, nearer" if set(checks["finding"]) - {"none"} == {"unclear"} else "Nearer"
    parts[0] = f"{start} to training: {parts[0]}; 50 % is chance, N = {checks['n_synthetic'].iloc[0]:.0f}."
    if start.startswith("Unclear"):
        parts.insert(1, "Look-alikes are near or far together: p allows for that, the interval does not.")
    text, brief = "\n".join(parts), shares[0]
    if (checks["finding"] == "suspicious").any():
        return Reason("copies", "bad", "nearer to its training cohort than chance explains", text, brief)
    if (checks["finding"] == "unclear").any():
        return Reason("copies", "open", "copies are unclear, for test and interval disagree", text, brief)
    if 0.5 ** checks["n_synthetic"].min() * len(checks) >= 0.05:  # all of them nearer would still be chance
        return Reason("copies", "open", "too few volumes to tell copies", text, brief)
    return Reason("copies", "good", "no sign of copies", text, brief)


def column_help(metric: str, variant: str = "corrected") -> str:
    """Return what a score means in one sentence, with unit and direction."""
    item = METRICS.get(metric if variant == "corrected" else f"{metric}/published")
    if item is None:
        return ""
    good = {"lower": "↓ lower is better", "higher": "↑ higher is better", "match real": "→ best at the floor"}
    return f"{item.label}, {item.unit or 'no unit'}, {good[item.direction]}. {item.meaning}"
