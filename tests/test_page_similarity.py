"""The Similarity page, headless: what it answers, what toggles change, and every part that may be missing."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from core import jobs
from core.settings import from_environment
from core.store import write_csv, write_json
from core.study import PROVENANCE
from core.workflows import remember_study
from core.workflows.results import DETAILS, results_folder
from pages import reads, shared, similarity_parts, table_one_parts

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = ("medicalnet-r50", "medicalnet-r101")
# FID of each cohort under each encoder: Near and Far change places, Odd has the floor's value under one.
FID = {
    "medicalnet-r50": {"Near": 1.0, "Far": 5.0, "Odd": 5.2},
    "medicalnet-r101": {"Near": 8.0, "Far": 2.0, "Odd": 0.5},
}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHSCOPE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(jobs, "ensure_runner", lambda settings: None)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path


def make_study(folder: Path, *, training: bool) -> tuple[str, Path]:
    """A study of named, empty files; return its path and the folder of its results."""
    folder.mkdir()
    cohorts = ["real", "Near", "Far", "Odd", *(["training"] if training else [])]
    for cohort, index in product(cohorts, range(3)):
        (folder / cohort).mkdir(exist_ok=True)
        (folder / cohort / f"{cohort}-{index}.nii.gz").touch()
    lines = ['name = "Test"', 'grid = "half"', "[real]", 'images = "real/*.nii.gz"']
    for cohort in cohorts[1:]:
        table = "training" if cohort == "training" else f'synthetic."{cohort}"'
        lines += [f"[{table}]", f'images = "{cohort}/*.nii.gz"']
    lines += ["[settings]", f"encoders = {[*ENCODERS, 'deepbet']!r}".replace("'", '"')]
    (folder / "study.toml").write_text("\n".join(lines), encoding="utf-8")
    settings = from_environment()
    path = remember_study(settings, str(folder / "study.toml"))
    return path, results_folder(settings, Path(path))


def scores() -> pd.DataFrame:
    same = {"variant": "corrected", "floor": 0.5, "n_real": 24, "n_synthetic": 24, "direction": "lower"}
    rows = [
        same | {"cohort": c, "metric": "fid", "encoder": e, "value": v, "ci_low": v - 0.3, "ci_high": v + 0.3}
        for e, values in FID.items()
        for c, v in values.items()
    ]
    rows += [
        row | {"variant": "published", "value": row["value"] * 100, "ci_low": np.nan, "ci_high": np.nan} for row in rows
    ]
    match = same | {"metric": "ms-ssim", "encoder": "", "direction": "match real", "floor": 0.8}
    # 0.95 is the highest and farthest from the real 0.80; 0.79 is closest
    for cohort, value in (("Near", 0.79), ("Far", 0.95), ("Odd", 0.70)):
        rows.append(match | {"cohort": cohort, "value": value, "ci_low": value - 0.005, "ci_high": value + 0.005})
    return pd.DataFrame(rows).assign(fingerprint="f0")


def write_results(folder: Path, *, metrics: pd.DataFrame | None = None, complete: bool = True) -> None:
    write_csv(scores() if metrics is None else metrics, folder / "metrics.csv")
    write_json({"complete": complete, "gaps": [], "fingerprints": {"f0": {"seed": 0}}}, folder / PROVENANCE)


def write_rest(folder: Path) -> None:
    """Curve, map and copy check, as the workflow writes them."""
    points = [{"n": n, "value": 10 / n, "ci_low": 9 / n, "ci_high": 11 / n} for n in (6, 12, 24)]
    detail = {"metric": "fid", "variant": "corrected", "encoder": "medicalnet-r50", "fingerprint": "f0", "settings": {}}
    notes = ["the covariance is singular"]
    write_json([detail | {"cohort": "Near", "p_value": 0.013, "curve": points, "warnings": notes}], folder / DETAILS)
    cells = list(product(ENCODERS, ("pca", "umap"), ("real", "Near", "training"), range(3)))
    rows = [
        {"encoder": e, "method": m, "cohort": c, "case": f"{c}-{i}", "x": i, "y": -i,
         "share_x": 0.41 if m == "pca" else None, "share_y": 0.2 if m == "pca" else None}
        for e, m, c, i in cells
    ]  # fmt: skip
    write_csv(pd.DataFrame(rows), folder / "map.csv")
    pair = {"cohort": "Near", "space": "image", "distance_training": 1.0, "distance_held_out": 4.0}
    pairs = [pair | {"case": f"Near-{i}", "nearest_training": f"training-{i}", "ratio": 0.25 + i} for i in range(3)]
    write_csv(pd.DataFrame(pairs), folder / "copies.csv")
    check = {"cohort": "Near", "space": "image", "share": 23 / 24, "p_value": 1e-4, "p_binomial": 1.5e-6}
    write_csv(pd.DataFrame([check | {"n_synthetic": 24, "n_reference": 24}]), folder / "copy_check.csv")


@pytest.fixture
def full(workspace):
    path, folder = make_study(workspace / "data", training=True)
    write_results(folder)
    write_rest(folder)
    return path


@pytest.fixture
def bare(workspace):
    path, folder = make_study(workspace / "data", training=False)
    write_results(folder)
    return path


def open_page(study: str, **state) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "similarity.py"), default_timeout=60)
    app.session_state["study"] = study
    for key, value in state.items():
        app.session_state[key] = value
    return checked(app.run())


def checked(app: AppTest) -> AppTest:
    assert not app.exception, app.exception
    return app


def words(app: AppTest) -> str:
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error", "success")
    parts = [str(element.value) for kind in kinds for element in getattr(app, kind)]
    parts += [table.value.to_string() for table in (*app.dataframe, *app.table)]
    return "\n".join(parts + [button.label for button in app.button])


def table_one(app: AppTest) -> pd.DataFrame:
    """Table 1 by cohort, with its two-storey heading."""
    table = app.dataframe[0].value
    return table.set_axis(table["", "Cohort"]).drop(columns=[("", "Cohort")])


def figures(app: AppTest) -> str:
    return "\n".join(element.proto.spec for element in app.get("plotly_chart"))


# the answer


def test_one_line_says_who_is_closest_and_whether_the_order_is_stable(full):
    first, second = (text.value for text in open_page(full).markdown[:2])
    assert first.startswith(
        "Closest to the real cohort by **FID (Fréchet distance)** (corrected, R50): **Near**, 1 [0.7 – 1.3]"
    )
    assert second.startswith("Order not stable: τ = −0.82 between R50 and R101. R50 puts Near before ")


def test_the_encoder_toggle_changes_the_answer_and_reads_no_file_again(full, monkeypatch):
    app = open_page(full)

    def refuse(*_):
        raise AssertionError("results were read again")

    monkeypatch.setattr(reads, "read_results", refuse)
    checked(app.segmented_control(key="encoder").set_value("medicalnet-r101").run())
    assert "**Odd**, 0.5 [0.2 – 0.8], floor 0.5" in app.markdown[0].value
    assert "Odd: the interval reaches the floor" in app.markdown[0].value


def test_a_control_is_not_the_closest_and_is_named_when_the_score_does_not_see_it():
    row = {"metric": "fid", "encoder": "e", "variant": "corrected", "note": "", "direction": "lower", "tie": False}
    row |= {"floor": 0.1, "ci_high": 9.0}
    table = pd.DataFrame(
        [
            row | {"cohort": "small", "value": 0.1, "ci_low": 0.0, "rank": 1.0},
            row | {"cohort": "near", "value": 2.0, "ci_low": 1.0, "rank": 2.0},
            row | {"cohort": "far", "value": 4.0, "ci_low": 3.0, "rank": 3.0},
        ]
    )
    focus = similarity_parts.Focus("fid", "corrected", "e", ("study", ()))
    said = similarity_parts.answer(table, focus, {}, ["small"])
    assert "**near**, 2 [1 – 9]" in said and "It cannot tell small from real ones either" in said
    assert "**small**" in similarity_parts.answer(table, focus, {}) and "either" not in similarity_parts.answer(
        table, focus, {}
    )


def test_ties_are_said_to_be_ties(full):
    tied = scores()
    tied["ci_low"], tied["ci_high"] = 0.1, 9.0
    write_results(results_folder(from_environment(), Path(full)), metrics=tied)
    assert "No cohort is closest" in open_page(full).markdown[0].value
    assert "all 3 are tied" in open_page(full).markdown[0].value


def test_a_score_that_must_match_real_is_best_where_it_is_closest(full):
    app = open_page(full, metric="ms-ssim")
    assert "**Near**, 0.79" in app.markdown[0].value
    assert "one order only" in words(open_page(full, metric="ms-ssim", similarity_tab="Order under each encoder"))
    cells = table_one(app)["volumes", "MS-SSIM"]
    assert cells["Near"].startswith("0.79 ★") and "★" not in cells["Far"]


def test_a_cohort_far_off_makes_a_logarithmic_axis_on_offer(full):
    table = scores().assign(value=2.0, ci_low=1.7, ci_high=2.3)
    write_results(results_folder(from_environment(), Path(full)), metrics=table)
    app = open_page(full)
    assert "similarity_log" not in [toggle.key for toggle in app.toggle] and '"type":"log"' not in figures(app)
    table.loc[table["cohort"] == "Far", ["value", "ci_low", "ci_high"]] *= 40
    write_results(results_folder(from_environment(), Path(full)), metrics=table)
    app = open_page(full)
    assert '"type":"log"' not in figures(app)
    checked(app.toggle(key="similarity_log").set_value(True).run())
    assert figures(app).count('"type":"log"') == 2  # values, and the curve
    table.loc[0, "value"] = -0.1  # a logarithm cannot show it
    write_results(results_folder(from_environment(), Path(full)), metrics=table)
    assert "similarity_log" not in [toggle.key for toggle in open_page(full).toggle]


def test_published_numbers_replace_the_corrected_ones(full):
    before, after = (words(open_page(full, variant=variant)) for variant in ("corrected", "published"))
    assert "520" in after and "520" not in before
    assert "no interval" in after


def test_a_link_to_a_score_that_is_not_there_is_answered(full):
    app = AppTest.from_file(str(ROOT / "pages" / "similarity.py"), default_timeout=60)
    app.session_state["study"] = full
    app.query_params["metric"], app.query_params["encoder"] = "nonsense", "R101"
    said = [warning.value for warning in checked(app.run()).warning]
    assert any("metric `nonsense`" in text and "encoder" not in text for text in said), said
    assert app.segmented_control(key="encoder").value == "medicalnet-r101"
    checked(app.segmented_control(key="variant").set_value("published").run())  # where metrics differ
    assert not any("The link asks" in warning.value for warning in app.warning)


# Table 1


def test_table_1_has_a_row_for_the_floor_and_a_cell_for_what_is_missing(full):
    table = table_one(open_page(full))
    assert list(table.index) == ["Near", "Far", "Odd", "Floor: real against real"]
    expected = [*product(("R50", "R101", "deepbet"), ("FID", "MMD")), ("volumes", "Image MMD"), ("volumes", "MS-SSIM")]
    assert list(table.columns) == expected
    assert table["R50", "FID"]["Near"] == "1 ★ [0.7–1.3]"
    assert table["R50", "FID"]["Floor: real against real"] == "0.5"
    assert table["volumes", "MS-SSIM"]["Floor: real against real"] == "0.8"
    assert set(table["deepbet", "FID"][:3]) == {"not computed"}


def test_a_range_of_floors_is_no_interval_and_the_table_fits_beside_the_sidebar(full):
    unequal = scores()
    unequal.loc[unequal["cohort"] == "Near", "floor"] = 0.6
    write_results(results_folder(from_environment(), Path(full)), metrics=unequal)
    app = open_page(full)
    assert table_one(app)["R50", "FID"]["Floor: real against real"] == "0.5 to 0.6"
    assert "range of the floors where the cohorts differ in N, no interval" in words(app)
    assert table_one_parts.COHORT_WIDTH + 8 * table_one_parts.CELL_WIDTH <= 820  # of 1280 pixels


def test_the_paper_s_table_has_the_same_form(full):
    ours = table_one(open_page(full))
    theirs = table_one(open_page(full, table_one_tab="The paper, as printed"))
    assert theirs["R101", "FID"]["MedSyn"] == "0.012 ★"
    assert set(theirs.columns) <= {*ours.columns, ("R50-23", "FID"), ("R50-23", "MMD")}


# curve, map, copies


def test_curve_map_and_copy_check_are_shown(full):
    app = open_page(full)
    assert "d = 2048 lies far to the right" in figures(app)
    assert "The covariance is singular" in words(app)
    drawn = figures(open_page(full, similarity_tab="Map of all volumes"))
    assert "PCA 1 (41% of the variance)" in drawn and "training-2" in drawn
    said = words(open_page(full, similarity_tab="Copy check"))
    assert "Nearer to training than chance explains (p times the number of measures below 0.05): **Near" in said
    assert "(on volumes themselves)" in said
    assert "80% – 99%" in said
    assert "volumes themselves" in said and "training-0" in said


def test_a_share_above_one_half_without_a_small_p_is_unclear_and_never_fine(full):
    folder = results_folder(from_environment(), Path(full))
    check = {"cohort": "Near", "space": "image", "share": 1.0, "p_value": 0.49, "p_binomial": 6e-8}
    write_csv(pd.DataFrame([check | {"n_synthetic": 24, "n_reference": 24}]), folder / "copy_check.csv")
    app = open_page(full, similarity_tab="Copy check")
    said = words(app)
    assert "**Unclear**: **Near** (on volumes themselves)" in said and "86% – 100%" in said
    assert not app.success and "Nearer to training than chance explains" not in said


def test_the_map_can_be_a_umap(full):
    app = open_page(full, similarity_map="umap", similarity_tab="Map of all volumes")
    assert "UMAP 1 (no unit)" in figures(app)


def test_without_training_cohort_the_copy_check_is_a_labelled_gap(bare):
    said = words(open_page(bare, similarity_tab="Copy check"))
    assert "Gap: no training cohort." in said
    assert "Nearer to training" not in said


def test_what_could_not_be_computed_is_said(bare):
    app = open_page(bare, similarity_tab="Map of all volumes")
    assert "The map under R50 could not be computed." in words(app)
    assert "No curve" in figures(app)


def test_what_is_missing_can_be_asked_for(workspace):
    path, folder = make_study(workspace / "data", training=True)
    write_results(folder, metrics=scores()[:1], complete=False)
    app = open_page(path, similarity_tab="Copy check")
    assert "Only **Near** can be placed" in app.markdown[0].value
    assert "The copy check will appear here once the study has been evaluated." in words(app)


def test_no_score_yet_is_no_page_of_empty_figures(workspace):
    path, _ = make_study(workspace / "data", training=True)
    app = open_page(path)
    assert "Similarity scores will appear here" in words(app)
    assert not app.get("plotly_chart")


def test_every_score_stays_available(full):
    app = open_page(full)
    assert "0.013" not in words(app)
    said = words(open_page(full, similarity_tab="All scores"))
    assert "0.013" in said  # the permutation p
    assert "As published" in said and "f0" in said


def test_unlike_fingerprints_get_no_place(full):
    mixed = scores()
    mixed.loc[(mixed["cohort"] == "Near") & (mixed["encoder"] == "medicalnet-r50"), "fingerprint"] = "other"
    write_results(results_folder(from_environment(), Path(full)), metrics=mixed)
    said = open_page(full).markdown[0].value
    assert "both are tied" in said
    assert "Near (computed differently: no record of how)" in said


def test_the_viewer_shows_a_copy_beside_its_original(full, monkeypatch):
    app = AppTest.from_file(str(ROOT / "pages" / "viewer.py"), default_timeout=60)
    app.session_state["study"] = full
    app.session_state["selected_cohort"], app.session_state["selected_case"] = "Near", "Near-2"
    app.session_state["selected_beside"] = [("training", "training-1")]
    app.run()
    assert app.selectbox(key="viewer_synthetic_Near").value == "Near-2"
    assert app.selectbox(key="viewer_real_cohort").value == "training"
    assert app.selectbox(key="viewer_real_training").value == "training-1"


def test_overview_says_when_a_cohort_may_hold_copies(full):
    app = AppTest.from_file(str(ROOT / "pages" / "overview.py"), default_timeout=60)
    app.session_state[shared.STUDY] = full
    app.run()
    assert any("may hold copies" in m.value for m in app.markdown)  # in the table of all
    app.segmented_control(key="reasons_of").set_value("Near").run()
    assert any("96% [" in m.value and "on the volumes themselves" in m.value for m in app.markdown)


def test_the_address_keeps_whose_reasons_the_overview_shows(full):
    def follow(cohort):
        app = AppTest.from_file(str(ROOT / "pages" / "overview.py"), default_timeout=60)
        app.session_state[shared.STUDY] = full
        app.query_params["reasons_of"] = cohort
        app.run()
        assert not app.exception
        said = [warning.value for warning in app.warning if "The link asks" in warning.value]
        return app.segmented_control(key="reasons_of").value, said

    first, said = follow("Nobody")
    assert len(said) == 1 and "`Nobody`" in said[0]
    for cohort in ("Near", "Far", "Odd"):
        assert follow(cohort) == (cohort, [])
    assert first in ("Near", "Far", "Odd")


def test_back_on_the_overview_shows_whose_reasons_led_away(full, monkeypatch):
    monkeypatch.setattr(shared.st, "switch_page", lambda path, **_: None)
    app = AppTest.from_file(str(ROOT / "pages" / "overview.py"), default_timeout=60)
    app.session_state[shared.STUDY] = full
    app.run()
    first = app.segmented_control(key="reasons_of").value
    other = next(name for name in ("Near", "Far", "Odd") if name != first)
    app.segmented_control(key="reasons_of").set_value(other).run()
    app.button(key=f"anatomy_{other}").click().run()
    again = AppTest.from_file(str(ROOT / "pages" / "overview.py"), default_timeout=60)
    for key in (shared.STUDY, shared.LANDING, "reasons_of_last"):  # Back: the address names nobody
        again.session_state[key] = app.session_state[key]
    again.run()
    assert not again.exception and again.segmented_control(key="reasons_of").value == other
