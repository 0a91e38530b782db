"""Refusing settings that are out of their range, in words."""

from __future__ import annotations

from napari_shmoareg.geometry import InputError

Rule = tuple[bool, str, str]  # whether it holds, the setting, what it must be


def check_rules(settings: object, *rules: Rule) -> None:
    """Refuse the first setting whose rule does not hold.

    Raises
    ------
    InputError
        With the setting's name, what it must be and what it is.
    """
    for holds, name, wanted in rules:
        if not holds:
            raise InputError(f"{name} must be {wanted}; got {getattr(settings, name)!r}.")
