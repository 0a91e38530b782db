"""Errors that a user can cause and fix.

Each message says what was expected, what was found, and what to do.  None is a ``RuntimeError``,
because the worker threads of some viewers swallow those.
"""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter

ADDRESSES = {"series": "FOLDER#SERIES_UID", "volume": "FOLDER#SERIES_UID/NUMBER"}
"""Placeholders of a remedy that are not settings but parts of a path."""

SettingFormatter = Callable[[str, str], str]
"""Name and value ("" for none) of a setting to its text in an interface, such as ``--size 96``."""


def as_argument(name: str, value: str) -> str:
    """Format a setting as a Python argument: ``size``, ``size=96``, ``affine='auto'``."""
    if not value:
        return name
    literal = value in ("True", "False", "None") or value.replace(".", "", 1).isdigit()
    return f"{name}={value if literal else repr(value)}"


class InputError(ValueError):
    """An input (image, labels, option, file) is not valid.

    ``str(error)`` names settings as Python arguments; the command line and the forms format them
    their own way with `text_with`.

    Parameters
    ----------
    message : str
        What was expected and what was found.
    setting : str, optional
        The invalid setting.  The text starts with its name, so the message leaves it out: "must be
        at least 1; got 0."
    remedy : str, optional
        What to do.  Settings are in braces, with a value after a colon: "Give {size:96}, or other
        {weights}."

    Examples
    --------
    >>> error = InputError("Too large.", remedy="About {size:96} would fit.")
    >>> str(error)
    'Too large. About size=96 would fit.'
    >>> error.text_with(lambda name, value: f"--{name} {value}")
    'Too large. About --size 96 would fit.'
    """

    def __init__(self, message: str, *, setting: str = "", remedy: str = "") -> None:
        self.message, self.setting, self.remedy = message, setting, remedy
        super().__init__(self.text_with(as_argument))

    def text_with(self, formatter: SettingFormatter) -> str:
        """Return the whole text, with settings formatted for an interface."""
        text = f"{formatter(self.setting, '')} {self.message}" if self.setting else self.message
        return f"{text} {format_settings(self.remedy, formatter)}".rstrip()

    @property
    def remedy_settings(self) -> set[str]:
        """The settings that the remedy names."""
        return {name for _, name, _, _ in Formatter().parse(self.remedy) if name}


class NoOverlapError(InputError):
    """The moving and the fixed image do not overlap in world space."""


class TooLargeError(InputError):
    """The operation would need more memory than is available."""


def format_settings(text: str, formatter: SettingFormatter) -> str:
    """Format the settings in braces of a text, such as a remedy."""
    parts = Formatter().parse(text)
    return "".join(
        before + ("" if name is None else ADDRESSES.get(name) or formatter(name, value or ""))
        for before, name, value, _ in parts
    )


def escape_braces(text: str) -> str:
    """Escape the braces of a text that is inserted into a remedy."""
    return text.replace("{", "{{").replace("}", "}}")
