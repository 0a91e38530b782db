"""One option for each field of the settings, from the settings themselves."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import typer

from napari_shmoareg.engine.described import described, own_first
from napari_shmoareg.engine.expert_settings import ExpertLearning
from napari_shmoareg.engine.run_settings import RunSettings
from napari_shmoareg.engine.training_settings import ITERATIONS, FineTuning

STEP, EXPERTS = "What a step learns", "How experts learn, beyond the paper"
SETTINGS: tuple[tuple[type[Any], str], ...] = ((FineTuning, STEP), (RunSettings, "The run"))
OTHERWISE = {
    "steps": f"{FineTuning.steps}, with --from none {ITERATIONS}",
    "size": "as the weights say",
    "diffeomorphic": "as the weights say",
    "final_rate": "that of --learning-rate",
}


def with_settings(
    command: Callable[..., None],
    *,
    settings: Sequence[tuple[type[Any], str]] = SETTINGS,
    without: Collection[str] = (),
    default: str | None = None,
) -> Callable[..., None]:
    """A command that takes an option for every setting, None where it is not given.

    Parameters
    ----------
    command : callable
        Its own parameters have annotations of Typer's; the settings come in ``**given``.
    settings : sequence of (class, str)
        And the panel of the help in which they stand.
    without : collection of str
        Settings that have no option, besides the command's own parameters.
    default : str, optional
        What the help says that they are by default; else their own.
    """

    def taking(**given: Any) -> None:
        command(**given)

    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    taking.__name__, taking.__doc__, taking.__module__ = command.__name__, command.__doc__, command.__module__
    taken = {*without, *(parameter.name for parameter in own)}
    more = [each for each in setting_parameters(settings, default) if each.name not in taken]
    taking.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    taking.__annotations__ = {}
    return taking


def setting_parameters(
    classes: Sequence[tuple[type[Any], str]] = SETTINGS, default: str | None = None
) -> Iterator[inspect.Parameter]:
    """A keyword parameter for each setting, with its option."""
    experts = {field.name for field in fields(ExpertLearning)}
    for settings, panel in classes:
        words, hints = described(cast(Any, settings)), get_type_hints(settings)
        for field in own_first(settings):
            kind, flags = _kind(field.name, hints[field.name]), _flags(field.name)
            option = typer.Option(
                flags,
                help=words[field.name],
                show_default=default or OTHERWISE.get(field.name, _shown(field.default)),
                rich_help_panel=EXPERTS if field.name in experts else panel,
            )
            yield inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )


def chosen(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was given, as plain values: fields of `FineTuning`, and of `RunSettings`."""
    found = []
    for settings, _ in SETTINGS:
        names = [field.name for field in fields(settings) if given.get(field.name) is not None]
        found.append({name: _value(given[name]) for name in names})
    return found[0], found[1]


def _flags(name: str) -> str:
    kebab = name.replace("_", "-")
    hints = {key: kind for settings, _ in SETTINGS for key, kind in get_type_hints(settings).items()}
    return f"--{kebab}/--no-{kebab}" if hints[name] is bool else f"--{kebab}"


def _kind(name: str, hint: Any) -> Any:
    """The type that Typer reads: words of a Literal as an enumeration, and without None."""
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is Literal:
        return StrEnum(name, {word: word for word in get_args(hint)})
    return hint


def _value(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)
