"""A network in one safetensors file: weights, config and model card.

Nothing is ever unpickled: a pickle runs what its author put into it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.untrusted import is_there, names_input, parse_json, printable, user_path
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

FORMAT = "shmoareg-1"
MAX_HEADER = 16 * 2**20  # bytes; that of the paper's network, with its card, takes 0.1 MB
_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".tar")


def save_network(network: SHMoAReg, path: str | Path, *, card: Mapping[str, Any], half: bool = False) -> None:
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
        raise InputError(f"Networks are written as safetensors: the name '{path}' has to end in .safetensors.")
    kind = torch.float16 if half else torch.float32
    tensors = {
        name: (value.to(kind) if value.is_floating_point() else value).detach().cpu().contiguous().clone()
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
        raise InputError(f"The model card has to be plain JSON (text, numbers, lists): {error}.") from error
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
    path = _resolve(name_or_path)
    metadata = check_format(path, FORMAT)
    network = built(config_in(metadata, path), path)
    load_weights(network, read_tensors(path, FORMAT)[1], path)
    try:
        return network.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device '{device}' cannot be used here: {error}. Use --device cpu.") from error


@names_input
def read_card(name_or_path: str | Path) -> dict[str, Any]:
    """The model card of shipped weights or of a file, without reading its weights.

    Raises
    ------
    InputError
        As `load_network`.
    """
    path = _resolve(name_or_path)
    card = parse_json(check_format(path, FORMAT).get("card", "{}"), path, "a model card")
    if not isinstance(card, dict):
        raise InputError(f"The model card in {path} is damaged: names and values were expected. Use other weights.")
    return card


@names_input
def write_with_card(name_or_path: str | Path, path: str | Path, more: Mapping[str, Any]) -> dict[str, Any]:
    """Write a copy of weights, every tensor bit for bit, with more on its card.

    Parameters
    ----------
    name_or_path : str or Path
        As of `load_network`; may be `path` itself, unless it is shipped: shipped weights have a checksum.
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
    source = _resolve(name_or_path)
    if Path(path).suffix != ".safetensors":
        raise InputError(f"Networks are written as safetensors: the name '{path}' has to end in .safetensors.")
    if _WEIGHTS in Path(path).resolve().parents:
        raise InputError(f"{path} belongs to the shipped weights, which have a checksum. Name another file.")
    metadata, tensors = read_tensors(source, FORMAT)
    card = read_card(source) | dict(more)
    try:
        metadata = metadata | {"card": json.dumps(card, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise InputError(f"The model card has to be plain JSON (text, numbers, lists): {error}.") from error
    with writing(path, size=sum(t.nbytes for t in tensors.values())) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))
    return card


def shipped_weights() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))


def read_tensors(path: Path, expected: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file of ours.

    Raises
    ------
    InputError
        If the file is cut short, a pickle, or not of the `expected` format.
    """
    metadata = check_format(path, expected)
    with _opened(path) as file:
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
            f"The config in {path} is not one that this version knows ({error}). It is damaged or was written by "
            "another version: update shmoareg, or use other weights."
        ) from error


def built(config: SHMoARegConfig, path: Path, part: str = "") -> SHMoAReg:
    """A network of a config, made only if a file's tensors are those of such a network.

    Names and shapes are compared with a network on the meta device, which takes no memory: a file cannot ask
    for more than it brings.

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
    with _opened(path) as file:
        kept = [name for name in file.keys() if name.startswith(part)]
        shapes = {name.removeprefix(part): tuple(file.get_slice(name).get_shape()) for name in kept}
    try:
        with torch.device("meta"):
            bare = SHMoAReg(config)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"No network can be built of the config in {path} ({error}). Use other weights.") from error
    check_shapes({name: tuple(value.shape) for name, value in bare.state_dict().items()}, shapes, path)
    return SHMoAReg(config)


def check_shapes(
    own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], path: Path, what: str = "The weights"
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
            f"{what} in {path} do not fit the network's config: {len(wrong)} differences, such as {wrong[0]}. "
            "They are of another network or version; use weights and config that were saved together."
        )


def load_weights(network: SHMoAReg, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a network; refuse what does not fit.

    Raises
    ------
    InputError
        If names, shapes or kinds of number differ, or a weight is not finite.
    """
    own = network.state_dict()
    mine, found = ({name: tuple(value.shape) for name, value in kept.items()} for kept in (own, tensors))
    check_shapes(mine, found, path)
    other = [name for name, value in own.items() if value.is_floating_point() != tensors[name].is_floating_point()]
    if other:
        raise InputError(
            f"The weights in {path} are of another kind of number: {other[0]} is {tensors[other[0]].dtype}, not "
            f"{own[other[0]].dtype}. Write them with shmoareg's save_network."
        )
    same = {name: value.to(own[name].dtype) for name, value in tensors.items()}
    check_finite(same, str(path))
    network.load_state_dict(same)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are NaN or infinite."""
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise InputError(
            f"{what} holds NaN or infinite weights ({bad[0]} and {len(bad) - 1} more): its training diverged. Use an "
            "earlier state, or a lower learning rate."
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, whose damage is said plainly."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is damaged or cut short ({path.stat().st_size} bytes on disk; {error}). Download or copy it again."
        ) from error


def _resolve(name_or_path: str | Path) -> Path:
    """The file of shipped weights (checked against its checksum) or of a path."""
    name, path = str(name_or_path), user_path(name_or_path)
    if name in shipped_weights():
        path = _WEIGHTS / f"{name}.safetensors"
        _check_sum(path)
    elif not is_there(path) or not path.is_file():
        shipped = ", ".join(shipped_weights()) or "none"
        raise InputError(f"There are no weights '{name:.300}': neither a file nor shipped ({shipped}).")
    if printable(str(path)) != str(path):
        raise InputError(
            f"The name of the weights {printable(str(path))} is not UTF-8, and safetensors opens no such file. Rename "
            "it, or its folder."
        )
    return path


def _check_sum(path: Path) -> None:
    sums = path.parent / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").split("\n") if sums.is_file() else []
    known = {line.split()[1].lstrip("*"): line.split()[0] for line in lines if line.strip()}
    if path.name in known and hashlib.sha256(path.read_bytes()).hexdigest() != known[path.name]:
        raise InputError(f"The shipped weights {path} are damaged (their checksum differs). Install shmoareg again.")


def check_format(path: Path, expected: str) -> dict[str, str]:
    """The text beside the tensors, after a look at what kind of file this is.

    Raises
    ------
    InputError
        If the file is cut short, a pickle, or not of the `expected` format.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(9)
    pickled = start[:1] == b"\x80" and start[8:] != b"{"  # or a header of safetensors whose length ends in 0x80
    if path.suffix.lower() in _PICKLES or start[:4] == b"PK\x03\x04" or pickled:
        raise InputError(
            f"{path} is a pickle (a PyTorch checkpoint), which could run any program: it is not opened. Load it where "
            "you trust it with torch.load(..., weights_only=True), and write it with shmoareg's save_network."
        )
    header = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or header > MAX_HEADER:
        raise InputError(f"{path} ({size} bytes) is not a safetensors file. Give weights written by shmoareg.")
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != expected:
        raise InputError(
            f"{path} is a safetensors file, but not '{expected}' (it says: {metadata.get('format', 'nothing')}). "
            "Give a file written by shmoareg."
        )
    return metadata
