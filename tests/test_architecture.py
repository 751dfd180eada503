"""The import table of the design, as data."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCIENCE = (
    "preprocess",
    "simulate",
    "quality",
    "anatomy",
    "segmentation",
    "encoders",
    "metrics",
    "generators",
    "image_checks",
    "agreement",
)
FRAME = ("volume", "tables", "checkpoint", "participants", "study", "store", "pools", "cluster", "jobs", "readings")
BASE = ("errors", "settings")

# Each module may import only what is listed; science modules do not import each other.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "settings": ("errors",),
    "roles": ("errors",),
    "audit": BASE,
    "volume": ("errors", "volume"),
    "tables": ("errors", "volume"),
    "participants": ("errors", "tables"),
    "checkpoint": ("errors",),
    "study": (*BASE, "participants", "study", "volume"),
    "store": ("errors", "tables", "volume"),
    "pools": BASE,
    "cluster": (*BASE, "pools"),
    "jobs": (*BASE, "pools", "cluster", "store"),
    "readings": (*BASE, "study"),
    **{name: ("errors", "volume", "tables", "checkpoint", name) for name in SCIENCE},
    # The one bridge: an encoder is the bottleneck of the segmentation network.
    "encoders": ("errors", "volume", "tables", "checkpoint", "encoders", "segmentation"),
    "workflows": (*BASE, *FRAME, *SCIENCE, "workflows"),
    "plots": (*BASE, *FRAME, *SCIENCE, "plots"),
    "report": (*BASE, *FRAME, *SCIENCE, "workflows", "plots", "report"),
    "__main__": (*BASE, *FRAME, *SCIENCE, "workflows", "plots", "report"),
}
# Where a package of others may be imported.
OWNERS = {
    "streamlit": ("app.py", "pages/"),
    "starlette": ("app.py", "pages/headers.py"),
    "nibabel": ("core/volume/files.py",),
    "dask": ("core/cluster.py",),
    "distributed": ("core/cluster.py",),
    "plotly": ("core/plots/", "core/report/"),
    "matplotlib": ("core/plots/static.py",),
    "pptx": ("core/report/slides.py",),
}
SOURCES = sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("pages/*.py"), ROOT / "app.py"])


def imports(path: Path) -> set[str]:
    """Full names of imported modules; ``from core import x`` counts as core.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "core":
                found |= {f"core.{alias.name}" for alias in node.names}
    return found


def unit(path: Path) -> str:
    relative = path.relative_to(ROOT / "core")
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in SOURCES if "core" in p.parts], ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports_point_one_way(path: Path):
    name = unit(path)
    if name == "__init__":
        return
    assert name in ALLOWED, f"{name} is not in the import table"
    used = {module.split(".")[1] for module in imports(path) if module.startswith("core.")} - {"__version__"}
    wrong = used - set(ALLOWED[name])
    assert not wrong, f"core/{name} may not import {sorted(wrong)}"
    assert not {m for m in imports(path) if m.split(".")[0] in ("pages", "app")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_are_imported_only_by_their_owners(path: Path):
    relative = str(path.relative_to(ROOT))
    for module in imports(path):
        owners = OWNERS.get(module.split(".")[0])
        assert owners is None or relative.startswith(owners), f"{relative} may not import {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_environment_is_read_in_settings_and_nothing_is_unpickled(path: Path):
    relative = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            assert relative == "core/settings.py", f"{relative}:{node.lineno} reads the environment"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("weights_only") == "True", f"{relative}:{node.lineno} would execute a pickle"
    assert not imports(path) & {"pickle", "cloudpickle", "dill", "joblib"}


def test_pages_do_not_compute():
    for path in ROOT.glob("pages/*.py"):
        wrong = {m.split(".")[0] for m in imports(path)} & {
            "torch",
            "scipy",
            "dask",
            "distributed",
            "sklearn",
            "SimpleITK",
        }
        assert not wrong, f"{path.name} imports {sorted(wrong)}"


def test_pages_act_only_where_roles_are_checked():
    """What needs a role goes through pages/access.py, which checks it and records it."""
    actions = {"submit", "cancel", "retry", "create_study", "change_study", "copy_study"}
    actions |= {"remember_study", "start_session", "save_rating"}
    for path in [*ROOT.glob("pages/*.py"), ROOT / "app.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func).split(".") if isinstance(node, ast.Call) else [""]
            if path.name != "access.py" and name[-1] in {*actions, "download_button"}:
                assert name[0] == "access", f"{path.name}:{node.lineno} calls {'.'.join(name)}"


def test_the_table_names_what_exists():
    units = {unit(path) for path in ROOT.glob("core/**/*.py")} - {"__init__"}
    assert units <= set(ALLOWED)
