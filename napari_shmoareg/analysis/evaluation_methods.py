"""The methods that can be evaluated, each as a function from a pair to what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_shmoareg.analysis.evaluation import Found, Method
from napari_shmoareg.engine.affine import align
from napari_shmoareg.engine.peers import (
    METHODS,
    NETWORKS,
    REFINED,
    SMOOTHER,
    START,
    check_available,
    load_method,
)
from napari_shmoareg.engine.refinement import DEFAULT_STEPS
from napari_shmoareg.engine.registration import register
from napari_shmoareg.geometry import Transform, VolumePair

if TYPE_CHECKING:
    from napari_shmoareg.model import SHMoAReg

OWN = (*NETWORKS, "affine+refine", "affine", START)


def evaluated_method(name: str, settings: Mapping[str, Any], network: SHMoAReg | None = None) -> Method:
    """A method of `napari_shmoareg.engine.peers.METHODS`, ready to run.

    Parameters
    ----------
    name : str
    settings : mapping
        "affine", "size", "diffeomorphic", "device", "refine", "similarity", "contrast" and "smoothness", as for
        `register`; "unigradicon_weights", a file, for that method.  The peers take what they know.
    network : SHMoAReg, optional
        For those of `NETWORKS`.

    Raises
    ------
    InputError
        If the method is not known or not installed.
    """
    if name in (*NETWORKS, *REFINED):
        if network is None and name in NETWORKS:
            raise ValueError(f"the method '{name}' needs a network")
        options = {
            key: settings[key] for key in ("affine", "size", "diffeomorphic", "device", "contrast", "smoothness")
        }
        options["smoothness"] = SMOOTHER.get(name, options["smoothness"])
        steps = settings["refine"] or (DEFAULT_STEPS if name in REFINED else 0)
        if steps:
            options |= {"refine": steps, "similarity": settings["similarity"]}

        def run(pair: VolumePair) -> Found:
            registration = register(pair, network if name in NETWORKS else None, **options)
            matrix = registration.alignment.matrix
            return Found(registration.displacement, matrix, tuple(registration.warnings))

        return run
    if name == "affine":

        def place(pair: VolumePair) -> Found:
            matrix = align(pair, settings["affine"]).matrix
            return Found(Transform(matrix).total(pair.fixed.grid), matrix)

        return place
    check_available(name)
    peer = load_method(name, **{option: settings[option] for option in METHODS[name].options})
    return lambda pair: Found(peer.run(pair))
