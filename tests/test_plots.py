"""Figures: everything passed is drawn, colours are stable, inputs stay as they are, nothing crashes on nothing."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from core import plots

COHORTS = ["real", "HA-GAN", "cDPM"]
SCORES = ["general white matter", "putamen+pallidum"]
AFFINE = np.array([[2.0, 0, 0, -10], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])


def metrics() -> pd.DataFrame:
    rows = [
        {"cohort": cohort, "metric": metric, "encoder": encoder, "variant": variant, "value": 1.0, "direction": "lower"}
        for cohort in COHORTS[1:]
        for metric, encoder in (("fid", "r50"), ("fid", "r101"), ("ms-ssim", None))
        for variant in ("corrected", "published")
    ]
    return pd.DataFrame(rows).assign(ci_low=0.8, ci_high=1.3, floor=0.1, n_real=24, n_synthetic=20)


def qc(n: int = 6) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    return {
        cohort: pd.DataFrame(rng.random((n, 2)), columns=SCORES, index=[f"{cohort}-{i}" for i in range(n)])
        for cohort in COHORTS
    }


def effects() -> pd.DataFrame:
    rows = [
        (c, "cortical", r, d) for c in COHORTS[1:] for r, d in (("cuneus", 0.3), ("lingual", -1.5), ("insula", np.nan))
    ]
    table = pd.DataFrame(rows, columns=["cohort", "group", "region", "cohens_d"])
    return table.assign(
        ci_low=-0.1, ci_high=0.4, spread_ratio=-np.inf, q_value=0.04, verdict="different", n_real=24, n_synthetic=20
    )


def bump() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Places of three cohorts: A and B tied under r50, C without a place there; the scores behind them."""
    places = pd.DataFrame({"r50": [1, 1, np.nan], "r101": [3, 2, 1]}, index=["A", "B", "C"])
    cells = [
        {"cohort": c, "encoder": e, "value": v} for e in places for c, v in zip("ABC", (1.0, 2.0, 3.0), strict=True)
    ]
    return places, pd.DataFrame(cells).assign(
        ci_low=0.5, ci_high=4.0, n_real=24, n_synthetic=20, direction="lower", floor=np.nan
    )


def curve() -> pd.DataFrame:
    points = [
        {"cohort": c, "n": n, "value": 1 / n, "ci_low": 0.9 / n, "ci_high": 1.2 / n} for c in "AB" for n in (12, 6)
    ]
    return pd.DataFrame(points)


def draw_curve(points: pd.DataFrame, width: int | None = None) -> go.Figure:
    return plots.score_curve(points, pd.Series([0.01, 0.01]), title="FID", width=width)


def embedding(n: int = 3) -> pd.DataFrame:
    rows = [{"cohort": c, "case": f"{c}-{i}", "x": float(i), "y": -float(i)} for c in COHORTS for i in range(n)]
    return pd.DataFrame(rows).assign(method="pca", share_x=0.41, share_y=np.nan)


def participants() -> dict[str, pd.DataFrame]:
    test = pd.DataFrame({"age": [30.0, 40.0, np.nan], "sex": ["F", "M", "F"]})
    return {"test": test, "training": pd.DataFrame({"age": [50.0, 51.0], "sex": ["", "M"]})}


def texts(figure: go.Figure) -> str:
    return json.dumps(json.loads(figure.to_json()), ensure_ascii=False)


def pixels(trace: go.Image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(trace.source.split(",")[1]))))


# colours


def test_colours_are_distinct_stable_and_grey_for_real():
    names = ["real", *(f"model {i}" for i in range(20))]
    colours = plots.cohort_colours(names)
    assert list(colours) == names and len(set(colours.values())) == len(names)
    assert colours == plots.cohort_colours(names) == plots.cohort_colours([*names, "real"])
    assert plots.cohort_colours([*names, "one more"]).items() >= colours.items()
    red, green, blue = (int(colours["real"][i : i + 2], 16) for i in (1, 3, 5))
    assert red == green == blue and plots.cohort_colours(["model 0", "real"])["real"] == colours["real"]


def test_figures_use_the_colours_given():
    colours = dict(zip(COHORTS, ["#111111", "#222222", "#333333"], strict=True))
    for figure in (plots.qc_scatter(qc(), colours=colours), plots.metric_dots(metrics(), colours=colours)):
        assert {trace.marker.color for trace in figure.data if trace.name != "floor"} <= set(colours.values())


# planes


def test_triplanar_shows_the_planes_through_the_position():
    data = np.full((6, 7, 8), -1.0, dtype=np.float32)
    data[4, 5, 6] = 1.0  # right, anterior, superior; at (-2, -10, -18) mm
    figure = plots.triplanar(data, AFFINE, (-2, -10, -18))
    sagittal, coronal, axial = figure.data
    for trace, (row, column) in ((sagittal, (6, 5)), (coronal, (6, 4)), (axial, (5, 4))):
        image = pixels(trace)
        assert image[row, column].tolist() == [255, 255, 255] and (image.sum(axis=2) > 0).sum() == 1
        assert np.asarray(trace.customdata)[row, column] == 1.0
    assert (sagittal.x0, sagittal.dx, sagittal.y0, sagittal.dy) == (-20, 2, -30, 2)
    assert (axial.x0, axial.y0) == (-10, -20)


def test_triplanar_is_neurological_with_letters_and_one_scale():
    figure = plots.triplanar(np.zeros((6, 7, 8), dtype=np.float32), AFFINE, (0, 0, 0))
    letters = [note.text for note in figure.layout.annotations if len(note.text) == 1]
    assert letters == list("PAISLRISLRPA")
    assert tuple(figure.layout.xaxis2.range) == (-11, 1)  # left (-) to right (+), voxel edges included
    axes = [figure.layout[f"{axis}axis{number}"] for axis in "xy" for number in ("", "2", "3")]
    assert [axis.scaleanchor for axis in axes] == [None, "x", "x", "x", "x", "x"]
    assert "coronal, y = -8 mm" in texts(figure)  # the nearest voxel, position clipped to the volume


def test_triplanar_position_outside_is_clipped():
    data = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
    far, corner = plots.triplanar(data, AFFINE, (900, 900, 900)), plots.triplanar(data, AFFINE, (0, -8, -16))
    assert [trace.source for trace in far.data] == [trace.source for trace in corner.data]


def test_triplanar_draws_known_labels_only():
    data, labels = np.zeros((6, 7, 8), dtype=np.float32), np.zeros((6, 7, 8), dtype=np.int32)
    labels[:, :, 0], labels[:, :, 1] = 17, 99
    figure = plots.triplanar(data, AFFINE, (0, 0, 0), labels=labels, label_colours={17: (220, 216, 20)}, opacity=1.0)
    image = pixels(figure.data[1])
    assert (image[0] == [220, 216, 20]).all() and (image[1] == image[5]).all() and (image[5] == 127).all()


def test_triplanar_is_small_enough_for_a_page():
    data = np.random.default_rng(0).random((144, 192, 144)).astype(np.float32)
    assert len(plots.triplanar(data, np.eye(4), (72, 96, 72)).to_json()) < 1e6


# tables


def test_metric_dots_show_every_cohort_metric_encoder_and_variant():
    figure = plots.metric_dots(metrics())
    shown = texts(figure)
    assert all(
        word in shown
        for word in ("HA-GAN", "cDPM", "fid<br><sup>r50", "fid<br><sup>r101", "ms-ssim", "lower is better")
    )
    assert {trace.name for trace in figure.data} == {"corrected", "published", "floor"}
    assert sum(trace.showlegend for trace in figure.data) == 3
    dots = [trace for trace in figure.data if trace.name != "floor"]
    assert len(dots) == 2 * 3 * 2 and dots[0].error_x.array[0] == pytest.approx(0.3)
    assert dots[0].error_x.arrayminus[0] == pytest.approx(0.2)
    wide = plots.metric_dots(metrics().assign(encoder="a name of many words, which needs two lines"))
    (title,) = {note.text for note in wide.layout.annotations if "ms-ssim" in note.text}
    assert title.count("<br>") == figure.layout.annotations[0].text.count("<br>") + 1
    assert wide.layout.margin.t == figure.layout.margin.t + 18


def test_rank_bump_draws_ties_as_ties_and_a_missing_place_as_a_gap():
    places, scores = bump()
    figure = plots.rank_bump(places, scores, names={"r50": "R50"})
    lines = {trace.name: trace for trace in figure.data}
    assert lines["A"].text == ("1", "3") and lines["B"].text == ("1", "2") and lines["C"].text == ("", "1")
    assert np.isnan(lines["C"].y[0]) and lines["C"].y[1] == 1
    (frame,) = figure.layout.shapes  # one frame, around A and B under r50
    assert frame.x0 < 0 < frame.x1 and frame.y0 < min(lines["A"].y[0], lines["B"].y[0])
    assert frame.y1 > max(lines["A"].y[0], lines["B"].y[0])
    assert lines["A"].y[0] != lines["B"].y[0]  # both can be seen
    value = scores.set_index(["encoder", "cohort"])["value"]["r50"]
    assert (lines["A"].y[0] < lines["B"].y[0]) == (value["A"] < value["B"])
    turned = scores.assign(value=-scores["value"])
    turned = {trace.name: trace for trace in plots.rank_bump(places, turned, names={}).data}
    assert (turned["A"].y[0] < turned["B"].y[0]) != (lines["A"].y[0] < lines["B"].y[0])
    assert list(figure.layout.xaxis.ticktext) == ["R50", "r101"]
    turned = plots.rank_bump(places[["r101", "r50"]], scores, names={})
    labels = {note.text: note.y for note in turned.layout.annotations}
    assert labels["C<br>(no place)"] > max(labels["A"], labels["B"])
    assert lines["B"].customdata[0][1] == "2 [0.5, 4]<br>N = 24 real, 20 synthetic"
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the closest on top


def test_score_curve_shows_every_point_the_floor_and_the_number_of_features():
    figure = draw_curve(curve(), width=20)
    assert {trace.name: list(trace.x) for trace in figure.data} == {"A": [6, 12], "B": [6, 12]}
    assert figure.data[0].error_y.array[0] == pytest.approx(0.2 / 6)
    assert figure.data[0].error_y.arrayminus[0] == pytest.approx(0.1 / 6)
    assert {(shape.y0, shape.x0) for shape in figure.layout.shapes} == {(0.01, 0), (0, 20)}
    assert "d = 20" in texts(figure) and "floor" in texts(figure)


def test_score_curve_writes_floor_at_the_floor_on_a_logarithmic_axis_too():
    for log, height in ((False, 0.01), (True, -2)):  # plotly takes the place of a note on such an axis as an exponent
        figure = plots.score_curve(curve(), pd.Series([0.01]), title="FID", log=log)
        assert next(note.y for note in figure.layout.annotations if note.text == "floor") == height
        assert figure.layout.yaxis.type == ("log" if log else None) and figure.layout.shapes[0].y0 == 0.01


def test_score_curve_says_when_the_number_of_features_is_out_of_sight():
    figure = draw_curve(curve(), width=2048)
    assert "d = 2048 lies far to the right" in texts(figure) and len(figure.layout.shapes) == 1
    assert "d =" not in texts(draw_curve(curve()))


@pytest.mark.parametrize("n", [3, 200])
def test_joint_map_shows_every_case_with_a_symbol_for_each_cohort(n: int):
    figure = plots.joint_map(embedding(n))
    points = [tuple(point) for trace in figure.data for point in trace.customdata]
    assert points == [(f"{cohort}-{i}", cohort) for cohort in COHORTS for i in range(n)]
    assert len({trace.marker.symbol for trace in figure.data}) == len({t.marker.color for t in figure.data}) == 3
    assert figure.layout.xaxis.title.text == "PCA 1 (41% of the variance)"
    assert figure.layout.yaxis.title.text == "PCA 2 (no unit)"


@pytest.mark.parametrize("n", [6, 200])
def test_qc_scatter_shows_every_case_score_and_the_threshold(n: int):
    figure = plots.qc_scatter(qc(n), 0.65)
    assert [trace.name for trace in figure.data] == [f"{cohort} (N = {n})" for cohort in COHORTS]
    for cohort, table in qc(n).items():
        trace = next(trace for trace in figure.data if trace.name.startswith(cohort))
        points = {tuple(custom): y for custom, y in zip(trace.customdata, trace.y, strict=True)}
        assert points == {(case, cohort, score): table.loc[case, score] for case in table.index for score in SCORES}
    assert figure.layout.shapes[0].y0 == 0.65 and "0.650" in texts(figure)


def names_of(figure: go.Figure) -> str:
    return " ".join(trace.name for trace in figure.data)


def test_qc_scatter_of_many_cases_draws_a_sample_the_failing_scores_and_the_selected():
    tables = qc(3000)
    tables["HA-GAN"].loc["HA-GAN-1234", SCORES[1]] = 0.1
    figure = plots.qc_scatter(tables, 0.65, keep={("HA-GAN-777", "HA-GAN")})
    points = {tuple(point) for trace in figure.data for point in trace.customdata}
    below = {
        (case, c, score)
        for c, t in tables.items()
        for case, row in t.iterrows()
        for score in SCORES
        if row[score] < 0.65
    }
    assert below <= points and ("HA-GAN-1234", "HA-GAN", SCORES[1]) in points
    assert {("HA-GAN-777", "HA-GAN", score) for score in SCORES} <= points
    assert "HA-GAN (shows 201 of N = 3,000)" in names_of(figure) and "real (shows 200 of N = 3,000)" in names_of(figure)
    for trace, (cohort, table) in zip(figure.data, tables.items(), strict=True):
        drawn = zip(trace.customdata, trace.y, strict=True)
        assert all(table.loc[case, score] == y for (case, name, score), y in drawn if name == cohort)


def test_joint_map_of_many_cases_draws_a_sample_the_outliers_and_the_selected():
    table = embedding(3000)
    table.loc[1234, "x"] = 1e6
    figure = plots.joint_map(table, keep={(f"{COHORTS[1]}-777", COHORTS[1])})
    points = {tuple(point) for trace in figure.data for point in trace.customdata}
    assert {(f"{COHORTS[0]}-1234", COHORTS[0]), (f"{COHORTS[1]}-777", COHORTS[1])} <= points
    assert f"{COHORTS[0]} (shows 201 of N = 3,000)" in names_of(figure)
    assert f"{COHORTS[2]} (shows 200 of N = 3,000)" in names_of(figure)


def test_region_distribution_of_many_cases_keeps_the_quartiles_of_all():
    volumes = {name: table * 1000 for name, table in qc(3000).items()}
    volumes["real"].iloc[1234, 0] = 1e6
    figure = plots.region_distribution(volumes, SCORES[0], keep={("real-777", "real")})
    boxes = [trace for trace in figure.data if trace.boxpoints is False]
    points = [trace for trace in figure.data if trace.boxpoints == "all"]
    assert [len(trace.y) for trace in boxes] == [3000] * len(volumes)
    drawn = {tuple(point) for trace in points for point in trace.customdata}
    assert {("real-1234", "real"), ("real-777", "real")} <= drawn and 200 <= len(points[0].y) < 300
    assert all(a.name == b.name for a, b in zip(boxes, points, strict=True))
    assert f"shows {len(points[0].y)} of N = 3,000" in points[0].name and points[0].line.width == 0


def test_effect_heatmap_is_symmetric_and_labels_gaps():
    figure = plots.effect_heatmap(effects())
    heatmap = figure.data[0]
    assert list(heatmap.y) == ["cuneus", "lingual", "insula"] and list(heatmap.x) == COHORTS[1:]
    assert heatmap.zmin == -heatmap.zmax == -1.5 and plots.effect_heatmap(effects(), scale=2.0).data[0].zmax == 2.0
    assert np.asarray(heatmap.z, dtype=float)[:2].tolist() == [[0.3, 0.3], [-1.5, -1.5]]
    assert [note.text for note in figure.layout.annotations] == ["no value"] * 2
    assert "different" in heatmap.customdata[0][0][2] and "-0.10, +0.40" in heatmap.customdata[0][0][2]


def test_effect_heatmap_marks_the_cohorts_that_are_not_relied_upon():
    figure = plots.effect_heatmap(effects(), [COHORTS[2]])
    hatched = [shape for shape in figure.layout.shapes if shape.type == "path"]
    assert len(hatched) == 1 and hatched[0].path.startswith("M0.5,")  # around the second column alone
    marked = ["not relied upon" in cell[2] for cell in figure.data[0].customdata[0]]
    assert marked == [False, True]
    assert not [s for s in plots.effect_heatmap(effects()).layout.shapes if s.type == "path"]


def test_effect_colours_are_those_of_the_scale_and_text_on_them_can_be_read():
    def light(colour):  # relative luminance, WCAG 2
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for d in np.linspace(-3, 3, 41):
        colour, ink = plots.effect_colours(d, 2.0)
        one, other = light(colour), {"#000000": 0.0, "#ffffff": 1.0}[ink]
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5, d
    synthetic, real = (re.findall(r"\d+", plots.effect_colours(d, 2.0)[0]) for d in (-1, 1))
    assert int(synthetic[0]) > int(synthetic[2]) and int(real[0]) < int(real[2])  # red, blue
    assert plots.effect_colours(9, 2.0) == plots.effect_colours(2, 2.0)
    assert plots.effect_colours(np.nan, 2.0)[0] == "transparent"


def test_a_rule_parts_groups_of_regions_that_are_not_mixed():
    table = effects().query("region != 'insula'")
    assert plots.effect_cells(table).rule == 0
    assert plots.effect_cells(table.assign(group=["subcortical", "cortical"] * 2)).rule == 1
    mixed = pd.DataFrame({"cohort": "a", "region": list("rst"), "cohens_d": 1.0, "group": ["x", "y", "x"]})
    assert plots.effect_cells(mixed).rule == 0


def test_effect_heatmap_takes_the_paper_s_columns_alone():
    figure = plots.effect_heatmap(effects()[["cohort", "region", "cohens_d"]])
    assert figure.data[0].customdata[1][0][2] == "d = -1.500"


def test_region_distribution_shows_every_cohort_and_case():
    volumes = {name: table * 1000 for name, table in qc().items()}
    figure = plots.region_distribution(volumes, SCORES[0])
    assert [custom[0] for trace in figure.data for custom in trace.customdata] == [
        c for t in volumes.values() for c in t.index
    ]
    assert figure.layout.yaxis.title.text == "general white matter (mm³)" and "N = 6" in figure.data[0].name


def test_age_sex_histogram_counts_those_without_age():
    figure = plots.age_sex_histogram(participants())
    assert sum(len(trace.x) for trace in figure.data) == 4
    assert {trace.name for trace in figure.data} == {"female", "male", "sex unknown"}
    shown = texts(figure)
    assert "test (N = 3, 1 without age)" in shown and "training (N = 2)" in shown


# for all


EMPTY = {
    "triplanar": lambda: plots.triplanar(np.zeros((0, 0, 0)), np.eye(4), (0, 0, 0)),
    "metric_dots": lambda: plots.metric_dots(metrics().iloc[:0]),
    "metric_dots without columns": lambda: plots.metric_dots(pd.DataFrame()),
    "qc_scatter": lambda: plots.qc_scatter({}),
    "qc_scatter empty table": lambda: plots.qc_scatter({"real": pd.DataFrame(columns=SCORES)}, 0.6),
    "rank_bump": lambda: plots.rank_bump(bump()[0] * np.nan, bump()[1], names={}),
    "score_curve": lambda: draw_curve(curve()[:0]),
    "joint_map": lambda: plots.joint_map(embedding(0)),
    "effect_heatmap": lambda: plots.effect_heatmap(pd.DataFrame()),
    "region_distribution": lambda: plots.region_distribution({}, "cuneus"),
    "region_distribution gap": lambda: plots.region_distribution(
        {"real": pd.DataFrame({"cuneus": [np.nan]})}, "cuneus"
    ),
    "age_sex_histogram": lambda: plots.age_sex_histogram({}),
}


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_show_is_said(name: str):
    figure = EMPTY[name]()
    assert len(figure.data) == 0 and figure.layout.annotations[0].text.startswith("No ")


def test_all_gaps_heatmap():
    figure = plots.effect_heatmap(effects().assign(cohens_d=np.nan))
    assert len(figure.layout.annotations) == 6 and figure.data[0].zmax == 0.8


FULL = {
    "metric_dots": (plots.metric_dots, metrics),
    "rank_bump": (lambda table: plots.rank_bump(bump()[0], table, names={}), lambda: bump()[1]),
    "score_curve": (draw_curve, curve),
    "joint_map": (plots.joint_map, embedding),
    "qc_scatter": (plots.qc_scatter, qc),
    "effect_heatmap": (plots.effect_heatmap, effects),
    "region_distribution": (lambda tables: plots.region_distribution(tables, SCORES[0]), qc),
    "age_sex_histogram": (plots.age_sex_histogram, participants),
}


@pytest.mark.parametrize("name", FULL)
def test_inputs_stay_and_the_theme_decides_background_and_font(name: str):
    draw, make = FULL[name]
    given, fresh = make(), make()
    figure = draw(given)
    for one, other in zip(*([t] if isinstance(t, pd.DataFrame) else t.values() for t in (given, fresh)), strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.font.color is None and figure.layout.height > 100
    assert draw(make()).to_json() == figure.to_json()


@pytest.mark.parametrize("name", FULL)
def test_plotly_can_tell_that_a_figure_given_twice_is_the_same(name: str):
    draw, make = FULL[name]
    content = json.loads(draw(make()).to_json())
    assert "bdata" not in json.dumps(content["data"]) and "template" not in content["layout"]
    assert content["layout"]["datarevision"] == draw(make()).layout.datarevision


def test_another_revision_has_another_name():
    table = embedding()
    figure = plots.joint_map(table)
    moved = plots.joint_map(table.assign(x=table["x"] + 1))
    marked = plots.mark_cases(figure, set(list(plots.cases_of(figure))[:2]))
    assert len({one.layout.datarevision for one in (figure, moved, marked)}) == 3


# d on the atlas, correlation, asymmetry and slopes


def test_effects_are_painted_blue_where_too_small_and_named_on_hover():
    labels = np.zeros((4, 5, 6), np.int32)
    labels[:2], labels[2:] = 17, 12
    data = np.full(labels.shape, -1.0, np.float32)
    names = {17: "hippocampus", 12: "putamen"}
    figure = plots.effect_planes(data, labels, AFFINE, (-6, -12, -20), {17: 0.8}, names=names, limit=0.8)
    coronal = pixels(figure.data[1])
    red, _, blue = coronal[0, 0].astype(int)
    assert blue > red and len(set(coronal[0, -1])) == 1  # putamen has no value: grey
    assert (
        figure.data[1].customdata[0][0] == "hippocampus<br>d = +0.80" and figure.data[1].customdata[0][-1] == "putamen"
    )
    assert "No effect size" in texts(plots.effect_planes(data, labels, AFFINE, (0, 0, 0), {}, names=names, limit=0.8))


def test_correlation_matrix_is_symmetric_around_zero():
    table = pd.DataFrame([[0.0, 0.4], [0.4, 0.0]], index=["a", "b"], columns=["a", "b"])
    trace = plots.correlation_matrix(table).data[0]
    assert trace.zmin == -trace.zmax and np.asarray(trace.z).tolist() == table.to_numpy().tolist()
    assert "at least 10" in texts(plots.correlation_matrix(table.iloc[:0, :0]))


def test_paired_intervals_leave_out_a_side_without_values():
    table = pd.DataFrame({"region": ["a", "b"], "r": [1.0, 2], "l": [0.5, 1], "h": [2.0, 4], "s": [np.nan] * 2})
    figure = plots.paired_intervals(table, {"real": ("r", "l", "h"), "Gen": ("s", "s", "s")}, "%")
    assert [trace.name for trace in figure.data] == ["real"]
    assert list(figure.data[0].error_x.array) == [1, 2] and list(figure.data[0].error_x.arrayminus) == [0.5, 1]
    assert "No values" in texts(plots.paired_intervals(table, {"Gen": ("s", "s", "s")}, "%"))


def test_differences_within_the_engine_s_noise_stand_in_brackets():
    table = effects().query("region != 'insula'").assign(noise_floor=0.5)
    shown = np.asarray(plots.effect_heatmap(table).data[0].text)
    assert shown[0, 0] == "(+0.30)" and shown[1, 0] == "-1.50"
