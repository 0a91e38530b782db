"""What a run was begun with, as run.json tells it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from napari_shmoareg.engine.expert_training import check_start, expert_config
from napari_shmoareg.engine.run_settings import RunSettings
from napari_shmoareg.engine.training_settings import ITERATIONS, FineTuning, upgraded
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.checkpoint import load_network
from napari_shmoareg.io.model_card import read_card
from napari_shmoareg.io.training_run.dataset_choice import DatasetChoice as DatasetChoice
from napari_shmoareg.io.training_run.from_nothing import PRESET, config_from_nothing
from napari_shmoareg.io.untrusted import check_fields, names_input, read_json, user_path
from napari_shmoareg.io.versions import versions
from napari_shmoareg.io.weights import NO_NETWORK, checksum_of
from napari_shmoareg.model import SHMoARegConfig

FORMAT = "shmoareg-run-1"
WHAT_NOW = (
    "it tells what the run was begun with. Put back a copy of it, or begin another run in another folder, from the "
    "weights in this one."
)
# What may differ when a run goes on: how long, how it is watched and kept; nothing that a step depends on.
FREE = {"minutes", "validate_every", "validation_pairs", "save_every", "tensorboard"}


@dataclass(frozen=True)
class Plan:
    """What decides a run.

    Attributes
    ----------
    dataset : DatasetChoice
    weights : dict
        What it began from: "name", "sha256", "card"; from nothing, "none", no checksum, an empty card, and "preset"
        and "changes" of the network.
    config : dict
        Of the network.
    settings : FineTuning
        With the size and the share of diffeomorphic steps that these weights ask for.
    run : RunSettings
    versions : dict of str to str or None
        Of the software that began it.
    """

    dataset: DatasetChoice
    weights: Mapping[str, Any]
    config: Mapping[str, Any]
    settings: FineTuning
    run: RunSettings
    versions: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def network_config(self) -> SHMoARegConfig:
        """The network's config.

        Raises
        ------
        InputError
            If this version does not know it.
        """
        try:
            return SHMoARegConfig.from_dict(self.config)
        except (TypeError, ValueError) as error:
            raise InputError(f"The network of this run is not one that this version knows ({error}).") from error

    def to_dict(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return {
            "format": FORMAT,
            "dataset": {"path": self.dataset.path, "options": self.dataset.options},
            "from": dict(self.weights),
            "config": dict(self.config),
            "settings": self.settings.to_dict(),
            "run": self.run.to_dict(),
            "versions": dict(self.versions),
        }

    def changed(self, settings: Mapping[str, Any], run: Mapping[str, Any], dataset: Mapping[str, Any]) -> Plan:
        """The plan with which the run goes on, where some options are given anew.

        Parameters
        ----------
        settings, run, dataset : mapping
            Fields of `FineTuning`, `RunSettings` and `DatasetChoice` that were given.

        Returns
        -------
        Plan
            With more steps, other settings of those in `FREE`, and another place of the data set: whether the
            same scans are there is seen by `prepare`.

        Raises
        ------
        InputError
            If others differ, or there would be fewer steps.
        """
        pairs = ((self.settings, settings), (self.run, run), (self.dataset, dataset))
        differ = [
            f"{name} ({getattr(mine, name)!r}, not {value!r})"
            for mine, given in pairs
            for name, value in given.items()
            if name not in FREE | {"steps", "path"} and not _same(name, getattr(mine, name), value)
        ]
        if differ:
            raise InputError(
                f"The run was begun with other settings: {', '.join(differ)}. Go on without giving them anew, or begin "
                "another run in another folder."
            )
        steps = settings.get("steps", self.settings.steps)
        if steps < self.settings.steps:
            raise InputError(
                f"The run was begun with {self.settings.steps} steps; their number may grow, not fall to {steps}. Use "
                "--minutes, or stop it, to end it earlier."
            )
        if steps > self.settings.steps and self.settings.final_rate is not None:
            raise InputError(
                f"The run's rate falls to {self.settings.final_rate:g} over its {self.settings.steps} steps; over "
                f"{steps} it would rise again at once. Only a run without --final-rate may grow: begin another run, "
                "from the weights of this one."
            )
        place = str(dataset.get("path", self.dataset.path))
        moved = not is_same_place(place, self.dataset.path)
        where = replace(self.dataset, path=place) if moved else self.dataset
        free = {name: value for name, value in run.items() if name in FREE}
        settings_now = replace(self.settings, steps=steps)
        return replace(self, dataset=where, settings=settings_now, run=replace(self.run, **free))


def make_plan(
    weights: str,
    dataset: DatasetChoice,
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
    *,
    preset: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a new run.

    Parameters
    ----------
    weights : str
        Shipped name or file; "none" to begin from nothing, with random weights.
    dataset : DatasetChoice
    settings, run : mapping
        Fields of `FineTuning` and `RunSettings` that were given; the size and the share of diffeomorphic steps
        are else as the weights say, and the steps from nothing those of Sec. IV-B.
    preset, changes : optional
        Of the network, from nothing only; see `config_from_nothing`.

    Raises
    ------
    InputError
        If there are no such weights, or a setting is out of its range.
    """
    begun: dict[str, Any]
    running = RunSettings(**run)
    if weights == NO_NETWORK:
        chosen = FineTuning(**{"steps": ITERATIONS, **settings})
        config = config_from_nothing(preset, changes or {}, chosen)
        begun = {
            "name": NO_NETWORK,
            "sha256": "",
            "card": {},
            "preset": preset or PRESET,
            "changes": dict(changes or {}),
        }
    else:
        if preset is not None or changes:
            raise InputError(
                f"A preset, or changes of a network, choose what begins from nothing; the weights '{weights}' have a "
                f"network. Begin from '{NO_NETWORK}', or leave them out."
            )
        chosen, config = FineTuning(**settings), load_network(weights).config
        check_start(chosen)
        begun = {"name": weights, "sha256": checksum_of(weights), "card": read_card(weights)}
    config = expert_config(config, chosen)
    if chosen.wants_motion and not chosen.known_motion:
        raise InputError(
            "correspondence_weight and the teacher 'drawn' learn where the true motion is known, which it is of no two "
            "scans: give --known-motion 0.5 too, for as large a share of steps that deform one scan."
        )
    if not chosen.size:
        chosen = replace(chosen, size=config.learning_size)
    if "diffeomorphic" not in settings and config.diffeomorphic:
        chosen = replace(chosen, diffeomorphic=1.0)
    return Plan(dataset, begun, config.to_dict(), chosen, running, versions())


@names_input
def read_plan(path: Path) -> Plan:
    """Read run.json.

    Raises
    ------
    InputError
        If there is none, it is damaged, or of another version.
    """
    found = read_told(path)
    try:
        path_of, options = found["dataset"]["path"], dict(found["dataset"]["options"])
        if options.get("window") is not None:
            options["window"] = tuple(options["window"])
        settings = upgraded(found["settings"])
        for kind, values in ((DatasetChoice, options), (FineTuning, settings), (RunSettings, found["run"])):
            check_fields(kind, values)
        if not all(isinstance(found[key], dict) for key in ("config", "versions")):
            raise ValueError("the network or the versions are not told")
        if not all(
            isinstance(found["from"][key], kind) for key, kind in (("name", str), ("sha256", str), ("card", dict))
        ):
            raise ValueError("the weights it began from are not told")
        return Plan(
            dataset=DatasetChoice(str(path_of), **options),
            weights=dict(found["from"]),
            config=dict(found["config"]),
            settings=FineTuning(**settings),
            run=RunSettings(**found["run"]),
            versions=dict(found["versions"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is damaged, or of another version of shmoareg ({error}): {WHAT_NOW}") from error


def read_told(path: Path) -> dict[str, Any]:
    """The content of run.json as it is.

    Raises
    ------
    InputError
        If there is no run, or the file is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} holds no run of fine-tune (there is no {path.name}). Name the folder of one.")
    try:
        found = read_json(path, "what a run was begun with")
    except InputError as error:
        raise InputError(f"{error} {WHAT_NOW[0].upper()}{WHAT_NOW[1:]}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path} is not of a run that this version knows (its format is not '{FORMAT}').")
    return found


def write_plan(path: Path, plan: Plan) -> None:
    """Write run.json, whole or not at all.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    with writing(path) as temporary:
        temporary.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")


def is_same_place(one: str, other: str) -> bool:
    """Whether two names are of one file or folder, by links and the way there."""
    return one == other or user_path(one).resolve() == user_path(other).resolve()


def _same(name: str, mine: Any, given: Any) -> bool:
    """Whether a setting given anew is the one that the run has; a size of 0 was, and is, what the weights ask for."""
    if isinstance(mine, tuple) or isinstance(given, tuple):
        return tuple(mine or ()) == tuple(given or ())
    return bool(mine == given) or (name == "size" and given == 0)
