import pytest

from core.errors import InputError
from core.roles import ROLES, allows, read_roles, role_of


def roles(tmp_path, text):
    path = tmp_path / "roles.toml"
    path.write_text(text, encoding="utf-8")
    return read_roles(path)


def test_an_address_leads_before_its_domain_and_both_before_the_default(tmp_path):
    known = roles(tmp_path, 'default = "viewer"\nreader = ["*@lab.org"]\neditor = [" Ann@Lab.org "]\n')
    assert role_of("ann@lab.org", known) == role_of("ANN@LAB.ORG ", known) == "editor"
    assert role_of("bob@lab.org", known) == "reader"
    assert role_of("eve@else.org", known) == role_of("", known) == "viewer"


def test_without_a_default_strangers_are_refused(tmp_path):
    known = roles(tmp_path, 'viewer = ["*@lab.org"]\n')
    for stranger in (
        "eve@else.org",
        "ann@evil-lab.org",
        "ann@lab.org.evil.org",
        "*@lab.org.",
        "default",
        "",
        "lab.org",
    ):
        assert role_of(stranger, known) is None


def test_each_role_may_do_what_those_before_it_may():
    order = list(ROLES)
    assert order == ["viewer", "reader", "editor"]
    assert [[allows(role, needed) for needed in order] for role in order] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert not any(allows(role, needed) for role in (None, "", "root") for needed in order)


@pytest.mark.parametrize(
    "text",
    [
        "viewer = ",
        'owner = ["ann@lab.org"]',
        'viewer = "ann@lab.org"',
        "viewer = [1]",
        'viewer = ["ann"]',
        'viewer = ["*"]',
        'viewer = ["a*@lab.org"]',
        'viewer = ["*@*.org"]',
        'viewer = ["ann@lab.org"]\neditor = ["ANN@lab.org"]',
        'default = "root"',
        "default = []",
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"roles\.toml"):
        roles(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        read_roles(tmp_path / "nothing.toml")
