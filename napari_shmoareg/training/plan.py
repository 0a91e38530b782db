"""The plan of a training run, run.json, and whether a resumed run still fits it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from napari_shmoareg.datasets.dataset import DatasetChoice
from napari_shmoareg.datasets.splits import PARTS, Division, Print
from napari_shmoareg.errors import InputError
from napari_shmoareg.io import load_network, read_card
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.machine import versions
from napari_shmoareg.io.model_card import NO_NETWORK, checksum_of
from napari_shmoareg.io.untrusted import check_fields, names_input, read_json, user_path
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.training.expert_training import check_start, expert_config
from napari_shmoareg.training.run import RunFolder
from napari_shmoareg.training.settings import ITERATIONS, FineTuning, RunSettings, upgraded

if TYPE_CHECKING:
    from napari_shmoareg.datasets import Checkup


PRESET = "paper"


def starts_from_scratch(weights: Mapping[str, Any]) -> bool:
    """Whether a run began from nothing, by what its plan or run.json says of its weights."""
    return weights.get("name") == NO_NETWORK


def describe_start(weights: Mapping[str, Any]) -> str:
    """What a run began from, in words."""
    if not starts_from_scratch(weights):
        return str(weights["name"])
    preset, changes = weights.get("preset", "?"), weights.get("changes") or {}
    changed = "".join(f", {name}={value}" for name, value in changes.items())
    return f"nothing (random weights of preset {preset}{changed})"


def config_from_scratch(
    preset: str | None, changes: Mapping[str, Any], settings: FineTuning
) -> SHMoARegConfig:
    """The network of a run that begins from nothing.

    As in the paper it learns and registers on grids of one size, in one pass, unless a cascade or
    other passes are asked for.

    Parameters
    ----------
    preset : str or None
        Of `SHMoARegConfig.preset`; None is "paper", Sec. IV-B.
    changes : mapping
        Fields of `SHMoARegConfig` with other values, such as those of Table II.
    settings : FineTuning
        Its size (0: the preset's), and its share of diffeomorphic steps: where that is 1, so are
        registrations.

    Raises
    ------
    InputError
        If there is no such preset, or a value is out of its range.
    """
    try:
        config = SHMoARegConfig.from_dict(
            SHMoARegConfig.preset(preset or PRESET).to_dict() | dict(changes)
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"No network can be built so: {error}") from error
    if settings.diffeomorphic == 1:
        config = replace(config, diffeomorphic=True)
    if settings.cascade > 0 or settings.passes == "keep" or "passes" in changes:
        return config
    return replace(
        config, size=settings.size or round(config.size * config.passes[0]), passes=(1.0,)
    )


def random_network(config: SHMoARegConfig, seed: int) -> SHMoAReg:
    """A network with the random weights of a seed, the same in every process; the random numbers go
    on as before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SHMoAReg(config)


def parse_changes(words: list[str]) -> dict[str, Any]:
    """``attention=mha``, ``shmoe_strides=none``, ``window=5,6,7``: fields of `SHMoARegConfig` with
    their values.

    Raises
    ------
    InputError
        If a word is not NAME=VALUE, there is no such field, or its value is of another kind.
    """
    defaults = {field.name: field.default for field in fields(SHMoARegConfig)}
    found: dict[str, Any] = {}
    for word in words:
        name, mark, text = (part.strip() for part in word.partition("="))
        name = name.replace("-", "_")
        if not mark or name not in defaults:
            raise InputError(
                f"'{word:.80}' sets no part of the network: NAME=VALUE was expected, such as"
                f" attention=mha or shmoe_strides=none. Names are {', '.join(defaults)}."
            )
        try:
            found[name] = _value(text, defaults[name])
        except ValueError as error:
            kind = {tuple: "numbers such as 1,2, or none", bool: "true or false"}.get(
                type(defaults[name]), "a number"
            )
            raise InputError(f"{name} takes {kind}; got '{text:.80}'.") from error
    return found


def _value(text: str, default: Any) -> Any:
    """A value of the same kind as the default."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(default, tuple):
        parts = [] if text in ("", "none") else text.split(",")
        return [float(part) if isinstance(default[0], float) else int(part) for part in parts]
    return type(default)(text)


FORMAT = "shmoareg-run-1"
REMEDY = (
    "it tells what the run was begun with. Put back a copy of it, or begin another run in another"
    " folder, from the weights in this one."
)
# What may differ when a run goes on: how long, how it is watched and kept; nothing that a step
# depends on.
FREE = {"minutes", "validate_every", "validation_pairs", "save_every", "tensorboard"}


@dataclass(frozen=True)
class Plan:
    """What decides a run.

    Attributes
    ----------
    dataset : DatasetChoice
    weights : dict
        What it began from: "name", "sha256", "card"; from nothing, "none", no checksum, an empty
        card, and "preset" and "changes" of the network.
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
            raise InputError(
                f"The network of this run is not one that this version knows ({error})."
            ) from error

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

    def changed(
        self, settings: Mapping[str, Any], run: Mapping[str, Any], dataset: Mapping[str, Any]
    ) -> Plan:
        """The plan with which the run goes on, where some options are given anew.

        Parameters
        ----------
        settings, run, dataset : mapping
            Fields of `FineTuning`, `RunSettings` and `DatasetChoice` that were given.

        Returns
        -------
        Plan
            With more steps, other settings of those in `FREE`, and another place of the data set:
            whether the same scans are there is seen by `prepare`.

        Raises
        ------
        InputError
            If others differ, or there would be fewer steps.
        """
        pairs = ((self.settings, settings), (self.run, run), (self.dataset, dataset))
        differ = [
            f"{name} ({getattr(own, name)!r}, not {value!r})"
            for own, given in pairs
            for name, value in given.items()
            if name not in FREE | {"steps", "path"} and not _same(name, getattr(own, name), value)
        ]
        if differ:
            raise InputError(
                f"The run was begun with other settings: {', '.join(differ)}. Go on without giving"
                " them anew, or begin another run in another folder."
            )
        steps = settings.get("steps", self.settings.steps)
        if steps < self.settings.steps:
            raise InputError(
                f"The run was begun with {self.settings.steps} steps; their number may grow, not"
                f" fall to {steps}.",
                remedy="Use {minutes}, or stop it, to end it earlier.",
            )
        if steps > self.settings.steps and self.settings.final_rate is not None:
            raise InputError(
                f"The run's rate falls to {self.settings.final_rate:g} over its"
                f" {self.settings.steps} steps; over {steps} it would rise again at once.",
                remedy="Only a run without {final_rate} may grow: begin another run, from the"
                " weights of this one.",
            )
        path = str(dataset.get("path", self.dataset.path))
        moved = not is_same_path(path, self.dataset.path)
        source = replace(self.dataset, path=path) if moved else self.dataset
        free = {name: value for name, value in run.items() if name in FREE}
        longer = replace(self.settings, steps=steps)
        return replace(self, dataset=source, settings=longer, run=replace(self.run, **free))


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
        Fields of `FineTuning` and `RunSettings` that were given; the size and the share of
        diffeomorphic steps are else as the weights say, and the steps from nothing those of Sec.
        IV-B.
    preset, changes : optional
        Of the network, from nothing only; see `config_from_scratch`.

    Raises
    ------
    InputError
        If there are no such weights, or a setting is out of its range.
    """
    start: dict[str, Any]
    running = RunSettings(**run)
    if weights == NO_NETWORK:
        chosen = FineTuning(**{"steps": ITERATIONS, **settings})
        config = config_from_scratch(preset, changes or {}, chosen)
        start = {
            "name": NO_NETWORK,
            "sha256": "",
            "card": {},
            "preset": preset or PRESET,
            "changes": dict(changes or {}),
        }
    else:
        if preset is not None or changes:
            raise InputError(
                "A preset, or changes of a network, choose what begins from nothing; the weights"
                f" '{weights}' have a network. Begin from '{NO_NETWORK}', or leave them out."
            )
        chosen, config = FineTuning(**settings), load_network(weights).config
        check_start(chosen)
        start = {"name": weights, "sha256": checksum_of(weights), "card": read_card(weights)}
    config = expert_config(config, chosen)
    if chosen.uses_known_motion and not chosen.known_motion:
        raise InputError(
            "correspondence_weight and the teacher 'drawn' learn where the true motion is known,"
            " which it is of no two scans.",
            remedy="Give {known_motion:0.5} too, for as large a share of steps that deform one"
            " scan.",
        )
    if not chosen.size:
        chosen = replace(chosen, size=config.learning_size)
    if "diffeomorphic" not in settings and config.diffeomorphic:
        chosen = replace(chosen, diffeomorphic=1.0)
    return Plan(dataset, start, config.to_dict(), chosen, running, versions())


@names_input
def read_plan(path: Path) -> Plan:
    """Read run.json.

    Raises
    ------
    InputError
        If there is none, it is damaged, or of another version.
    """
    found = read_run_json(path)
    try:
        path_of, options = found["dataset"]["path"], dict(found["dataset"]["options"])
        if options.get("window") is not None:
            options["window"] = tuple(options["window"])
        settings = upgraded(found["settings"])
        for kind, values in (
            (DatasetChoice, options),
            (FineTuning, settings),
            (RunSettings, found["run"]),
        ):
            check_fields(kind, values)
        if not all(isinstance(found[key], dict) for key in ("config", "versions")):
            raise ValueError("the network or the versions are not told")
        if not all(
            isinstance(found["from"][key], kind)
            for key, kind in (("name", str), ("sha256", str), ("card", dict))
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
        raise InputError(
            f"{path} is damaged, or of another version of shmoareg ({error}): {REMEDY}"
        ) from error


def read_run_json(path: Path) -> dict[str, Any]:
    """The content of run.json as it is.

    Raises
    ------
    InputError
        If there is no run, or the file is damaged.
    """
    if not path.is_file():
        raise InputError(
            f"{path.parent} holds no run of fine-tune (there is no {path.name}). Name the folder of"
            " one."
        )
    try:
        found = read_json(path, "what a run was begun with")
    except InputError as error:
        raise InputError(f"{error} {REMEDY[0].upper()}{REMEDY[1:]}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(
            f"{path} is not of a run that this version knows (its format is not '{FORMAT}')."
        )
    return found


def write_plan(path: Path, plan: Plan) -> None:
    """Write run.json, whole or not at all.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")


def is_same_path(one: str, other: str) -> bool:
    """Whether two names are of one file or folder, by links and the way there."""
    return one == other or user_path(one).resolve() == user_path(other).resolve()


def _same(name: str, own: Any, given: Any) -> bool:
    """Whether a setting given anew is the one that the run has; a size of 0 was, and is, what the
    weights ask for.
    """
    if isinstance(own, tuple) or isinstance(given, tuple):
        return tuple(own or ()) == tuple(given or ())
    return bool(own == given) or (name == "size" and given == 0)


def check_split_exists(folder: RunFolder) -> None:
    """Refuse a run that has learned and lost its split: another draw could have its test scans
    learn.

    Raises
    ------
    InputError
        If there is a saved state and no split.json.
    """
    if folder.state.is_file() and not folder.split.is_file():
        raise InputError(
            f"{folder.split} is missing: it tells which scans learn and which judge, and another"
            " draw could let the scans for testing learn. Put back a copy of it, or begin another"
            " run in another folder."
        )


def files_of(checkup: Checkup) -> dict[str, Print]:
    """What the files of the usable scans are."""
    prints, sizes = checkup.prints, {}
    for name in checkup.usable:
        image = checkup.dataset.scan(name).image
        sizes[name] = image.stat().st_size if image.is_file() else 0  # a DICOM series is a folder
    return {name: (size, *prints[name]) for name, size in sizes.items()}


def reference_of(checkup: Checkup, affine: str) -> str | None:
    """The scan that decides the alignment of all others; None where none does."""
    return None if affine == "none" else checkup.reference


def check_scans_unchanged(
    before: Division, checkup: Checkup, plan: Plan, folder: RunFolder
) -> list[str]:
    """What became of the scans since the run began, in words.

    Parameters
    ----------
    before : Division
        Of split.json.
    checkup : Checkup
        That has run.
    plan : Plan
        With the place where the data set is now.
    folder : RunFolder
        Its run.json has the place where it was.

    Raises
    ------
    InputError
        If the scan that all others are aligned with is gone, or a data set in another place is not
        the same.
    """
    changed = list(_changed(before, checkup))
    was = read_plan(folder.run_json).dataset.path
    if was != plan.dataset.path and (changed or not before.files):
        why = (
            " ".join(changed)
            or "The run was begun by an earlier version, so its scans cannot be compared."
        )
        raise InputError(
            f"The run began with the data set {was}; {plan.dataset.path} is not the same, moved:"
            f" {why} Give the place where the very same scans are now, or begin another run in"
            " another folder."
        )
    if before.reference is not None and before.reference not in checkup.usable:
        skipped = {report.name: report.skipped for report in checkup.reports}
        why = skipped.get(before.reference) or "it is not in the data set"
        raise InputError(
            f"The scan '{before.reference}', with which the run aligned all others, cannot be used"
            f" now ({why}). With another in its place all pairs would lie differently: put it back,"
            " or begin another run in another folder. If the whole data set was moved, give its"
            f" new place: shmoareg fine-tune DATASET --out {folder.path} --resume"
        )
    if before.reference is not None and checkup.reference != before.reference:
        changed.append(
            f"The scans are aligned with '{checkup.reference}' now, and were with"
            f" '{before.reference}' when the run began: all pairs lie a little differently."
        )
    return changed


def _changed(before: Division, checkup: Checkup) -> Iterator[str]:
    now, skipped = files_of(checkup), {report.name: report.skipped for report in checkup.reports}
    used = [name for part in PARTS for name in before.used(part) if name in before.files]
    for name in used:
        if name not in skipped:
            yield f"The scan '{name}' was used when the run began, and is not in the data set now."
        elif name not in now:
            yield f"The scan '{name}' was used when the run began, and cannot be now: {skipped[name]}"
        elif now[name][1] != before.files[name][1]:
            yield f"The image of '{name}' is not the one that the run began with."
        elif now[name][2] != before.files[name][2]:
            yield f"The labels of '{name}' are not those that the run began with."
