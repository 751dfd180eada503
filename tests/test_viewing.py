"""What the viewer shows: files, regions, thumbnails, scores of single cases."""

import gzip
import io

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from core import anatomy, plots
from core.image_checks import CHECKS
from core.quality import QC_SCORES
from core.settings import Settings
from core.store import write_csv
from core.study import CohortSpec, StudySpec, read_study, write_spec
from core.volume import HALF, Volume
from core.workflows import read_results, results_folder
from core.workflows.viewing import (
    SHEET_COLUMNS,
    case_scores,
    contact_sheet,
    draw_thumbnails,
    image_file,
    labels_file,
    nearest_by_tiv,
    plane_image,
    region_facts,
    template_files,
    undrawn,
)


@pytest.fixture
def study(tmp_path, settings, write_brains):
    write_brains(tmp_path / "real", 3, prefix="r")
    write_brains(tmp_path / "alpha", 2, seed=1, prefix="a")
    cohort = {"Alpha": CohortSpec(images="alpha/*.nii.gz")}
    write_spec(
        StudySpec(name="five", grid="half", real=CohortSpec(images="real/*.nii.gz"), synthetic=cohort),
        tmp_path / "study.toml",
    )
    return read_study(tmp_path / "study.toml")


@pytest.fixture
def results(study, settings: Settings):
    """Volumes of all cases (TIV 1000 to 1004), QC scores, one percentile."""
    folder = results_folder(settings, study.path)
    cells = [(cohort.name, case.case_id) for cohort in study.cohorts for case in cohort.cases]
    named = pd.DataFrame(cells, columns=["cohort", "subject"])
    columns = anatomy.volume_columns(True)
    volumes = pd.DataFrame(np.arange(5)[:, None] + np.full((5, len(columns)), 500.0), columns=columns)
    volumes[anatomy.TIV] = [1000.0, 1001, 1004, 1003.9, 1000.2]
    write_csv(pd.concat([named, volumes], axis=1), folder / "volumes.csv")
    rank = {"cohort": "Alpha", "subject": "a-01", "group": "subcortical", "region": "hippocampus"}
    write_csv(pd.DataFrame([rank | {"volume": 504.0, "z": 1.0, "percentile": 84.0}]), folder / "percentiles.csv")
    return read_results(settings, study.path)


def read(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def test_the_image_file_keeps_place_and_intensity(half_brain):
    image = read(image_file(half_brain))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine, HALF.affine)
    np.testing.assert_allclose(image.get_fdata(), half_brain.data, atol=1 / 255 + 1e-6)
    assert image_file(half_brain) == image_file(half_brain)


def test_the_label_file_counts_rows_of_the_label_table():
    ids = anatomy.structures()["id"].to_numpy()
    data = np.zeros((len(ids) + 2, 1, 1), dtype=np.int32)
    data[: len(ids), 0, 0] = ids
    data[-1] = 999  # in no row
    image = read(labels_file(Volume(data, np.eye(4))))
    assert image.header.get_intent()[0] == "label"
    assert np.asarray(image.dataobj).ravel().tolist() == [*range(1, len(ids) + 1), 0, 0]


def test_regions_know_volume_and_percentile(results):
    facts = region_facts(results, "Alpha")
    table = anatomy.structures()
    row = 1 + table.index[table["name"] == "right hippocampus"][0]
    assert facts["a-01"][row] == (504.0, 84.0)
    assert facts["a-00"][row] == (503.0, None)
    assert region_facts(results, "nobody") == {}
    assert region_facts(results, "Alpha", "a-01") == {"a-01": facts["a-01"]}
    assert region_facts(results, "real", "a-01") == {}


def test_the_nearest_in_size_is_another_case(results):
    assert nearest_by_tiv(results, "Alpha", "a-00", "real") == "r-02"
    assert nearest_by_tiv(results, "Alpha", "a-01", "real") == "r-00"
    assert nearest_by_tiv(results, "real", "r-00", "real") == "r-01"
    assert nearest_by_tiv(results, "Alpha", "gone", "real") is None


def test_the_template_lies_on_the_grid_of_the_study(study):
    image, labels = (read(content) for content in template_files(study))
    assert image.shape == labels.shape == HALF.shape
    inside = np.asarray(labels.dataobj) > 0
    assert image.get_fdata()[inside].mean() > image.get_fdata()[~inside].mean() + 0.5


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_planes_show_left_on_the_left_and_up_at_the_top(plane):
    data = np.full((4, 6, 8), -1.0, dtype=np.float32)
    data[0], data[:, -1], data[:, :, -1] = 1, 1, 1  # left, anterior, superior
    image = plane_image(Volume(data, np.eye(4)), plane)
    assert image[0].mean() == 255  # superior, or anterior in the axial plane
    edge = 0 if plane != "sagittal" else -1
    assert image[:, edge].mean() == 255 and image[1:, -1 - edge].max() == 0


def test_the_contact_sheet_holds_every_case_and_says_which_it_lacks(study, settings, context):
    real, alpha = ([(cohort.name, case.case_id) for case in cohort.cases] for cohort in study.cohorts)
    assert undrawn(settings, study, real) == 3
    assert draw_thumbnails(context, str(study.path)) == {"drawn": 5, "failed": 0}
    assert undrawn(settings, study, real) == 0
    study.cohort("Alpha").cases[0].path.write_bytes(b"no longer an image")
    sheet = contact_sheet(settings, study, alpha, "axial")
    assert sheet.places == {("Alpha", "a-01"): 0}
    assert list(sheet.missing) == [("Alpha", "a-00")] and "a-00" in sheet.missing["Alpha", "a-00"]
    assert undrawn(settings, study, alpha) == 0
    sheet = contact_sheet(settings, study, [*alpha, *real[::-1]], "axial")
    picture = np.asarray(Image.open(io.BytesIO(sheet.image)))
    width, height = sheet.cell
    assert picture.shape == (height, SHEET_COLUMNS * width) and (width, height) == (72, 96)
    assert sheet.places == {pair: place for place, pair in enumerate([alpha[1], *real[::-1]])}
    assert picture[:, 3 * width : 4 * width].mean() > 20 > 5 > picture[:, 4 * width :].mean()


def test_every_score_of_a_case_can_be_sorted_by(results):
    table = case_scores(results, {"real": ["r-00"], "Alpha": ["a-01", "new"]}).set_index("case")
    assert table.loc["r-00", "TIV"] == 1000 and np.isnan(table.loc["new", "TIV"])
    assert table.loc["a-01", "percentile, hippocampus"] == 84
    assert {"lowest QC", *QC_SCORES, *CHECKS} <= set(table.columns)


def test_radiological_slices_show_the_left_on_the_right(half_brain):
    views = [plots.triplanar(half_brain.data, HALF.affine, (0, 0, 0), radiological=flag) for flag in (False, True)]
    letters = [{a.text: a.x for a in view.layout.annotations if a.xref == "x3 domain"} for view in views]
    assert letters[0]["L"] < letters[0]["R"] and letters[1]["L"] > letters[1]["R"]
    neurological, radiological = ([view.layout[f"xaxis{n}"].range for n in ("", "2", "3")] for view in views)
    assert radiological[0] == neurological[0]  # the sagittal plane has no left
    assert [tuple(r) for r in radiological[1:]] == [tuple(r)[::-1] for r in neurological[1:]]
