"""Everything a training needs to go on as if it had not been stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.checkpoint import load_weights, read_tensors
from napari_shmoareg.io.untrusted import user_path
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

FORMAT = "shmoareg-training-1"
FILE = "training.safetensors"


def save_training_state(
    folder: str | Path,
    network: SHMoAReg,
    optimiser: torch.optim.Optimizer,
    step: int,
    history: Sequence[Mapping[str, Any]] = (),
    *,
    generators: Mapping[str, torch.Generator] | None = None,
) -> Path:
    """Write network, optimiser, step, history and random numbers to ``folder/training.safetensors``.

    Ours: one file, numbers and text, replaced in one move: a killed run leaves the previous
    state or the new one, never weights of one step with the optimiser of another.

    Parameters
    ----------
    folder : str or Path
        Made if missing.
    network : SHMoAReg
    optimiser : torch.optim.Optimizer
    step : int
        Steps done.
    history : sequence of mappings
        JSON-ready; one row per logged step.
    generators : mapping of torch.Generator, optional
        Further random streams, besides torch's own on the CPU and on CUDA devices.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If the place is not writable or the disk is full.
    """
    folder = user_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make the folder {folder}: {error.strerror}. Name another place.") from error
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
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
    tensors |= {f"generator.{name}": generator.get_state() for name, generator in (generators or {}).items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(network.config.to_dict()),
        "step": str(int(step)),
        "history": json.dumps([dict(row) for row in history]),
        "groups": json.dumps(state["param_groups"]),
        "plain": json.dumps(plain),
    }
    with writing(folder / FILE, size=sum(t.nbytes for t in tensors.values())) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))
    return folder / FILE


def load_training_state(
    folder: str | Path,
    network: SHMoAReg,
    optimiser: torch.optim.Optimizer,
    *,
    generators: Mapping[str, torch.Generator] | None = None,
) -> tuple[int, list[dict[str, Any]]]:
    """Put a saved training back into a network and an optimiser, and into the random numbers.

    Parameters
    ----------
    folder : str or Path
    network : SHMoAReg
        Of the same config.
    optimiser : torch.optim.Optimizer
        Of the same kind, over the same parameters.
    generators : mapping of torch.Generator, optional
        Those given when the state was saved.

    Returns
    -------
    step : int
    history : list of dict

    Raises
    ------
    InputError
        If there is no state, it is damaged, or of another network or optimiser.
    """
    path = user_path(folder) / FILE
    if not path.is_file():
        raise InputError(f"There is no training to go on with: {path} does not exist.")
    metadata, tensors = read_tensors(path, FORMAT)
    if SHMoARegConfig().to_dict() | json.loads(metadata["config"]) != network.config.to_dict():
        raise InputError(
            f"The training in {path} is of a network with another config. Start anew, or use its own config."
        )
    groups = json.loads(metadata["groups"])
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimiser.state_dict()["param_groups"]]:
        raise InputError(f"The optimiser in {path} is over other parameters. Use the one that it was saved with.")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, rest = name.split(".", 1)
        parts.setdefault(part, {})[rest] = value
    missing = set(generators or {}) - set(parts.get("generator", {}))
    if missing:
        raise InputError(f"The training in {path} holds no random stream {', '.join(sorted(missing))}.")
    load_weights(network, parts.get("network", {}), path)
    state: dict[int, dict[str, Any]] = {int(index): dict(v) for index, v in json.loads(metadata["plain"]).items()}
    for name, value in parts.get("opt", {}).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": [_tuples(group) for group in groups]})
    _set_random(parts.get("random", {}), parts.get("generator", {}), generators or {})
    history: list[dict[str, Any]] = json.loads(metadata["history"])
    return int(metadata["step"]), history


def _set_random(
    random: Mapping[str, Tensor], saved: Mapping[str, Tensor], generators: Mapping[str, torch.Generator]
) -> None:
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            if f"cuda.{n}" in random:
                torch.cuda.set_rng_state(random[f"cuda.{n}"], n)
    for name, generator in generators.items():
        generator.set_state(saved[name])


def _tuples(group: dict[str, Any]) -> dict[str, Any]:
    """JSON turns Adam's betas into a list; give them back as they were."""
    return {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}
