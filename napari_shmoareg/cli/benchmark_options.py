"""What a benchmark was asked for: its methods, its pairs, and options that some of them use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from napari_shmoareg.cli.errors import say
from napari_shmoareg.cli.options import Device
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.untrusted import user_path

if TYPE_CHECKING:
    from napari_shmoareg.io.datasets import PairFiles


class Change(StrEnum):
    """What is done to the moving image's intensities."""

    none = "none"
    invert = "invert"
    gamma = "gamma"


def chosen_methods(text: str) -> list[str]:
    """The names of ``--methods``, the start before them.

    Raises
    ------
    InputError
        If one is not known or not installed.
    """
    from napari_shmoareg.engine.peers import START, TIMED, check_available

    names = list(dict.fromkeys([START, *(name.strip().lower() for name in text.split(",") if name.strip())]))
    for name in names:
        check_available(name)
        if name in TIMED and TIMED[name] not in names[: names.index(name)]:
            raise InputError(
                f"The method '{name}' takes the seconds of {TIMED[name]}: name that before it in --methods."
            )
    return names


def check_used(
    names: Sequence[str],
    *,
    refined: Mapping[str, object],
    network: Mapping[str, object],
    unigradicon: Mapping[str, object],
    own: Mapping[str, object],
) -> None:
    """Refuse what was asked of a method that does not run.

    Parameters
    ----------
    names : sequence of str
        The methods.
    refined, network, unigradicon, own : dict of option to value
        What only `REFINED` uses, what our networks use, what that peer uses, and what all of our own use; None is not
        given.

    Raises
    ------
    InputError
        With the option and the method that is missing.
    """
    from napari_shmoareg.engine.peers import NETWORKS, REFINED, SMOOTHER, TIMED

    both = dict.fromkeys((*NETWORKS, *REFINED))
    used = ((refined, REFINED), (network, NETWORKS), (unigradicon, ("unigradicon",)), (own, tuple(both)))
    for options, methods in used:
        given = [option for option, value in options.items() if value is not None]
        if given and not set(names) & set(methods):
            named = " and no ".join(name for name in methods if name not in (*TIMED, *SMOOTHER))
            raise InputError(
                f"{' and '.join(given)} would do nothing: --methods names no {named}. Add it there, or leave the "
                "option out."
            )


def chosen_gamma(change: Change, asked: float | None) -> float:
    """The exponent.

    Raises
    ------
    InputError
        If one was asked for and nothing uses it.
    """
    from napari_shmoareg.engine.changed_contrast import GAMMA

    if asked is not None and change is not Change.gamma:
        raise InputError("--gamma would do nothing without --change gamma. Add that, or leave --gamma out.")
    return GAMMA if asked is None else asked


def chosen_pairs(
    dataset: Path, images: str | None, labels: str | None, choice: tuple[int | None, int], quiet: bool
) -> tuple[PairFiles, ...]:
    """The pairs of a list or a folder, and a word on how they were chosen.

    Raises
    ------
    InputError
        If a folder has no pattern of images, or a list has one; and as `read_folder` and `read_pair_list`.
    """
    from napari_shmoareg.io.datasets import choose_pairs, read_folder, read_pair_list

    if dataset.is_dir():
        if images is None:
            raise InputError(
                f"{dataset} is a folder: say which of its files are images, as --images 'images/*.nii.gz'."
            )
        files = read_folder(dataset, images, labels)
        how = "all ordered pairs of its images"
    else:
        if images or labels:
            raise InputError(f"--images and --labels are for a folder, but {dataset} is none.")
        files, how = read_pair_list(dataset).files, "the pairs of the list"
    count, seed = choice
    if count is None or count >= len(files):
        told, chosen = f"{len(files)} pairs: {how}.", files
    else:
        chosen = choose_pairs(files, count, seed)
        counted = Counter(path for pair in chosen for path in (pair.moving, pair.fixed))
        uses = [counted[path] for path in {path for pair in files for path in (pair.moving, pair.fixed)}]
        told = (
            f"{count} of {len(files)} pairs ({how}), chosen by --seed {seed} so that each image is used as evenly as "
            f"possible: {min(uses)} to {max(uses)} times."
        )
    if not quiet:
        say(told)
    return chosen


def weights_for(names: Sequence[str], asked: str | None, device: Device) -> str | None:
    """The weights, if a method needs some; what every run would fail by is refused before hours of work."""
    from napari_shmoareg.engine.peers import NETWORKS

    if not set(names) & set(NETWORKS):
        return None
    from napari_shmoareg.io.model_card import read_card, shipped_weights
    from napari_shmoareg.io.weights import chosen_device, chosen_weights

    name, _ = chosen_weights(asked, chosen_device(device.value))
    read_card(name)
    return name if name in shipped_weights() else str(user_path(name).resolve())


def unigradicon_weights_for(names: Sequence[str], asked: Path | None) -> str | None:
    """The file of uniGradICON's weights, if that method is named; what every run would fail by is refused before."""
    if "unigradicon" not in names:
        return None
    from napari_shmoareg.engine.peers import load_method

    file = None if asked is None else str(user_path(asked).resolve())
    load_method("unigradicon", unigradicon_weights=file, device="cpu")
    return file


def default_steps() -> int:
    """Of a refinement, where none were asked for."""
    from napari_shmoareg.engine.refinement import DEFAULT_STEPS

    return DEFAULT_STEPS


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
