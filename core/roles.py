"""Who may do what on a server: roles of people, by their e-mail addresses, from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from core.errors import InputError

# Each may do what those before it may, and more.
ROLES = {
    "viewer": "looks at everything",
    "reader": "rates in the reading room too",
    "editor": "starts jobs and makes studies too",
}


def read_roles(path: Path) -> dict[str, str]:
    """Read which role each address or ``*@domain`` has; ``default`` is everybody else's, when the file names one.

    Raises
    ------
    InputError
        When the file is missing or not valid, names an unknown role, or names somebody twice.
    """
    remedy = 'Write, for example: viewer = ["*@lab.org"], editor = ["ann@lab.org"]. See docs/server.md.'
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"the roles cannot be read: {error}.", str(path), remedy) from error
    found: dict[str, str] = {}
    for role, members in content.items():
        if role == "default":
            if members not in list(ROLES):
                raise InputError(f"the default role {members!r} is unknown.", str(path), f"Roles: {', '.join(ROLES)}.")
            found["default"] = members
            continue
        if role not in ROLES or not isinstance(members, list) or not all(isinstance(m, str) for m in members):
            raise InputError(f"{role!r} is no role with a list of addresses.", str(path), remedy)
        for member in (m.strip().casefold() for m in members):
            name, _, domain = member.rpartition("@")
            if not name or not domain or "*" in domain or ("*" in name and name != "*"):
                raise InputError(f"{member!r} is neither an address nor *@domain.", str(path), remedy)
            if member in found:
                raise InputError(f"{member} has two roles.", str(path), "Leave the one that is meant.")
            found[member] = role
    return found


def role_of(email: str, roles: Mapping[str, str]) -> str | None:
    """Return somebody's role: by the address, else by its domain, else the default; None when there is none."""
    address = email.strip().casefold()
    _, at, domain = address.rpartition("@")
    return roles.get(address) or (roles.get(f"*@{domain}") if at else None) or roles.get("default")


def allows(role: str | None, needed: str) -> bool:
    """Tell whether a role may do what needs another."""
    order = list(ROLES)
    return role in ROLES and order.index(str(role)) >= order.index(needed)
