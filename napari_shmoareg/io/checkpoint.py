"""Reading and writing of networks: weights, config and model card in one safetensors file.

Nothing is unpickled, because a pickle can run arbitrary code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.model_card import (
    FORMAT,
    SHIPPED,
    check_format,
    open_safetensors,
    read_card,
    weights_file,
)
from napari_shmoareg.io.untrusted import names_input, parse_json
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig


def save_network(
    network: SHMoAReg, path: str | Path, *, card: Mapping[str, Any], half: bool = False
) -> None:
    """Write a network with its config and model card.

    Parameters
    ----------
    network : SHMoAReg
    path : str or Path
        Ends in .safetensors; an existing file is replaced atomically.
    card : mapping
        What a user should know: data, steps, time, scores. JSON-serialisable.
    half : bool
        Store weights as float16, at half the size; they are loaded as float32.

    Raises
    ------
    InputError
        If the ending is another one, a weight is not finite (with `half`: too large for float16),
        the card is not JSON-serialisable, the path is not writable, or the disk is full.
    """
    if Path(path).suffix != ".safetensors":
        raise InputError(
            f"Networks are written as safetensors: the name '{path}' has to end in .safetensors."
        )
    kind = torch.float16 if half else torch.float32
    tensors = {
        name: (
            (value.to(kind) if value.is_floating_point() else value)
            .detach()
            .cpu()
            .contiguous()
            .clone()
        )
        for name, value in network.state_dict().items()
    }
    check_finite(tensors, f"The network to be written to {path}")
    try:
        metadata = {
            "format": FORMAT,
            "config": json.dumps(network.config.to_dict()),
            "card": json.dumps(dict(card), allow_nan=False),
        }
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The model card has to be plain JSON (text, numbers, lists): {error}."
        ) from error
    with atomic_write(path, size=sum(t.nbytes for t in tensors.values())) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))


@names_input
def load_network(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> SHMoAReg:
    """Read a network, ready to register (in eval mode, float32).

    Parameters
    ----------
    name_or_path : str or Path
        One of `shipped_weights`, or a .safetensors file written by `save_network`.
    device : str or torch.device

    Raises
    ------
    InputError
        If the weights are missing, the file is truncated, a pickle or of another format, its
        weights do not fit its config, or the device is not available.
    """
    path = weights_file(name_or_path)
    metadata = check_format(path, FORMAT)
    network = build_network(read_config(metadata, path), path)
    load_weights(network, read_tensors(path, FORMAT)[1], path)
    try:
        return network.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"The device '{device}' cannot be used here: {error}.", remedy="Use {device:cpu}."
        ) from error


@names_input
def write_with_card(
    name_or_path: str | Path, path: str | Path, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a bit-exact copy of weights with additional entries on the model card.

    Parameters
    ----------
    name_or_path : str or Path
        As for `load_network`; may be `path` itself, except for shipped weights, which have a
        checksum.
    path : str or Path
        Ends in .safetensors; replaced atomically.
    more : mapping
        Entries of the card, JSON-serialisable; existing ones are replaced.

    Returns
    -------
    dict
        The card as written.

    Raises
    ------
    InputError
        As `load_network` and `save_network`; or if `path` belongs to the shipped weights.
    """
    source = weights_file(name_or_path)
    if Path(path).suffix != ".safetensors":
        raise InputError(
            f"Networks are written as safetensors: the name '{path}' has to end in .safetensors."
        )
    if SHIPPED in Path(path).resolve().parents:
        raise InputError(
            f"{path} belongs to the shipped weights, which have a checksum. Give another file name."
        )
    metadata, tensors = read_tensors(source, FORMAT)
    card = read_card(source) | dict(more)
    try:
        metadata = metadata | {"card": json.dumps(card, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The model card has to be plain JSON (text, numbers, lists): {error}."
        ) from error
    with atomic_write(path, size=sum(t.nbytes for t in tensors.values())) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))
    return card


def read_tensors(path: Path, expected: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read metadata and tensors of a safetensors file."""
    metadata = check_format(path, expected)
    with open_safetensors(path, "pt") as file:
        return metadata, {name: file.get_tensor(name) for name in file.keys()}


def read_config(metadata: Mapping[str, str], path: Path) -> SHMoARegConfig:
    """Read the network's config from the metadata of a file."""
    try:
        return SHMoARegConfig.from_dict(parse_json(metadata["config"], path, "a network's config"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The config in {path} is not known to this version ({error}). It is damaged or from"
            " another version: update shmoareg, or use other weights."
        ) from error


def build_network(config: SHMoARegConfig, path: Path, part: str = "") -> SHMoAReg:
    """Build the network of a config, if the tensors of a file match it.

    Names and shapes are compared with a network on the meta device, which takes no memory, so a
    damaged config cannot exhaust the memory.

    Parameters
    ----------
    config : SHMoARegConfig
    path : Path
        A safetensors file.
    part : str
        Prefix of the network's tensor names in the file.

    Raises
    ------
    InputError
        If names or shapes differ.
    """
    with open_safetensors(path) as file:
        names = [name for name in file.keys() if name.startswith(part)]
        shapes = {
            name.removeprefix(part): tuple(file.get_slice(name).get_shape()) for name in names
        }
    try:
        with torch.device("meta"):
            meta_network = SHMoAReg(config)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(
            f"No network can be built from the config in {path} ({error}). Use other weights."
        ) from error
    check_shapes(
        {name: tuple(value.shape) for name, value in meta_network.state_dict().items()},
        shapes,
        path,
    )
    return SHMoAReg(config)


def check_shapes(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    path: Path,
    what: str = "The weights",
) -> None:
    """Refuse tensors whose names or shapes differ from the expected ones."""
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name:.80} is not known" for name in found if name not in expected]
    differences += [
        f"{name} has the shape {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if differences:
        raise InputError(
            f"{what} in {path} do not fit the network's config: {len(differences)} differences,"
            f" such as {differences[0]}. They belong to another network or version; use weights and"
            " config that were saved together."
        )


def load_weights(network: SHMoAReg, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a network; refuse tensors that do not match."""
    own = network.state_dict()
    expected, found = (
        {name: tuple(value.shape) for name, value in values_by_name.items()}
        for values_by_name in (own, tensors)
    )
    check_shapes(expected, found, path)
    other = [
        name
        for name, value in own.items()
        if value.is_floating_point() != tensors[name].is_floating_point()
    ]
    if other:
        raise InputError(
            f"The weights in {path} have another data type: {other[0]} is"
            f" {tensors[other[0]].dtype}, not {own[other[0]].dtype}. Write them with shmoareg's"
            " save_network."
        )
    converted = {name: value.to(own[name].dtype) for name, value in tensors.items()}
    check_finite(converted, str(path))
    network.load_state_dict(converted)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are NaN or infinite."""
    invalid = [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if invalid:
        raise InputError(
            f"{what} contains NaN or infinite weights ({invalid[0]} and {len(invalid) - 1} more):"
            " its training diverged. Use an earlier state, or a lower learning rate."
        )
