"""Errors that a user can cause and can mend.

Each says what was expected, what came, and what to do.  None of them is a ``RuntimeError``: some
viewers' worker threads swallow those.
"""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter

ADDRESSES = {"series": "FOLDER#SERIES_UID", "volume": "FOLDER#SERIES_UID/NUMBER"}
"""What a remedy may name beside settings: what is given as a part of a path."""

Wording = Callable[[str, str], str]
"""How a face calls a setting: its name and a value, empty for none, to words."""


def in_python(name: str, value: str) -> str:
    """A setting as an argument: ``size``, ``size=96``, ``affine='auto'``."""
    if not value:
        return name
    literal = value in ("True", "False", "None") or value.replace(".", "", 1).isdigit()
    return f"{name}={value if literal else repr(value)}"


class InputError(ValueError):
    """An input (image, labels, option, file) is not what it has to be.

    The text of the error names settings as Python does; a command line and a form word them
    themselves, by `worded`.

    Parameters
    ----------
    message : str
        What was expected and what came.
    setting : str, optional
        The setting that is wrong.  Its name begins the text, so the message leaves it out: "must be
        at least 1; got 0."
    remedy : str, optional
        What to do.  Settings stand in braces, with a value behind a colon: "Give {size:96}, or
        another {weights}."

    Examples
    --------
    >>> error = InputError("Too large.", remedy="About {size:96} would fit.")
    >>> str(error)
    'Too large. About size=96 would fit.'
    >>> error.worded(lambda name, value: f"--{name} {value}")
    'Too large. About --size 96 would fit.'
    """

    def __init__(self, message: str, *, setting: str = "", remedy: str = "") -> None:
        self.message, self.setting, self.remedy = message, setting, remedy
        super().__init__(self.worded(in_python))

    def worded(self, wording: Wording) -> str:
        """The whole text, with settings as a face calls them."""
        named = f"{wording(self.setting, '')} {self.message}" if self.setting else self.message
        return f"{named} {worded(self.remedy, wording)}".rstrip()

    @property
    def remedy_settings(self) -> set[str]:
        """The settings that the remedy names."""
        return {name for _, name, _, _ in Formatter().parse(self.remedy) if name}


class NoOverlapError(InputError):
    """Moving and fixed images do not overlap in the world."""


class TooLargeError(InputError):
    """The work would need more memory than there is."""


def worded(text: str, wording: Wording) -> str:
    """A text whose settings stand in braces, as of a remedy, with them as a face calls them."""
    parts = Formatter().parse(text)
    return "".join(
        before + ("" if name is None else ADDRESSES.get(name) or wording(name, value or ""))
        for before, name, value, _ in parts
    )


def literal(text: str) -> str:
    """A text as it stands in a remedy, with no setting in it."""
    return text.replace("{", "{{").replace("}", "}}")
