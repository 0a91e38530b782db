"""What each field of a settings class does, from its docstring.

One docstring gives the library's reference, the form's tooltips, the command's help and the run file.
"""

from __future__ import annotations

import inspect
from dataclasses import Field, fields
from functools import cache
from typing import Any


@cache
def described(settings: type[Any]) -> dict[str, str]:
    """Field to words, in the order of the docstring; then those of the classes that it builds on.

    Parameters
    ----------
    settings : type
        A dataclass whose docstring has a numpydoc section "Parameters".
    """
    found: dict[str, str] = {}
    for part in settings.__mro__:
        if "__dataclass_fields__" not in vars(part):
            continue
        name = ""
        for line in inspect.cleandoc(part.__doc__ or "").split("----------")[-1].splitlines():
            if line and not line.startswith(" "):
                name = line.split(" : ")[0]
            elif line:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def own_first(settings: type[Any]) -> list[Field[Any]]:
    """The fields of a dataclass: its own, then those of the classes that it builds on."""
    inherited = {name for part in settings.__mro__[1:] for name in getattr(part, "__dataclass_fields__", ())}
    return sorted(fields(settings), key=lambda field: field.name in inherited)
