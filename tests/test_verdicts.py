"""Verdicts in words: grades, the main finding, the place, copies, and the brains behind each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from core.quality import QC_SCORES, pass_interval
from core.volume import AXES_FAULT, CONTENT_FAULTS, NO_BRAIN
from core.workflows import Results, judging, ranking, results, verdicts
from core.workflows.results import CASE_COLUMNS, COPY_COLUMNS, METRIC_COLUMNS, QUALITY_COLUMNS

CHECK = {"cohort": "a", "space": "image", "n_synthetic": 24, "n_reference": 24, "p_binomial": 0.5}
REGIONS = ["hippocampus", "thalamus"]


def known(**tables) -> Results:
    """Results with these tables; the others are empty."""
    columns = {"metrics": METRIC_COLUMNS, "quality": QUALITY_COLUMNS, "cases": CASE_COLUMNS, "qc": results.QC_COLUMNS}
    columns |= {"effect_sizes": ("cohort", "region", "cohens_d", "verdict"), "volumes": ()}
    empty = {name: pd.DataFrame(columns=list(names)) for name, names in columns.items()}
    return Results(**{**empty, "provenance": {}, **tables})


def gate(n: int, failed: int) -> pd.DataFrame:
    low, high = pass_interval(n - failed, n)
    row = {"cohort": "a", "n": n, "failed_scores": failed, "failed_volumes": failed, "pass_rate": 1 - failed / n}
    return pd.DataFrame([row | {"ci_low": low, "ci_high": high, "threshold": 0.65, "reliable": failed <= 0.05 * n}])


def effects(*d: float) -> pd.DataFrame:
    rows = [
        {"cohort": "a", "region": region, "cohens_d": value, "ci_low": value - 0.1, "ci_high": value + 0.1,
         "spread_ratio": 0.0, "verdict": "different" if abs(value) > 0.2 else "equivalent", "n_real": 40,
         "n_synthetic": 40}
        for region, value in zip(REGIONS, d, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def scores(*lowest: float) -> pd.DataFrame:
    rows = [{"cohort": "a", "subject": f"s{i}", **dict.fromkeys(QC_SCORES, 0.9)} for i in range(len(lowest))]
    return pd.DataFrame(rows).assign(thalamus=lowest)


def cases(n: int, *reasons: str) -> pd.DataFrame:
    rows = [{"cohort": "a", "case": f"s{i}", "status": "ok", "reason": "", "notes": ""} for i in range(n)]
    rows += [{"cohort": "a", "case": f"x{i}", "status": "rejected", "reason": r} for i, r in enumerate(reasons)]
    return pd.DataFrame(rows)


def facts(found: Results) -> pd.Series:
    return pd.Series(judging.cohort_verdicts(found, ["a"]).loc["a"])


@pytest.mark.parametrize(
    ("n", "failed", "d", "expected"),
    [
        (40, 40, (2.0, 1.0), "not plausible, no volume can be segmented reliably"),
        (40, 35, (2.0, 1.0), "not plausible, 35 of 40 volumes cannot be segmented reliably"),
        (40, 15, (2.0, 1.0), "plausible in part, 25 of 40 volumes pass the gate"),
        (24, 2, (2.0, 1.0), "undecided, fails the gate by no more than chance"),
        (40, 0, (2.0, 0.3), "plausible but for 1 of 2 regions"),
        (40, 0, (2.0, 1.0), "not plausible in 2 of 2 regions"),
        (40, 0, (0.5, 0.1), "plausible with small differences in 1 of 2 regions"),
        (40, 0, (0.1, 0.1), "plausible by every check that was made"),
    ],
)
def test_the_answer_is_graded_by_what_was_measured(n, failed, d, expected):
    found = facts(known(quality=gate(n, failed), effect_sizes=effects(*d)))
    assert verdicts.answer(found) == expected
    assert verdicts.gate(found).brief == f"{n - failed} of {n}"


def test_the_anatomy_in_brief_is_how_many_regions_differ_in_brackets_where_it_is_not_relied_upon():
    assert verdicts.anatomy(facts(known(quality=gate(40, 0), effect_sizes=effects(2.0, 0.1)))).brief == "1 of 2"
    assert verdicts.anatomy(facts(known(quality=gate(40, 40), effect_sizes=effects(2.0, 0.1)))).brief == "(1 of 2)"


def test_a_cohort_that_hardly_varies_is_nearly_one_brain_however_many_pass():
    same = effects(0.1, 0.1).assign(spread_ratio=np.log(0.1))
    found = facts(known(quality=gate(40, 15), effect_sizes=same))
    assert verdicts.answer(found) == "not plausible as a cohort, nearly one brain; 25 of 40 volumes pass the gate"
    assert "nearly" not in verdicts.answer(facts(known(quality=gate(40, 40), effect_sizes=same)))  # noise, not a brain


def test_where_most_regions_are_undetermined_the_answer_is_undecided():
    def said(*d: float) -> str:
        unknown = effects(*d).assign(verdict=lambda table: table["verdict"].replace("equivalent", "undetermined"))
        wide = pd.concat([unknown, *(unknown.iloc[1:].assign(region=f"r{i}") for i in range(3))])
        return verdicts.answer(facts(known(quality=gate(40, 0), effect_sizes=wide)))

    assert said(2.0, 0.1) == "undecided, 1 of 5 regions differ, 4 undetermined"
    assert said(0.5, 0.1) == "undecided, 1 of 5 regions differ, 4 undetermined"
    assert said(0.1, 0.1) == "undecided, too few volumes"


def test_variety_of_volumes_that_all_fail_the_gate_is_not_called_good():
    score = {"metric": "ms-ssim", "encoder": "", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "floor": 0.8}
    own = pd.DataFrame([score | {"n_synthetic": 40}])
    assert verdicts.diversity(own, facts(known(quality=gate(40, 0)))).state == "good"
    noise = verdicts.diversity(own, facts(known(quality=gate(40, 40))))
    assert (noise.state, noise.brief) == ("open", "(0.50)") and noise.headline.startswith("Not relied upon")


def test_the_best_cohort_stands_first_and_controls_last():
    def verdict(name, *merit):
        return verdicts.Verdict(name, name, "", (), "", merit)

    judged = [
        verdict("blur", True, False, False, -1.0, 0.0, 1.0),
        verdict("noise", False, False, False, -0.0, 1.0, 9.0),
        verdict("one", False, False, True, -1.0, 0.5, 2.0),
        verdict("far", False, False, False, -1.0, 0.1, 4.0),
        verdict("near", False, False, False, -1.0, 0.1, 2.0),
    ]
    assert [found.cohort for found in verdicts.best_first(judged)] == ["near", "far", "noise", "one", "blur"]


def test_a_cohort_at_the_floor_that_lacks_failed_volumes_is_not_called_good():
    table = places(e0=False).assign(value=0.1, ci_low=0.0, ci_high=0.2, floor=0.1)
    whole = table[table["cohort"] == "a"]
    assert verdicts.similarity(whole, table, []).state == "good"
    assert verdicts.similarity(whole.assign(note="4 volumes failed"), table, []).state == "open"


def test_the_main_finding_is_the_worst_score_where_few_pass_and_else_the_region_that_differs_most():
    none = known(quality=gate(3, 3), qc=scores(0.2, 0.3, 0.4))
    few = facts(none).mask(facts(none).index == "certain", other=True)
    said = verdicts.finding(few.mask(few.index == "ci_high", 0.4), results.qc_of(none, "a"), none.metrics)
    assert said == "Segmented worst: thalamus, median QC score 0.30 where 0.65 passes; N = 3."
    some = facts(known(quality=gate(40, 15), effect_sizes=effects(2.0, -0.5)))
    said = verdicts.finding(some, pd.DataFrame(), none.metrics)
    assert said.startswith("Differs most: hippocampus larger in real brains (d = +2.00 [+1.90, +2.10]); N = 40 real")
    assert said.endswith("not relied upon.")


def test_images_unlike_the_real_ones_are_told_whatever_their_segmentation_says():
    def finding(unlike: int) -> str:
        table = pd.DataFrame({"cohort": "a", "unlike": ["contrast"] * unlike + [""] * (40 - unlike)})
        return verdicts.images(facts(known(quality=gate(40, 0), image_checks=table)))

    assert finding(40) == "The images themselves: 40 of 40 unlike the real ones."
    assert finding(2) == finding(0) == verdicts.images(facts(known())) == ""  # 2 of 40 may be chance


def test_volumes_refused_for_what_they_show_fail_the_gate_and_others_do_not():
    broken = "the file cannot be read to the end."
    found = facts(
        known(quality=gate(22, 0), cases=cases(22, f"{AXES_FAULT}: flipped", "5 voxels are NaN or Inf.", broken))
    )
    assert (found["n"], found["failed_volumes"], found["failed_checks"], found["reliable"]) == (24, 2, 2, False)
    assert "2 of 24 volumes fail, 2 of them already the image checks" in verdicts.gate(found).text


def test_shapeless_volumes_are_named_where_they_fail():
    shapeless = cases(40).assign(notes=[f"{NO_BRAIN} (match with the atlas 0.44, turned 0.57)"] * 2 + [""] * 38)
    text = verdicts.gate(facts(known(quality=gate(40, 40), cases=shapeless))).text
    assert text.endswith("2 are no brain in any orientation.")


def test_a_cohort_that_contradicts_its_headers_as_a_whole_has_wrong_headers():
    turned = [f"{AXES_FAULT}: flipped"] * 3
    assert ranking.image_failures(known(cases=cases(2, *turned)), "a") == (0, 2)
    assert ranking.image_failures(known(cases=cases(4, *turned)), "a") == (3, 7)


def test_files_that_cannot_be_read_and_duplicates_are_not_among_the_volumes_that_failed():
    unread = ["the file is empty. Copy or export it again.", "same content as a: counted once. Remove the duplicate."]
    assert ranking.image_failures(known(cases=cases(4, CONTENT_FAULTS[0], *unread)), "a") == (1, 5)


def places(**ties: bool) -> pd.DataFrame:
    """FID of cohort a (place 2) and of a control under one encoder for each tie."""
    same = {
        "metric": "fid",
        "value": 2.0,
        "ci_low": 1.0,
        "ci_high": 3.0,
        "floor": 0.1,
        "n_real": 24,
        "direction": "lower",
    }
    rows = [
        same | {"encoder": e, "cohort": c, "n_synthetic": 24, "rank": rank, "tie": tie, "note": ""}
        for e, tie in ties.items()
        for c, rank in (("a", 2.0), ("blur", 1.0))
    ]
    return pd.DataFrame(rows)


def test_ties_under_some_encoders_are_counted_and_controls_are_no_generators():
    table = places(e0=True, e1=False, e2=True)
    said = verdicts.similarity(table[table["cohort"] == "a"], table, ["blur"]).short
    assert said == "place 2 of 2 by FID under 3 encoders (tied under 2; 1 of them controls)"
    said = verdicts.similarity(table[table["cohort"] == "blur"], table, ["blur"]).short
    assert said.endswith("(tied under 2; a control, no generator)")
    everywhere = places(e0=True)
    assert verdicts.similarity(everywhere[everywhere["cohort"] == "a"], everywhere, []).short.endswith("(tied)")


@pytest.mark.parametrize(
    ("share", "p", "finding", "state"),
    [(1.0, 0.001, "suspicious", "bad"), (1.0, 0.49, "unclear", "open"), (0.6, 0.2, "none", "good")],
)
def test_the_mark_of_the_copy_check_agrees_with_its_numbers(share, p, finding, state):
    judged = judging.judge_copies(known(copy_check=pd.DataFrame([CHECK | {"share": share, "p_value": p}])))
    assert judged["finding"].tolist() == [finding]
    reason = verdicts.copies(judged, known=True)
    assert reason.state == state
    assert reason.headline.startswith("Unclear, nearer" if finding == "unclear" else "Nearer")


def test_the_typical_case_is_the_median_and_every_reason_has_brains_behind_it():
    pair = {"cohort": "a", "space": "image", "distance_training": 1.0, "distance_held_out": 2.0}
    copied = [pair | {"case": f"s{i}", "nearest_training": f"t{i}", "ratio": r} for i, r in enumerate((0.9, 0.2))]
    extreme = pd.DataFrame({"cohort": "a", "subject": ["s1", "s2"], "region": "hippocampus", "z": [-1.0, 5.0]})
    found = known(
        qc=scores(0.9, 0.1, 0.5), quality=gate(3, 2), effect_sizes=effects(0.9, -0.1), percentiles=extreme,
        copies=pd.DataFrame(copied, columns=list(COPY_COLUMNS)),
    )  # fmt: skip
    assert judging.typical_case(found, "a") == "s2"
    assert judging.cases_behind(found, "a", "gate") == [("a", "s1"), ("a", "s2")]
    assert judging.cases_behind(found, "a", "anatomy") == [("a", "s2"), ("a", "s1")]
    assert judging.cases_behind(found, "a", "copies") == [("a", "s1"), ("training", "t1")]
    told = [CHECK | {"share": 0.5, "p_value": 0.4}, CHECK | {"space": "deepbet", "share": 0.9, "p_value": 0.001}]
    far = pd.DataFrame([pair | {"space": "deepbet", "case": "s5", "nearest_training": "t5", "ratio": 0.7}])
    both = known(copies=pd.concat([found.copies, far]), copy_check=pd.DataFrame(told))
    assert judging.cases_behind(both, "a", "copies")[0] == ("a", "s5")  # of the space that the reason tells of
    assert judging.cases_behind(found, "a", "similarity")[0] == ("a", "s2")
    assert judging.cases_behind(known(), "a", "gate") == [] and judging.typical_case(known(), "a") == ""
    assert not np.isfinite(facts(known())["spread"])
