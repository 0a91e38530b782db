"""Runs that begin from nothing: a network with random weights, as in Sec. IV-B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from napari_shmoareg.engine.training_settings import FineTuning
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.weights import NO_NETWORK
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

PRESET = "paper"


def begins_from_nothing(weights: Mapping[str, Any]) -> bool:
    """Whether a run began from nothing, by what its plan or run.json says of its weights."""
    return weights.get("name") == NO_NETWORK


def start_of(weights: Mapping[str, Any]) -> str:
    """What a run began from, in words."""
    if not begins_from_nothing(weights):
        return str(weights["name"])
    preset, changes = weights.get("preset", "?"), weights.get("changes") or {}
    changed = "".join(f", {name}={value}" for name, value in changes.items())
    return f"nothing (random weights of preset {preset}{changed})"


def config_from_nothing(preset: str | None, changes: Mapping[str, Any], settings: FineTuning) -> SHMoARegConfig:
    """The network of a run that begins from nothing.

    As in the paper it learns and registers on grids of one size, in one pass, unless a cascade or other passes are
    asked for.

    Parameters
    ----------
    preset : str or None
        Of `SHMoARegConfig.preset`; None is "paper", Sec. IV-B.
    changes : mapping
        Fields of `SHMoARegConfig` with other values, such as those of Table II.
    settings : FineTuning
        Its size (0: the preset's), and its share of diffeomorphic steps: where that is 1, so are registrations.

    Raises
    ------
    InputError
        If there is no such preset, or a value is out of its range.
    """
    try:
        config = SHMoARegConfig.from_dict(SHMoARegConfig.preset(preset or PRESET).to_dict() | dict(changes))
    except (TypeError, ValueError) as error:
        raise InputError(f"No network can be built so: {error}") from error
    if settings.diffeomorphic == 1:
        config = replace(config, diffeomorphic=True)
    if settings.cascade > 0 or settings.passes == "keep" or "passes" in changes:
        return config
    return replace(config, size=settings.size or round(config.size * config.passes[0]), passes=(1.0,))


def random_network(config: SHMoARegConfig, seed: int) -> SHMoAReg:
    """A network with the random weights of a seed, the same in every process; the random numbers go on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SHMoAReg(config)


def parse_changes(words: list[str]) -> dict[str, Any]:
    """``attention=mha``, ``shmoe_strides=none``, ``window=5,6,7``: fields of `SHMoARegConfig` with their values.

    Raises
    ------
    InputError
        If a word is not NAME=VALUE, there is no such field, or its value is of another kind.
    """
    defaults = {field.name: field.default for field in fields(SHMoARegConfig)}
    found: dict[str, Any] = {}
    for word in words:
        name, mark, text = (part.strip() for part in word.partition("="))
        name = name.replace("-", "_")
        if not mark or name not in defaults:
            raise InputError(
                f"'{word:.80}' sets no part of the network: NAME=VALUE was expected, such as attention=mha or "
                f"shmoe_strides=none. Names are {', '.join(defaults)}."
            )
        try:
            found[name] = _value(text, defaults[name])
        except ValueError as error:
            kind = {tuple: "numbers such as 1,2, or none", bool: "true or false"}.get(type(defaults[name]), "a number")
            raise InputError(f"{name} takes {kind}; got '{text:.80}'.") from error
    return found


def _value(text: str, default: Any) -> Any:
    """A value of the same kind as the default."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(default, tuple):
        parts = [] if text in ("", "none") else text.split(",")
        return [float(part) if isinstance(default[0], float) else int(part) for part in parts]
    return type(default)(text)
