"""Resumable training state: network, running mean, optimiser, step, history, random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.checkpoint import build_network, load_weights, read_config, read_tensors
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.model_card import check_format
from napari_shmoareg.io.untrusted import names_input, parse_json, user_path
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

FORMAT = "shmoareg-training-1"
FILE = "training.safetensors"
MAX_STEPS = 10**12


def save_training_state(
    folder: str | Path,
    network: SHMoAReg,
    optimiser: torch.optim.Optimizer,
    step: int,
    history: Sequence[Mapping[str, Any]] = (),
    *,
    mean: SHMoAReg | None = None,
) -> Path:
    """Write the training state to ``folder/training.safetensors``.

    Ours: one file, replaced atomically. A killed run leaves the previous state or the new one,
    never the weights of one step with the optimiser of another.

    Parameters
    ----------
    folder : str or Path
        Created if missing.
    network : SHMoAReg
    optimiser : torch.optim.Optimizer
    step : int
        Steps done so far.
    history : sequence of mappings
        JSON-serialisable; one row per logged step.
    mean : SHMoAReg, optional
        The running mean of the network's weights.

    Returns
    -------
    Path
        Path of the file.

    Raises
    ------
    InputError
        If the folder is not writable or the disk is full.
    """
    folder = user_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot create the folder {folder}: {error.strerror}. Give another path."
        ) from error
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    if mean is not None:
        tensors |= {f"mean.{name}": value for name, value in mean.state_dict().items()}
    state = optimiser.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"opt.{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors |= {f"random.cuda.{n}": s for n, s in enumerate(torch.cuda.get_rng_state_all())}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(network.config.to_dict()),
        "step": str(int(step)),
        "history": json.dumps([dict(row) for row in history]),
        "groups": json.dumps(state["param_groups"]),
        "plain": json.dumps(plain),
    }
    with atomic_write(folder / FILE, size=sum(t.nbytes for t in tensors.values())) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))
    return folder / FILE


@names_input
def load_training_state(
    folder: str | Path,
    network: SHMoAReg,
    optimiser: torch.optim.Optimizer,
    *,
    mean: SHMoAReg | None = None,
) -> tuple[int, list[dict[str, Any]]]:
    """Restore a training state into a network, an optimiser and the random number generators.

    Parameters
    ----------
    folder : str or Path
    network : SHMoAReg
        With the same config.
    optimiser : torch.optim.Optimizer
        Of the same class, over the same parameters.
    mean : SHMoAReg, optional
        With the same config; the saved running mean is loaded into it.

    Returns
    -------
    step : int
    history : list of dict

    Raises
    ------
    InputError
        If there is no state, it is damaged, or it belongs to another network or optimiser.
    """
    path = user_path(folder) / FILE
    if not path.is_file():
        raise InputError(f"There is no training state to resume: {path} does not exist.")
    metadata, tensors = read_tensors(path, FORMAT)
    _check_config(metadata, network.config, path)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    load_weights(network, parts.get("network", {}), path)
    if mean is not None:
        load_weights(mean, parts.get("mean", {}), path)
    try:
        step, history = int(metadata["step"]), _parsed(metadata, "history", path, list)
        if not 0 <= step < MAX_STEPS or not all(isinstance(row, dict) for row in history):
            raise ValueError(f"step {metadata['step']:.40}, {len(history)} history rows")
        optimiser.load_state_dict(_optimiser_state(metadata, parts.get("opt", {}), optimiser, path))
        _set_random(parts.get("random", {}))
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The training state in {path} is damaged ({type(error).__name__}: {error!s:.200})."
            " Restore a copy of it, or start another run from the weights in the same folder."
        ) from error
    return step, history


def network_of_state(folder: str | Path, config: SHMoARegConfig) -> SHMoAReg:
    """Build the network of a training state, after checking that it has this config.

    Raises
    ------
    InputError
        If the state is damaged or belongs to another network.
    """
    path = user_path(folder) / FILE
    _check_config(check_format(path, FORMAT), config, path)
    return build_network(config, path, "network.")


def _check_config(metadata: Mapping[str, str], config: SHMoARegConfig, path: Path) -> None:
    """Check that a training state belongs to a network with this config."""
    if read_config(metadata, path).to_dict() != config.to_dict():
        raise InputError(
            f"The training state in {path} belongs to a network with another config. Use that"
            " config, or start another run."
        )


def _optimiser_state(
    metadata: Mapping[str, str],
    saved: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    path: Path,
) -> dict[str, Any]:
    """Read the optimiser state, checking that each tensor has the shape of its parameter."""
    own = optimiser.state_dict()["param_groups"]
    groups = _parsed(metadata, "groups", path, list)
    if [group["params"] for group in groups] != [group["params"] for group in own]:
        raise InputError(
            f"The optimiser in {path} has other parameters. Use the optimiser that it was saved"
            " with."
        )
    for group, current in zip(groups, own, strict=True):
        if set(group) != set(current) or not all(
            _is_compatible(group[key], value) for key, value in current.items()
        ):
            raise ValueError("the optimiser's settings differ")
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, values in _parsed(metadata, "plain", path, dict).items():
        state[int(index)] = dict(values)
    for name, value in saved.items():
        index, key = name.split(".", 1)
        if value.numel() != 1 and value.shape != parameters[int(index)].shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}")
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise ValueError(f"{name} is not finite")
        state.setdefault(int(index), {})[key] = value
    if not all(0 <= index < len(parameters) for index in state):
        raise ValueError("it has too many parameters")
    return {"state": state, "param_groups": [_tuples(group) for group in groups]}


def _is_compatible(value: Any, own: Any) -> bool:
    """Whether a saved optimiser setting has the type of the current one."""
    if isinstance(own, tuple | list):
        pairs = (
            zip(value, own, strict=False)
            if isinstance(value, list) and len(value) == len(own)
            else ()
        )
        return bool(pairs) and all(
            _is_compatible(a, b) and (not isinstance(b, float) or 0 <= a < 1) for a, b in pairs
        )
    if own is None or isinstance(own, bool):
        return value is None or isinstance(value, bool)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and isinstance(own, int | float) and 0 <= value < 2**53


def _parsed(metadata: Mapping[str, str], key: str, path: Path, kind: type) -> Any:
    """Parse one JSON entry of the metadata, checking its type."""
    found = parse_json(metadata[key], path, f"'{key}'")
    if not isinstance(found, kind):
        raise ValueError(f"'{key}' is not a {kind.__name__}")
    return found


def _set_random(random: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            if f"cuda.{n}" in random:
                torch.cuda.set_rng_state(random[f"cuda.{n}"], n)


def _tuples(group: dict[str, Any]) -> dict[str, Any]:
    """Restore Adam's betas, which JSON turns into a list."""
    return {
        key: tuple(value) if isinstance(value, list) and key != "params" else value
        for key, value in group.items()
    }
