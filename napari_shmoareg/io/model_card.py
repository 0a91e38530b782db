"""Format check and model card of weights files, and the choice of default weights.

Does not load torch, and never unpickles, because a pickle can run arbitrary code.
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
MAX_HEADER = 16 * 2**20  # bytes; the paper's network with its card needs 0.1 MB
SHIPPED = Path(__file__).resolve().parent.parent / "weights"
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".tar")


@names_input
def read_card(name_or_path: str | Path) -> dict[str, Any]:
    """Read the model card of shipped weights or of a file, without reading the weights.

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
def open_safetensors(path: Path, framework: str = "numpy") -> Iterator[Any]:
    """Open a safetensors file; errors name the file.

    Parameters
    ----------
    path : Path
    framework : {"numpy", "pt"}
        Type of the tensors; not needed for names, shapes and metadata.

    Raises
    ------
    InputError
        If the file is damaged or truncated.
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
    """Path of shipped weights (after verifying their checksum) or of a weights file.

    Raises
    ------
    InputError
        If it is missing, the shipped file is damaged, or its name is not UTF-8.
    """
    name, path = str(name_or_path), user_path(name_or_path)
    if name in shipped_weights():
        path = SHIPPED / f"{name}.safetensors"
        _verify_checksum(path)
    elif not is_there(path) or not path.is_file():
        shipped = ", ".join(shipped_weights()) or "none"
        raise InputError(
            f"There are no weights '{name:.300}': neither a file nor shipped ({shipped})."
        )
    if printable(str(path)) != str(path):
        raise InputError(
            f"The name of the weights {printable(str(path))} is not UTF-8; safetensors cannot open"
            " such files. Rename the file or its folder."
        )
    return path


def _verify_checksum(path: Path) -> None:
    listing = path.parent / "SHA256SUMS"
    lines = listing.read_text(encoding="utf-8").split("\n") if listing.is_file() else []
    checksums = {line.split()[1].lstrip("*"): line.split()[0] for line in lines if line.strip()}
    if (
        path.name in checksums
        and hashlib.sha256(path.read_bytes()).hexdigest() != checksums[path.name]
    ):
        raise InputError(
            f"The shipped weights {path} are damaged (their checksum differs). Install shmoareg"
            " again."
        )


def check_format(path: Path, expected: str) -> dict[str, str]:
    """Check the format of a safetensors file and return its metadata.

    Raises
    ------
    InputError
        If the file is truncated, a pickle, or not of the `expected` format.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(9)
    # a safetensors header may also begin with 0x80
    pickled = start[:1] == b"\x80" and start[8:] != b"{"
    if path.suffix.lower() in _PICKLES or start[:4] == b"PK\x03\x04" or pickled:
        raise InputError(
            f"{path} is a pickle (a PyTorch checkpoint), which could run any program: it is not"
            " opened. If you trust it, load it with torch.load(..., weights_only=True), and write"
            " it with shmoareg's save_network."
        )
    header = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or header > MAX_HEADER:
        raise InputError(
            f"{path} ({size} bytes) is not a safetensors file. Give weights written by shmoareg."
        )
    with open_safetensors(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != expected:
        raise InputError(
            f"{path} is a safetensors file, but not '{expected}' (it says:"
            f" {metadata.get('format', 'nothing')}). Give a file written by shmoareg."
        )
    return metadata


LARGE, SMALL = "paper", "small"  # presets for a GPU and for a CPU
NO_NETWORK = "none"  # in place of weights: no network is used


def choose_weights(requested: str | None, device: str = "cpu") -> tuple[str, str]:
    """Choose the requested weights, or the shipped ones that suit the device; return name and
    reason.

    Raises
    ------
    InputError
        If none are requested and none are shipped.
    """
    if requested is not None and requested != "auto":
        return requested, f"{requested}, as requested"
    names = shipped_weights()
    if not names:
        raise InputError(
            "No weights are shipped with this version.",
            remedy="Give {weights:FILE.safetensors}.",
        )
    if len(names) == 1:
        return names[0], f"{names[0]}: the only weights that are shipped"
    preferred = LARGE if device == "cuda" else SMALL
    name = preferred if preferred in names else names[0]
    return (
        name,
        (
            f"{name}: the {'largest' if device == 'cuda' else 'fastest'} of {', '.join(names)}, as"
            f" it runs on {device}"
        ),
    )


def choose_device(requested: str) -> str:
    """Choose the device for "auto", "cpu" or "cuda"."""
    from napari_shmoareg.registration.resources import find_device

    return find_device(requested).type


def checksum_of(weights: str) -> str:
    """SHA-256 of weights, shipped or a file: tells apart different weights of the same name."""
    shipped = Path(napari_shmoareg.__file__).parent / "weights" / f"{weights}.safetensors"
    return hashlib.sha256(
        (shipped if shipped.is_file() else user_path(weights)).read_bytes()
    ).hexdigest()


def card_of(weights: str) -> dict[str, Any] | None:
    """The model card of weights; None if they are not available here, for example for a
    registration made elsewhere.
    """
    try:
        return read_card(weights)
    except InputError:
        return None


def routing_of(weights: str) -> str | None:
    """Sentence on the routing of weights from their model card; empty if it was not measured.

    None if the weights are not available here, for example for a registration made elsewhere.
    """
    from napari_shmoareg.experts.routing_scores import routing_sentence

    card = card_of(weights)
    if card is None:
        return None
    try:
        return routing_sentence(card)
    except InputError as error:
        return str(error)
