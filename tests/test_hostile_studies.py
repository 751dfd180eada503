"""Hostile studies: names, spreadsheets' formulas, paths that lead elsewhere, absurd study files, names in image headers."""

import ast
import csv
import gzip
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from core import anatomy, jobs, preprocess, quality, report, workflows
from core.errors import InputError
from core.participants import read_participants
from core.pools import Context
from core.preprocess import pipeline
from core.settings import child_environment, from_environment
from core.store import write_csv, write_json
from core.study import PROVENANCE, CohortSpec, StudySpec, find_cohort, make_spec, read_spec, read_study
from core.tables import FORMULA, csv_text, neutral, read_cells, restored
from core.volume import HALF, Volume, save, template
from core.workflows.results import CASE_COLUMNS, _read_csv, read_results, results_folder
from core.workflows.viewing import case_files, template_files
from tests import hostile
from tests.test_preprocess import write_dicom
from tests.test_workflows import write_qc

ROOT = Path(__file__).resolve().parents[1]
FORMULAS = ("=cmd|' /C calc'!A0", "+1+cmd|x", "-2+3+cmd|x", "@SUM(1+1)*cmd|x", "=1+1", "-a", "'=x", "''", "＝1", "\t=1")
NAMES = (
    *FORMULAS[:8],
    "a..",
    "~root",
    "a'b\"c",
    "<script>alert(1)</script>",
    "$(touch x)",
    "; rm -rf x",
    "é漢🧠",
    "%s",
    "a,b",
)
SECRET = hostile.SECRET


def study_of(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return folder / "study.toml"


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(hostile.nifti())


# -- spreadsheets ------------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.one_of(st.sampled_from(f"{FORMULA}'0 1.e"), st.characters(exclude_categories=("Cs",)))))
@settings(max_examples=300, deadline=None)
def test_no_text_is_a_formula_and_every_text_comes_back(text: str):
    safe = neutral(text)
    harmless = safe[:1] not in FORMULA or safe == "" or safe[1:2].isdigit()
    assert harmless
    assert restored(safe) == text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("number", ["-0.5", "+1", "-1e-05", "-0.31 [-0.50, -0.12]", "+0.52 [+0.10, +0.90]", "-12.5%"])
def test_numbers_written_as_text_stay_numbers(number: str):
    assert neutral(number) == number


def test_tables_come_back_as_they_were(tmp_path: Path):
    names = [name.strip() for name in NAMES]
    table = pd.DataFrame({"case": names, "reason": names[::-1], "notes": "a\r\nb", "x": np.linspace(-1, 1, len(names))})
    write_csv(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        cells = [row[:3] for row in csv.reader(file)]
    assert not [cell for row in cells for cell in row if cell[:1] in tuple(FORMULA)]
    read = _read_csv(tmp_path / "t.csv", ("case",))
    assert read["case"].tolist() == names and read["reason"].tolist() == names[::-1]
    np.testing.assert_allclose(read["x"], table["x"], rtol=1e-6)


def test_a_case_that_looks_like_a_formula_keeps_its_row(tmp_path: Path):
    columns = anatomy.volume_columns(True)
    cases = ["-a", "=b", "c", "@d", "-1"]
    volumes = pd.DataFrame(np.full((5, len(columns)), 900.0), index=pd.Index(cases), columns=columns)
    anatomy.write_volumes(volumes, tmp_path / "volumes.csv")
    write_qc(tmp_path / "qc.csv", cases)
    for read, name in ((anatomy.read_volumes, "volumes.csv"), (quality.read_qc, "qc.csv"), (read_cells, "qc.csv")):
        assert list(read(tmp_path / name).index) == cases
    assert "\r\n'-a," in (tmp_path / "qc.csv").read_bytes().decode()
    people = pd.DataFrame({"participant_id": cases, "age": 30.0, "sex": "F"})
    (tmp_path / "p.tsv").write_text(csv_text(people, tabs=True))
    assert read_participants(tmp_path / "p.tsv")["participant_id"].tolist() == cases


def test_headings_are_made_harmless_too():
    table = pd.DataFrame({"=x": [-0.5], "y": ["a"]})
    assert csv_text(table) == "'=x,y\n-0.5,a\n"


def test_tables_are_written_in_one_place():
    for path in (*ROOT.glob("core/**/*.py"), *ROOT.glob("pages/*.py")):
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Attribute)]
        assert path.name == "tables.py" or not [n for n in calls if n.attr == "to_csv"], f"{path.name} writes a CSV"


# -- names -------------------------------------------------------------------------------------------------------------


def test_any_file_name_is_a_case_or_a_reason_and_nothing_is_written_elsewhere(tmp_path: Path, context, monkeypatch):
    folder, out = tmp_path / "in" / "scans", tmp_path / "deep" / "out"
    names = [name for name in NAMES if "/" not in name]
    images(folder, *(f"{name}.nii.gz" for name in names))
    images(folder, "line\nbreak.nii.gz", "[x](https:evil.example).nii.gz", "a\x07b.nii", "bytes\udcff.nii")
    cohort = find_cohort("x", "synthetic", CohortSpec(images=str(folder)), tmp_path)
    assert {case.case_id for case in cohort.cases} == set(names)
    csv_text(pd.DataFrame([vars(item) for item in cohort.rejected])).encode()
    reasons = {item.case_id.split(".")[0]: item.reason for item in cohort.rejected}
    assert sorted(reasons) == ["[x](https:evil", "a\x07b", "bytes\\udcff", "line\nbreak"]
    assert all("Rename it." in reason for reason in reasons.values())
    before = {
        path
        for path in tmp_path.rglob("*")
        if out not in path.parents and context.settings.workspace not in path.parents
    }
    monkeypatch.setattr(pipeline, "preprocess", stub_preprocess)
    monkeypatch.setattr(preprocess, "preprocess", stub_preprocess)
    done = workflows.preprocess_scans(context, [str(folder)], str(out), grid="half")
    assert done["failed"] < done["cases"] == len(names) + 4
    after = {
        path
        for path in tmp_path.rglob("*")
        if out not in path.parents and context.settings.workspace not in path.parents
    }
    assert after - before <= {out, out.parent, context.settings.workspace}
    assert all(path.parent == out for path in out.rglob("*"))


def stub_preprocess(path: Path, grid, *, template=None, threads=1) -> preprocess.Preprocessed:
    """What `preprocess` returns, without its minutes of work: the header goes the same way."""
    from core.volume import load

    scan = preprocess.read_scan(path) if not path.name.endswith((".nii", ".nii.gz")) else load(path)
    brain = replace(anatomical(), case_id=preprocess.scans.case_id_of(path), notes=scan.notes)
    steps = (pipeline.Step("orientation", pipeline._with_notes(scan)[1], 0.0),)
    return preprocess.Preprocessed(brain, scan.affine, steps, 1200.0)


def anatomical() -> Volume:
    return replace(template(HALF), data=template(HALF).data.copy())


@pytest.mark.parametrize(
    "name", ["a\nb", "x\x00y", "\x1b[31m", "![p](https://evil.example/x.png)", "<A href=//x>y</A>"]
)
def test_names_that_pages_would_act_upon_are_refused(tmp_path: Path, name: str):
    for content in (
        {"name": name, "real": {"images": "r"}},
        {"name": "x", "real": {"images": "r"}, "synthetic": {name: {"images": "s"}}},
    ):
        with pytest.raises(InputError) as caught:
            make_spec(content, "study.toml")
        assert (caught.value.where == "study.toml" and "name" in caught.value.what) or "synthetic" in caught.value.what


@pytest.fixture
def app_workspace(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SYNTHSCOPE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(jobs, "ensure_runner", lambda settings: None)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path


def page(name: str, study: str = "") -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=60)
    if study:
        app.session_state["study"] = study
    app.run()
    assert not app.exception, app.exception
    return app


def test_html_in_names_stays_text_on_the_pages(app_workspace: Path):
    evil = "<img src=x onerror=alert(1)>"
    for folder in ("r", "g"):
        images(app_workspace / folder, f"{evil}.nii.gz")
    path = study_of(
        app_workspace, f'name = "{evil}"\ngrid = "half"\n[real]\nimages = "r"\n[synthetic."{evil}"]\nimages = "g"\n'
    )
    workflows.remember_study(from_environment(), str(path))
    folder = results_folder(from_environment(), path)
    row = dict.fromkeys(CASE_COLUMNS, evil) | {"status": "rejected"}
    write_csv(pd.DataFrame([row]), folder / "cases.csv")
    write_json({"complete": True, "gaps": [{"cohort": evil, "what": evil, "reason": evil}]}, folder / PROVENANCE)
    for name in ("overview", "studies", "report"):
        app = page(name, str(path))
        live = [m.value for m in app.markdown if m.allow_html and evil in m.value]
        assert not live, name
    escaped = [m.value for m in page("overview", str(path)).markdown if m.allow_html]
    assert any("&lt;img src=x" in value for value in escaped)


# -- data roots --------------------------------------------------------------------------------------------------------


@pytest.fixture
def roots(tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        images(folder / "imgs", "a.nii.gz", "b.nii.gz")
        (folder / "p.tsv").write_text("participant_id\tage\na\t30\n")
        (folder / "v.csv").write_text("subject,x\na,1\n")
    monkeypatch.setenv("SYNTHSCOPE_DATA_ROOTS", str(inside))
    monkeypatch.setenv("SYNTHSCOPE_WORKSPACE", str(tmp_path / "workspace"))
    return inside, outside


RULE = "outside the data roots"


@pytest.mark.parametrize(
    "text",
    [
        'images = "{out}/imgs/*.nii.gz"',
        'images = "../outside/imgs"',
        'images = "imgs/../../outside/imgs/*.nii.gz"',
        'images = "door/imgs"',
        'images = "imgs"\nparticipants = "../outside/p.tsv"',
        'images = "imgs"\nvolumes = "{out}/v.csv"',
        'images = "imgs"\nqc = "door/v.csv"',
        'images = "imgs"\n[settings]\ntemplate = "../outside/imgs/a.nii.gz"',
        'images = "imgs"\n[synthetic.A]\nimages = "{out}/imgs"',
        'images = "imgs"\n[training]\nimages = "/etc/*"',
    ],
)
def test_a_study_cannot_leave_the_data_roots(roots, text: str, monkeypatch):
    inside, outside = roots
    (inside / "door").symlink_to(outside)
    path = study_of(inside, f'name = "x"\n[real]\n{text.replace("{out}", str(outside))}\n')
    with pytest.raises(InputError, match=RULE) as caught:
        read_study(path)
    assert "SYNTHSCOPE_DATA_ROOTS" in caught.value.remedy
    monkeypatch.delenv("SYNTHSCOPE_DATA_ROOTS")
    if "/etc" not in text:
        assert read_study(path).real.cases


def test_cases_that_lead_outside_are_rejected_and_the_others_go_on(roots, monkeypatch):
    inside, outside = roots
    (inside / "imgs" / "c.nii.gz").symlink_to(outside / "imgs" / "a.nii.gz")
    (inside / "imgs" / "d.nii.gz").symlink_to(inside / "imgs" / "a.nii.gz")
    (inside / "imgs" / "loop.nii.gz").symlink_to(inside / "imgs" / "loop.nii.gz")
    path = study_of(inside, 'name = "x"\n[real]\nimages = "imgs"\n')
    cohort = read_study(path).real
    assert [case.case_id for case in cohort.cases] == ["a", "b", "d"]
    assert {item.case_id for item in cohort.rejected} == {"c.nii.gz", "loop.nii.gz"}
    assert RULE in next(item.reason for item in cohort.rejected if item.case_id == "c.nii.gz")
    (inside / "series").mkdir()
    (inside / "series" / "1.dcm").symlink_to(outside / "p.tsv")
    assert RULE in find_cohort("x", "real", CohortSpec(images="ser*", raw=True), inside).rejected[0].reason


def test_a_symlink_laid_after_the_study_was_read_is_refused(roots, context: Context):
    inside, outside = roots
    study = read_study(study_of(inside, 'name = "x"\ngrid = "half"\n[real]\nimages = "imgs"\n'))
    (inside / "imgs" / "a.nii.gz").unlink()
    (inside / "imgs" / "a.nii.gz").symlink_to(outside / "imgs" / "a.nii.gz")
    rows = workflows.cohorts.prepare(context, study, study.real).rows
    assert RULE in rows[0]["reason"]


def test_forms_and_verbs_keep_to_the_roots(roots, context: Context, tmp_path: Path):
    inside, outside = roots
    study_of(outside, 'name = "x"\n[real]\nimages = "imgs"\n')
    (inside / "door").symlink_to(outside)
    spec = StudySpec(name="x", real=CohortSpec(images=str(outside / "imgs")))
    tries = {
        "open": lambda: workflows.remember_study(context.settings, str(outside)),
        "open through a link": lambda: read_spec(inside / "door" / "study.toml"),
        "create outside": lambda: workflows.create_study(context.settings, str(outside / "new"), spec),
        "create inside, images outside": lambda: workflows.create_study(context.settings, str(inside / "new"), spec),
        "folder": lambda: workflows.segment_folder(context, str(outside / "imgs"), str(inside / "o"), "embedded"),
        "preprocess": lambda: workflows.preprocess_scans(context, [str(outside / "imgs")], str(inside / "o")),
        "features": lambda: workflows.evaluate_folders(context, str(outside / "v.csv"), {}, str(inside / "m.csv")),
        "checkpoint": lambda: workflows.generate(context, "vae-gan", str(outside / "v.csv"), 1, 0, str(inside / "o")),
        "samples": lambda: workflows.generate(context, "vae-gan", str(inside / "v.csv"), 1, 0, str(outside / "o")),
        "training": lambda: workflows.train_generator(context, "vae-gan", str(inside), str(outside / "o")),
    }
    before = sorted(outside.rglob("*"))
    for name, attempt in tries.items():
        with pytest.raises(InputError, match=RULE):
            attempt()
            pytest.fail(name)
    assert sorted(outside.rglob("*")) == before
    assert workflows.previews_of(str(outside / "imgs")) == [] and workflows.curve_of(str(outside)) == []
    assert not (inside / "new" / "study.toml").exists()


def test_pages_refuse_typed_paths_outside_the_roots(roots, app_workspace: Path, monkeypatch):
    _, outside = roots
    study_of(outside, 'name = "x"\n[real]\nimages = "imgs"\n')
    app = page("studies")
    app.text_input(key="open_path").set_value(str(outside)).run()
    next(button for button in app.button if button.label == "Open").click().run()
    assert any(RULE in error.value for error in app.error)
    app = page("studies")
    app.text_input(key="split_path").set_value(str(outside / "p.tsv")).run()
    assert any(RULE in error.value for error in app.error)


def test_workspace_and_installation_are_always_allowed_and_children_know_the_roots(roots, monkeypatch):
    from core.settings import refuse_outside

    inside, outside = roots
    found = from_environment()
    assert found.data_roots == (inside,)
    assert child_environment(found)["SYNTHSCOPE_DATA_ROOTS"] == str(inside)
    for path in (found.workspace / "x", inside / "x", ROOT / "assets" / "embedded.safetensors"):
        refuse_outside(path)
    for path in (inside.with_name("inside2"), outside, "/", "", "a\0b"):
        with pytest.raises(InputError):
            refuse_outside(path)
    monkeypatch.setenv("SYNTHSCOPE_DATA_ROOTS", f"{inside}:{outside}")
    refuse_outside(outside / "x")


# -- absurd study files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = " + "[" * 50_000, "not valid TOML"),
        ("x = " + "{a=" * 20_000, "not valid TOML"),
        ("[" + "a." * 20_000 + "a]\n", "unknown key|not valid TOML|missing"),
        ("# " + "x" * 2**21, "bytes are no study file"),
        ('name = "x"\n[real]\nimages = "r"\n[settings]\nseed = ' + "9" * 10_000, "not valid TOML|seed"),
        ('name = "x"\n[real]\nimages = "r"\n[settings]\nseed = 1e400', "seed"),
        ('name = "x"\n[real]\nimages = "r"\n[settings]\nqc_fail_rate = nan', "qc_fail_rate"),
        (
            "name = 3\nreal = 4\nsynthetic = 5\ntraining = []\nsettings = true",
            "name.*real.*training.*synthetic.*settings",
        ),
        ('name = "x"\n[real]\nimages = ["a"]\n', "real.images"),
        ('name = "x"\n[real]\nimages = "a\\u0000b"\n', "real.images"),
        ('name = "x"\n[real]\nimages = "' + "a" * 5000 + '"\n', "real.images"),
        ('name = "x"\n[real]\nimages = "' + "a" * 3000 + '"\n', "no such pattern|No image"),
        ('name = "x"\n[real]\nimages = "**/**/**/*.nii"\n', "more than 2 times"),
        ("\n".join(f"k{i} = 1" for i in range(3000)), "more"),
        ("name = '\udcff'", "not valid TOML"),
    ],
)
def test_absurd_study_files_are_explained(tmp_path: Path, text: str, what: str):
    (tmp_path / "study.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=what) as caught:
        read_study(tmp_path / "study.toml")
    assert caught.value.where and caught.value.remedy
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("brain.nii.gz", gzip.compress(hostile.nifti()), r"an image \(.nii.gz\), not a study"),
        ("BRAIN.NII", hostile.nifti(), r"an image \(.nii\), not a study"),
        ("empty.mgz", b"", r"an image \(.mgz\), not a study"),
        ("study.toml", gzip.compress(hostile.nifti()), "not a text file, so not a study"),
        ("study.toml", hostile.nifti(), "not a text file, so not a study"),
        ("weights.npz", b"PK\x03\x04" + bytes(300), "not a text file, so not a study"),
        ("study.toml", 'name = "x"\n'.encode("utf-16"), "UTF-16, not in UTF-8"),
    ],
)
def test_what_is_opened_as_a_study_and_is_none_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=what) as caught:
        read_spec(tmp_path / name)
    assert caught.value.where == str(tmp_path / name) and caught.value.remedy
    assert not any(word in str(caught.value) for word in ("TOML (", "codec", "byte", "missing"))


def test_the_studies_page_says_that_an_image_is_no_study(app_workspace: Path):
    images(app_workspace, "a.nii.gz")
    app = page("studies")
    app.text_input(key="open_path").set_value(str(app_workspace / "a.nii.gz")).run()
    next(button for button in app.button if button.label == "Open").click().run()
    (said,) = [error.value for error in app.error if "a.nii.gz" in error.value]
    assert said.startswith("**This is an image (.nii.gz), not a study.**") and "make one on the page Studies" in said


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "3", '{"study.toml": 3, "tables": [], "provenance": 1, "version": 2, "format": 1}']
)
def test_absurd_bundles_and_records_are_explained(tmp_path: Path, context: Context, text: str):
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(InputError):
        report.rerun(context, str(tmp_path / "provenance.json"), str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(InputError):
        workflows.simulate_cohort(context, str(tmp_path), 1, 0, "half")


# -- names in image headers --------------------------------------------------------------------------------------------


def every_byte(folder: Path) -> dict[str, bytes]:
    """What the files of a folder hold, unpacked."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found[str(path)] = content + (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b"")
            if zipfile.is_zipfile(io.BytesIO(content)):
                with zipfile.ZipFile(path) as archive:
                    found |= {f"{path}/{name}": archive.read(name) for name in archive.namelist()}
    return found


def assert_no_secret(folder: Path) -> None:
    content = every_byte(folder)
    assert content
    assert not [name for name, data in content.items() if any(s in data for s in (SECRET, b"JANE", SECRET.lower()))]


def named_brain(path: Path, shift: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    brain = anatomical()
    content = hostile.nifti(np.roll(brain.data, shift, axis=1) * (1 - 0.01 * shift), brain.affine)
    assert SECRET in content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_saved_volume_holds_no_text_of_its_source(tmp_path: Path, name: str):
    from core.volume import load

    named_brain(tmp_path / "in" / name)
    volume = load(tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    save(volume, tmp_path / "out" / name)
    assert_no_secret(tmp_path / "out")
    header = nib.load(tmp_path / "out" / name).header
    assert not header.extensions
    assert {bytes(header[field].item()) for field in ("descrip", "aux_file", "intent_name", "db_name")} == {b""}


def test_preprocessed_scans_hold_no_name_of_a_patient(tmp_path: Path, context: Context, monkeypatch):
    source = tmp_path / "in"
    named_brain(source / "a.nii.gz")
    (source / "b.nrrd").write_bytes(hostile.nrrd(f"content: {SECRET.decode()}\n"))
    (source / "broken.nrrd").write_bytes(hostile.nrrd(f"{SECRET.decode()} is no field\n"))
    mgz = nib.MGHImage(np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32), np.eye(4)).to_bytes()
    (source / "c.mgz").write_bytes(gzip.compress(mgz + SECRET * 9))
    stack = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 900, (64, 64, 64)).astype(np.int16))
    write_dicom(stack, source / "series", "1.2.826.0.1.3680043.2.1125.7", SECRET.decode())
    assert SECRET in (source / "series" / "7_000.dcm").read_bytes()
    monkeypatch.setattr(preprocess, "preprocess", stub_preprocess)
    done = workflows.preprocess_scans(context, [str(source)], str(tmp_path / "out"), grid="half")
    assert done["cases"] == 5 and done["failed"] == 1, done
    assert_no_secret(tmp_path / "out")
    assert_no_secret(context.settings.workspace)


def test_viewer_tables_and_report_hold_no_name_of_a_patient(tmp_path: Path, context: Context):
    data = tmp_path / "data"
    for place, case in enumerate(("real/r0", "real/r1", "real/r2", "gen/g0", "gen/g1", "gen/g2")):
        named_brain(data / f"{case}.nii.gz", place)
    (data / "gen" / "broken.nii.gz").write_bytes(gzip.compress(hostile.nifti())[:-400])
    tables = 'volumes = "{0}.csv"\nqc = "{0}_qc.csv"\n'
    columns = anatomy.volume_columns(True)
    for name, letter in (("real", "r"), ("gen", "g")):
        cases = [f"{letter}{i}" for i in range(3)]
        numbers = np.random.default_rng(1).uniform(900, 1100, (3, len(columns)))
        anatomy.write_volumes(pd.DataFrame(numbers, index=cases, columns=columns), data / f"{name}.csv")
        write_qc(data / f"{name}_qc.csv", cases)
    path = study_of(
        data,
        'name = "x"\ngrid = "half"\n[real]\nimages = "real"\n'
        + tables.format("real")
        + '[synthetic.Gen]\nimages = "gen"\n'
        + tables.format("gen")
        + "[settings]\nencoders = []\nn_boot = 2\n",
    )
    workflows.evaluate(context, str(path), str(tmp_path / "results"))
    report.publish(context, str(path))
    study = read_study(path)
    for name, content in (
        ("case", case_files(context.settings, study, "Gen", "g0")),
        ("template", template_files(study)),
    ):
        for part in filter(None, content):
            (tmp_path / "results" / f"{name}.nii.gz").write_bytes(part)
    statuses = read_results(context.settings, path).cases.set_index("case")["status"]
    assert statuses["broken"] == "rejected" and (statuses.drop("broken") == "ok").all()
    assert_no_secret(tmp_path / "results")
    assert_no_secret(context.settings.workspace)
    assert SECRET not in json.dumps(workflows.read_results(context.settings, path).provenance).encode()
