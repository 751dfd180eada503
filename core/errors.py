"""The four errors a user can meet; each says what is wrong, where, and what to do."""

from __future__ import annotations


class SynthScopeError(Exception):
    """Base of all errors shown to users.

    Parameters
    ----------
    what : str
        What is wrong, with the expected and the found value.
    where : str
        File, case, column or option concerned.
    remedy : str
        What the user can do about it.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        """Join the parts in the order a reader needs them."""
        place = f"{self.where}: " if self.where else ""
        advice = f" {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{advice}"


class InputError(SynthScopeError):
    """A file, table, option or study that cannot be used as it is."""


class MissingAsset(SynthScopeError):
    """A weight file, template or program that is not on this machine."""


class JobFailed(SynthScopeError):
    """A background job that ended without its result."""


class CacheCorrupt(SynthScopeError):
    """A stored artefact that cannot be read back; it is set aside and computed again."""
