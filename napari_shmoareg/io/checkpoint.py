"""A network in one safetensors file: weights, config and model card.

Nothing is ever unpickled: a pickle runs what its author put into it.
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
from napari_shmoareg.io.files import writing
from napari_shmoareg.io.model_card import (
    FORMAT,
    SHIPPED,
    check_format,
    opened,
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
        Ends in .safetensors; an existing file is replaced, in one move.
    card : mapping
        What a user should know: data, steps, time, figures.  JSON-ready.
    half : bool
        Store weights as float16: half the size; they load as float32.

    Raises
    ------
    InputError
        If the ending is another one, a weight is not finite (with `half`: too large for
        float16), the card is not JSON-ready, the place is not writable, or the disk is full.
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
    check_finite(tensors, f"The network that was to be written to {path}")
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
    with writing(path, size=sum(t.nbytes for t in tensors.values())) as temporary:
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
        If there are no such weights, the file is cut short, a pickle, not ours, or its
        weights do not fit its config; or there is no such device.
    """
    path = weights_file(name_or_path)
    metadata = check_format(path, FORMAT)
    network = built(config_in(metadata, path), path)
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
    """Write a copy of weights, every tensor bit for bit, with more on its card.

    Parameters
    ----------
    name_or_path : str or Path
        As of `load_network`; may be `path` itself, unless it is shipped: shipped weights have a
        checksum.
    path : str or Path
        Ends in .safetensors; replaced in one move.
    more : mapping
        Entries of the card, JSON-ready; those that the card has already are replaced.

    Returns
    -------
    dict
        The card as written.

    Raises
    ------
    InputError
        As `load_network` and `save_network`; or if `path` is that of shipped weights.
    """
    source = weights_file(name_or_path)
    if Path(path).suffix != ".safetensors":
        raise InputError(
            f"Networks are written as safetensors: the name '{path}' has to end in .safetensors."
        )
    if SHIPPED in Path(path).resolve().parents:
        raise InputError(
            f"{path} belongs to the shipped weights, which have a checksum. Name another file."
        )
    metadata, tensors = read_tensors(source, FORMAT)
    card = read_card(source) | dict(more)
    try:
        metadata = metadata | {"card": json.dumps(card, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The model card has to be plain JSON (text, numbers, lists): {error}."
        ) from error
    with writing(path, size=sum(t.nbytes for t in tensors.values())) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))
    return card


def read_tensors(path: Path, expected: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file of ours.

    Raises
    ------
    InputError
        If the file is cut short, a pickle, or not of the `expected` format.
    """
    metadata = check_format(path, expected)
    with opened(path, "pt") as file:
        return metadata, {name: file.get_tensor(name) for name in file.keys()}


def config_in(metadata: Mapping[str, str], path: Path) -> SHMoARegConfig:
    """The network's config in the metadata of a file.

    Raises
    ------
    InputError
        If there is none, or a setting is unknown or out of its range.
    """
    try:
        return SHMoARegConfig.from_dict(parse_json(metadata["config"], path, "a network's config"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The config in {path} is not one that this version knows ({error}). It is damaged or"
            " was written by another version: update shmoareg, or use other weights."
        ) from error


def built(config: SHMoARegConfig, path: Path, part: str = "") -> SHMoAReg:
    """A network of a config, made only if a file's tensors are those of such a network.

    Names and shapes are compared with a network on the meta device, which takes no memory: a file
    cannot ask for more than it brings.

    Parameters
    ----------
    config : SHMoARegConfig
    path : Path
        A safetensors file.
    part : str
        How the names of the network's tensors begin in it.

    Raises
    ------
    InputError
        If names or shapes differ.
    """
    with opened(path) as file:
        kept = [name for name in file.keys() if name.startswith(part)]
        shapes = {name.removeprefix(part): tuple(file.get_slice(name).get_shape()) for name in kept}
    try:
        with torch.device("meta"):
            bare = SHMoAReg(config)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(
            f"No network can be built of the config in {path} ({error}). Use other weights."
        ) from error
    check_shapes(
        {name: tuple(value.shape) for name, value in bare.state_dict().items()}, shapes, path
    )
    return SHMoAReg(config)


def check_shapes(
    own: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    path: Path,
    what: str = "The weights",
) -> None:
    """Refuse tensors of other names or shapes than a network's own.

    Raises
    ------
    InputError
    """
    wrong = [f"{name} is missing" for name in own if name not in found]
    wrong += [f"{name:.80} is not known" for name in found if name not in own]
    wrong += [
        f"{name} has the shape {found[name]}, not {shape}"
        for name, shape in own.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        raise InputError(
            f"{what} in {path} do not fit the network's config: {len(wrong)} differences, such as"
            f" {wrong[0]}. They are of another network or version; use weights and config that were"
            " saved together."
        )


def load_weights(network: SHMoAReg, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a network; refuse what does not fit.

    Raises
    ------
    InputError
        If names, shapes or kinds of number differ, or a weight is not finite.
    """
    own = network.state_dict()
    mine, found = (
        {name: tuple(value.shape) for name, value in kept.items()} for kept in (own, tensors)
    )
    check_shapes(mine, found, path)
    other = [
        name
        for name, value in own.items()
        if value.is_floating_point() != tensors[name].is_floating_point()
    ]
    if other:
        raise InputError(
            f"The weights in {path} are of another kind of number: {other[0]} is"
            f" {tensors[other[0]].dtype}, not {own[other[0]].dtype}. Write them with shmoareg's"
            " save_network."
        )
    same = {name: value.to(own[name].dtype) for name, value in tensors.items()}
    check_finite(same, str(path))
    network.load_state_dict(same)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are NaN or infinite."""
    bad = [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if bad:
        raise InputError(
            f"{what} holds NaN or infinite weights ({bad[0]} and {len(bad) - 1} more): its training"
            " diverged. Use an earlier state, or a lower learning rate."
        )
