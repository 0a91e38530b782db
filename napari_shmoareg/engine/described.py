"""What each field of a settings class does, from its docstring.

One docstring gives the library's reference, the form's tooltips, the command's help and the run file.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any


@cache
def described(settings: type[Any]) -> dict[str, str]:
    """Field to words, in the order of the docstring.

    Parameters
    ----------
    settings : type
        A class whose docstring has a numpydoc section "Parameters".
    """
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(settings.__doc__ or "").split("----------")[-1].splitlines():
        if line and not line.startswith(" "):
            name = line.split(" : ")[0]
        elif line:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found
