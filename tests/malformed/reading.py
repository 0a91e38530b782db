"""The one process that reads the whole corpus: `python reading.py FOLDER`, a line of JSON for each
input.

A line {"begun": n} precedes each, so that what ends or stops the process is known.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from corpus import Found, Malformed, Refused, Truth, Warned, alike
from images import all_images
from others import all_others, prepare
from scans import all_scans

MEMORY = 4 << 30  # bytes of address space beyond what the libraries take
PATIENCE = 10  # seconds for an input
_PROBES = np.array([[0.0, 0, 0], [5, -3, 2], [-12, -8, 4], [3, 9, -6]])


class HangError(BaseException):
    """An input took too long."""


def everything() -> list[Malformed]:
    return [*all_images(), *all_scans(), *all_others()]


def _image(path: Any) -> Found:
    from napari_shmoareg.io import read_image

    volume = read_image(path)
    return Found(volume.values, volume.grid.affine)


def _labels(path: Any) -> Found:
    from napari_shmoareg.io import read_image

    volume = read_image(path, labels=True)
    return Found(volume.values, volume.grid.affine)


def _pair(path: Any) -> Found:
    from napari_shmoareg.io import read_pair

    pair = read_pair(path, path)
    return Found(np.stack([pair.moving.values, pair.fixed.values]), pair.fixed.grid.affine)


def _transform(path: Any) -> Found:
    from napari_shmoareg.io import read_transform

    found = read_transform(path)
    if found.field is not None:
        return Found(found.field.vectors, found.field.grid.affine)
    return Found(_PROBES @ found.affine[:3, :3].T + found.affine[:3, 3])


def _landmarks(path: Any) -> Found:
    from napari_shmoareg.io.landmarks import read_landmark_pairs

    found = read_landmark_pairs(path)
    for note in found.notes:  # which the command and the window print
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=1)
    return Found(np.hstack([found.fixed, found.moving]))


def _points(path: Any) -> Found:
    from napari_shmoareg.io.landmarks import read_points

    return Found(read_points(path))


def _pair_list(path: Any) -> Found:
    from napari_shmoareg.datasets import read_pair_list

    return Found([[f.moving.name, f.fixed.name] for f in read_pair_list(path).files])


def _dataset(path: Any) -> Found:
    from napari_shmoareg.datasets import open_dataset

    return Found(sorted(scan.image.name for scan in open_dataset(path).scans))


def _scene(path: Any) -> Found:
    from napari_shmoareg.io import read_registration

    scene = read_registration(path)
    return Found(scene.pair.fixed.values, scene.pair.fixed.grid.affine)


def _summary(path: Any) -> Found:
    from napari_shmoareg.io.report import read_registration_summary

    return Found(read_registration_summary(path).report)


def _run(path: Any) -> Found:
    from napari_shmoareg.training.plan import read_plan

    return Found(json.loads(json.dumps(read_plan(path).to_dict())))


def _lock(path: Any) -> Found:
    from napari_shmoareg.training.run_folder import RunLock

    with RunLock(path):
        return Found("held")


def _split(path: Any) -> Found:
    from napari_shmoareg.datasets.splits import read_division

    return Found(read_division(path).split.to_dict())


def _evaluation(path: Any) -> Found:
    from napari_shmoareg.evaluation.run import EvaluationFolder

    return Found(EvaluationFolder(Path(path).parent).read_plan())


def _weights(path: Any) -> Found:
    from napari_shmoareg.io import load_network

    state = load_network(path).state_dict()
    return Found(np.array([np.float64(state[name].numpy()).sum() for name in sorted(state)]))


DOORS: dict[str, Callable[[Any], Found]] = {
    "image": _image,
    "labels": _labels,
    "pair": _pair,
    "transform": _transform,
    "landmarks": _landmarks,
    "points": _points,
    "pair list": _pair_list,
    "dataset": _dataset,
    "scene": _scene,
    "summary": _summary,
    "run": _run,
    "lock": _lock,
    "split": _split,
    "evaluation": _evaluation,
    "weights": _weights,
}


def main(folder: Path) -> None:
    faulthandler.enable()
    prepare(folder)
    inputs = everything()
    _load_libraries(folder / "whole.safetensors")
    here = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, here + MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    began = time.monotonic()
    for n, each in enumerate(inputs):
        print(json.dumps({"begun": n, "kind": each.kind, "name": each.name}), flush=True)
        place = folder / f"{n:04d}"
        place.mkdir()
        start = time.monotonic()
        try:
            outcome, detail = judged(each, place)
        except HangError:
            outcome, detail = "hang", f"longer than {PATIENCE} s"
        took = round(time.monotonic() - start, 3)
        print(json.dumps({"outcome": outcome, "seconds": took, "detail": detail}), flush=True)
        shutil.rmtree(place, ignore_errors=True)
    print(
        json.dumps({"inputs": len(inputs), "seconds": round(time.monotonic() - began, 1)}),
        flush=True,
    )


def _load_libraries(whole: Path) -> None:
    """Load what readers load on first use, before the limit is set."""
    import nibabel  # noqa: F401
    import pydicom  # noqa: F401
    import SimpleITK  # noqa: F401

    import napari_shmoareg.io.registration_folder  # noqa: F401
    import napari_shmoareg.training.plan  # noqa: F401
    from napari_shmoareg.io import load_network

    load_network(whole)


def _too_long(*what: object) -> None:
    raise HangError


def judged(each: Malformed, place: Path) -> tuple[str, str]:
    """What came of one input: refused, warned, read; or a fault: bug, nameless, wrong, silent."""
    given = each.write(place)
    faulthandler.dump_traceback_later(4 * PATIENCE, exit=True)
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = DOORS[each.door](given)
    except Exception as error:
        signal.alarm(0)
        return _of_error(each, given, error)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    # Warnings of pydicom and others do not name the input: they do not count.
    texts = (str(one.message) for one in caught if issubclass(one.category, UserWarning))
    said = " ".join(text for text in texts if _names(text, given))
    return _of_reading(each, given, found, said)


def _names(text: str, given: Path | str) -> bool:
    """Whether a message names the input."""
    from napari_shmoareg.io.untrusted import printable

    name = (
        given.name
        if isinstance(given, Path)
        else given.replace("\0", "\\x00").split("#")[0].split("/")[-1][:100]
    )
    return name in text or printable(name) in text


def _of_error(each: Malformed, given: Any, error: Exception) -> tuple[str, str]:
    from napari_shmoareg.cli.console import explain
    from napari_shmoareg.errors import InputError

    text = explain(error)
    if not isinstance(error, InputError | OSError) or "This is a bug" in text:
        return "bug", "".join(traceback.format_exception(error)[-3:]) + text
    if not _names(text, given):
        return "nameless", text
    wanted = each.outcome
    if isinstance(wanted, Found | Warned):
        return "wrong", f"refused, but it is to be read: {text}"
    lost = (
        [word for word in wanted.words if word not in text] if isinstance(wanted, Refused) else []
    )
    return ("wrong", f"no word of {lost}: {text}") if lost else ("refused", text)


def _of_reading(each: Malformed, given: Any, found: Found, said: str) -> tuple[str, str]:
    wanted = each.outcome
    if isinstance(wanted, Refused):
        return "silent", f"read, but it is to be refused; it warned: {said!r}"
    if isinstance(wanted, Truth):
        why = "it does not say plainly what it holds"
        try:
            truth = wanted.parse(Path(given))
        except Exception as error:
            truth, why = wanted.whole, f"{type(error).__name__}: {error}"
        if said:
            return "warned", said
        if truth is None:
            return "silent", f"read without a word, shape {np.shape(found.values)}; {why}"
        differs = alike(found, truth)
        return ("silent", differs) if differs else ("read", "")
    if isinstance(wanted, Warned):
        lost = [word for word in wanted.words if word not in said]
        differs = alike(found, wanted.found)
        if lost or not said:
            return "silent", f"no warning with {wanted.words}: {said!r}"
        return ("wrong", differs) if differs else ("warned", said)
    differs = alike(found, wanted)
    return ("silent", differs) if differs else ("warned" if said else "read", said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
