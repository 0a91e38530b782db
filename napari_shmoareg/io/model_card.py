"""Format, config and model card of a file of weights, and which weights are used by default.

Does not load torch, and never unpickles: a pickle runs what its author put into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

import napari_shmoareg
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import is_there, names_input, parse_json, printable, user_path

FORMAT = "shmoareg-1"
MAX_HEADER = 16 * 2**20  # bytes; that of the paper's network, with its card, takes 0.1 MB
SHIPPED = Path(__file__).resolve().parent.parent / "weights"
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".tar")


@names_input
def read_card(name_or_path: str | Path) -> dict[str, Any]:
    """The model card of shipped weights or of a file, without reading its weights.

    Raises
    ------
    InputError
        As `load_network`.
    """
    path = weights_file(name_or_path)
    card = parse_json(check_format(path, FORMAT).get("card", "{}"), path, "a model card")
    if not isinstance(card, dict):
        raise InputError(
            f"The model card in {path} is damaged: names and values were expected. Use other"
            " weights."
        )
    return card


def shipped_weights() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


@contextmanager
def opened(path: Path, framework: str = "numpy") -> Iterator[Any]:
    """A safetensors file, open; damage is an error that names it.

    Parameters
    ----------
    path : Path
    framework : {"numpy", "pt"}
        What its tensors come as; names, shapes and metadata need none.

    Raises
    ------
    InputError
        If the file is damaged or cut short.
    """
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is damaged or cut short ({path.stat().st_size} bytes on disk; {error})."
            " Download or copy it again."
        ) from error


def weights_file(name_or_path: str | Path) -> Path:
    """The file of shipped weights (checked against its checksum) or of a path.

    Raises
    ------
    InputError
        If there is none, the shipped one is damaged, or its name is not UTF-8.
    """
    name, path = str(name_or_path), user_path(name_or_path)
    if name in shipped_weights():
        path = SHIPPED / f"{name}.safetensors"
        _check_sum(path)
    elif not is_there(path) or not path.is_file():
        shipped = ", ".join(shipped_weights()) or "none"
        raise InputError(
            f"There are no weights '{name:.300}': neither a file nor shipped ({shipped})."
        )
    if printable(str(path)) != str(path):
        raise InputError(
            f"The name of the weights {printable(str(path))} is not UTF-8, and safetensors opens no"
            " such file. Rename it, or its folder."
        )
    return path


def _check_sum(path: Path) -> None:
    sums = path.parent / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").split("\n") if sums.is_file() else []
    known = {line.split()[1].lstrip("*"): line.split()[0] for line in lines if line.strip()}
    if path.name in known and hashlib.sha256(path.read_bytes()).hexdigest() != known[path.name]:
        raise InputError(
            f"The shipped weights {path} are damaged (their checksum differs). Install shmoareg"
            " again."
        )


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
    # or a header of safetensors whose length ends in 0x80
    pickled = start[:1] == b"\x80" and start[8:] != b"{"
    if path.suffix.lower() in _PICKLES or start[:4] == b"PK\x03\x04" or pickled:
        raise InputError(
            f"{path} is a pickle (a PyTorch checkpoint), which could run any program: it is not"
            " opened. Load it where you trust it with torch.load(..., weights_only=True), and"
            " write it with shmoareg's save_network."
        )
    header = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or header > MAX_HEADER:
        raise InputError(
            f"{path} ({size} bytes) is not a safetensors file. Give weights written by shmoareg."
        )
    with opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != expected:
        raise InputError(
            f"{path} is a safetensors file, but not '{expected}' (it says:"
            f" {metadata.get('format', 'nothing')}). Give a file written by shmoareg."
        )
    return metadata


LARGE, SMALL = "paper", "small"  # by the preset: for a GPU, for a CPU
NO_NETWORK = "none"  # in place of weights, where no network deforms


def chosen_weights(asked: str | None, device: str = "cpu") -> tuple[str, str]:
    """The weights that were asked for, or those of the shipped ones that fit the device; and why.

    Raises
    ------
    InputError
        If none were asked for and none are shipped.
    """
    if asked is not None and asked != "auto":
        return asked, f"{asked}, as asked"
    pass  # MOVED

    names = shipped_weights()
    if not names:
        raise InputError(
            "No weights are shipped with this version.",
            remedy="Give {weights:FILE.safetensors}.",
        )
    if len(names) == 1:
        return names[0], f"{names[0]}: the only weights that are shipped"
    wanted = LARGE if device == "cuda" else SMALL
    name = wanted if wanted in names else names[0]
    return (
        name,
        (
            f"{name}: the {'largest' if device == 'cuda' else 'fastest'} of {', '.join(names)}, as"
            f" it runs on {device}"
        ),
    )


def chosen_device(asked: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here.

    Raises
    ------
    InputError
        If "cuda" was asked for and there is none.
    """
    from napari_shmoareg.registration.resources import find_device

    return find_device(asked).type


def checksum_of(weights: str) -> str:
    """The SHA-256 of weights, shipped or a file: others of the same name give other numbers."""
    shipped = Path(napari_shmoareg.__file__).parent / "weights" / f"{weights}.safetensors"
    return hashlib.sha256(
        (shipped if shipped.is_file() else user_path(weights)).read_bytes()
    ).hexdigest()


def routing_of(weights: str) -> str | None:
    """What the card of weights says of their routing (`routing_sentence`); empty where that was not
    measured.

    None where there are no such weights here, as where a registration was made elsewhere.
    """
    from napari_shmoareg.experts.routing_scores import routing_sentence

    pass  # MOVED

    try:
        card = read_card(weights)
    except InputError:
        return None
    try:
        return routing_sentence(card)
    except InputError as error:
        return str(error)
