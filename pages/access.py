"""Who uses the app and what they may do: login, roles, and every action that needs one, checked and recorded.

Without login (no ``[auth]`` in .streamlit/secrets.toml) everybody is an editor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import streamlit as st

from core import audit, jobs, readings, workflows
from core.errors import InputError
from core.readings import Item, Mode, Rating, Session
from core.roles import allows, read_roles, role_of
from core.settings import Settings, from_environment
from core.study import Study, StudySpec, read_study
from core.workflows.evaluation import check_choices

NEED = {
    "reader": "Needs the role reader: ask the administrator of this server.",
    "editor": "Needs the role editor: ask the administrator of this server.",
}


# -- who ---------------------------------------------------------------------------------------------------------------


def login_configured() -> bool:
    """Tell whether people must log in; nobody gets in while the secrets are there but cannot be read."""
    try:
        return "auth" in st.secrets
    except FileNotFoundError as error:
        if any(Path(path).exists() for path in st.get_option("secrets.files")):
            _stop("The secrets of this server cannot be read, so nobody can log in. Tell its administrator.", error)
        return False


def user() -> str:
    """Return the e-mail address of who is logged in; "" without login, or when the provider does not vouch for it."""
    return _address(st.user.to_dict()) if login_configured() else ""


def _address(facts: Mapping[str, Any]) -> str:
    if not facts.get("is_logged_in") or facts.get("email_verified") is False:
        return ""
    return str(facts.get("email") or "").strip()


def may_fetch(cookie: bytes | None) -> bool:
    """Tell whether a browser with this login, as the cookie's content says it, may have the files of pages."""
    if not login_configured():
        return True
    address = _address(json.loads(cookie)) if cookie else ""
    try:
        return bool(address) and role_of(address, read_roles(Path(from_environment().roles))) is not None
    except InputError:
        return False  # the pages say why


def role(settings: Settings) -> str | None:
    """Return the role of who uses this session; None when refused."""
    if not login_configured():
        if settings.roles:  # somebody wanted limits: an app without login must not ignore them
            _stop("This server has roles but no login, so nobody can use it. Tell its administrator.")
        return "editor"
    if not settings.roles:
        _stop("This server has a login but no roles, so nobody can use it. Tell its administrator: SYNTHSCOPE_ROLES.")
    try:
        roles = read_roles(Path(settings.roles))
    except InputError as error:
        _stop("The roles of this server cannot be read, so nobody can use it. Tell its administrator.", error)
    return role_of(user(), roles) if user() else None


def require(settings: Settings) -> None:
    """Show the login, or that somebody is refused, and stop; go on for everybody else."""
    if login_configured() and not st.user.get("is_logged_in"):
        st.title("SynthScope")
        st.caption("Are the synthetic brains anatomically plausible?")
        sections = st.secrets["auth"].items()
        named = [name for name, value in sections if isinstance(value, Mapping) and "client_id" in value]
        for provider in named or [None]:
            label = f"Log in with {provider}" if provider else "Log in"
            st.button(label, type="primary", icon=":material/login:", on_click=st.login, args=(provider,))
        st.stop()
    if role(settings) is None:
        who = user() or "The account (its provider gives no verified e-mail address)"
        st.error(f"{who} may not use this server. Ask its administrator for a role.", icon=":material/block:")
        st.button("Log out", on_click=st.logout)
        st.stop()


def show_user(settings: Settings) -> None:
    """Show in the sidebar who is logged in, with the way out."""
    if login_configured():
        with st.sidebar.container(border=True):
            st.caption(f"{user()} · {role(settings)}")
            st.button("Log out", key="log_out", icon=":material/logout:", on_click=st.logout, width="stretch")


def _stop(message: str, error: Exception | None = None) -> NoReturn:
    if error:
        logging.getLogger(__name__).error("%s %s", message, error)  # details are for the server's log alone
    st.error(message, icon=":material/block:")
    st.stop()


# -- what --------------------------------------------------------------------------------------------------------------


def may(needed: str) -> bool:
    """Tell whether who uses this session has a role."""
    return allows(role(from_environment()), needed)


def lock(needed: str, *, disabled: bool = False, help: str | None = None) -> dict[str, Any]:
    """Return what disables a button for those who lack a role, with the reason on hover."""
    allowed = may(needed)
    return {"disabled": disabled or not allowed, "help": help if allowed else NEED[needed]}


def check(settings: Settings, needed: str, action: str, **facts: Any) -> None:
    """Stop, and record it, when who uses this session lacks a role: a disabled button alone stops no one."""
    if not allows(role(settings), needed):
        audit.record(settings, user(), "refused", {"what": action, **facts})
        _stop(f"{action[:1].upper()}{action[1:]}: refused. {NEED[needed]}")


def submit(settings: Settings, function: str, arguments: dict[str, Any], title: str) -> str:
    """Queue a job; see `core.jobs.submit`."""
    check(settings, "editor", "start a job", title=title)
    job = jobs.submit(settings, function, arguments, title)
    audit.record(settings, user(), "start a job", {"job": job, "title": title, "arguments": arguments})
    return job


def cancel(settings: Settings, job: str) -> None:
    """Ask a job to stop."""
    check(settings, "editor", "cancel a job", job=job)
    jobs.cancel(settings, job)
    audit.record(settings, user(), "cancel a job", {"job": job, "title": jobs.status(settings, job).title})


def retry(settings: Settings, job: str) -> None:
    """Queue an ended job again."""
    check(settings, "editor", "retry a job", job=job)
    jobs.retry(settings, job)
    audit.record(settings, user(), "retry a job", {"job": job, "title": jobs.status(settings, job).title})


def create_study(settings: Settings, folder: str, spec: StudySpec) -> str:
    """Write a study.toml and remember it."""
    check(settings, "editor", "make a study", folder=folder)
    path = workflows.create_study(settings, folder, spec)
    audit.record(settings, user(), "make a study", {"study": path, "name": spec.name})
    return path


def change_study(settings: Settings, path: str, former: StudySpec, spec: StudySpec) -> None:
    """Write a study.toml anew; see `core.workflows.change_study`."""
    check(settings, "editor", "change a study", study=path)
    workflows.change_study(settings, path, former, spec)
    audit.record(
        settings, user(), "change a study", {"study": path, "name": spec.name, "cohorts": list(spec.synthetic)}
    )


def copy_study(settings: Settings, path: str, spec: StudySpec, folder: str) -> str:
    """Write a changed study as one of its own; see `core.workflows.copy_study`."""
    check(settings, "editor", "copy a study", study=path, folder=folder)
    made = workflows.copy_study(settings, path, spec, folder)
    audit.record(settings, user(), "copy a study", {"study": made, "from": path, "name": spec.name})
    return made


def open_study(settings: Settings, path: str) -> str:
    """Remember a study file, so that everybody finds it."""
    check(settings, "editor", "open a study", study=path)
    check_choices(read_study(path))
    path = workflows.remember_study(settings, path)
    audit.record(settings, user(), "open a study", {"study": path})
    return path


def start_session(settings: Settings, study: Study, reader: str, mode: Mode, plan: Sequence[Item], seed: int) -> str:
    """Begin to read; see `core.readings.start_session`."""
    check(settings, "reader", "begin a reading", reader=reader)
    session = readings.start_session(settings, study, user() or reader, mode, plan, seed)
    facts = {"session": session, "reader": user() or reader, "study": study.name, "mode": mode}
    audit.record(settings, user(), "begin a reading", facts)
    return session


def save_rating(settings: Settings, session: Session, position: int, rating: Rating) -> None:
    """Save a rating; the record tells nothing that would unblind, or the answer."""
    check(settings, "reader", "rate a case", session=session.id)
    if not owns(session):
        _stop("This reading belongs to another reader.")
    readings.save_rating(settings, session, position, rating)
    facts = {"session": session.id, "reader": session.reader, "case": position + 1}
    audit.record(settings, user(), "rate a case", facts)


def owns(session: Session) -> bool:
    """Tell whether a reading is of who uses this session; without login a reader's name is all there is."""
    return not login_configured() or session.reader == user()


def download(label: str, data: Any, file: str, mime: str, *, place: Any = st, **options: Any) -> None:
    """Show a download button, each use of which is recorded."""
    place.download_button(label, data, file, mime, on_click=_exported, args=(file,), **options)


def _exported(file: str) -> None:
    audit.record(from_environment(), user(), "export", {"file": file})
