import pytest

from tests.faults.scene import undisturbed


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Data, tables and number of artefacts of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "data", *undisturbed(folder / "data", folder)
