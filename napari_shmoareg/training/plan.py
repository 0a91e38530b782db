"""The plan of a training run (run.json), and checks of a resumed run against it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from napari_shmoareg.datasets.dataset import PARTS, DatasetChoice
from napari_shmoareg.datasets.splits import Division, FileRecord
from napari_shmoareg.errors import InputError
from napari_shmoareg.io import load_network, read_card
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.io.machine import versions
from napari_shmoareg.io.model_card import NO_NETWORK, checksum_of
from napari_shmoareg.io.untrusted import check_fields, names_input, read_json, user_path
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.training.expert_training import check_start, expert_config
from napari_shmoareg.training.recipes import RUN, Recipe, SyntheticChoice, recipe_of
from napari_shmoareg.training.run_folder import RunFolder
from napari_shmoareg.training.settings import ITERATIONS, FineTuning, RunSettings, upgraded

if TYPE_CHECKING:
    from napari_shmoareg.datasets import Checkup


PRESET = "paper"


def starts_from_scratch(weights: Mapping[str, Any]) -> bool:
    """Whether the weights entry of a plan or run.json means random weights."""
    return weights.get("name") == NO_NETWORK


def describe_start(weights: Mapping[str, Any]) -> str:
    """Describe what a run started from."""
    if not starts_from_scratch(weights):
        return str(weights["name"])
    preset, changes = weights.get("preset", "?"), weights.get("changes") or {}
    changed = "".join(f", {name}={value}" for name, value in changes.items())
    return f"nothing (random weights of preset {preset}{changed})"


def config_from_scratch(
    preset: str | None, changes: Mapping[str, Any], settings: FineTuning
) -> SHMoARegConfig:
    """The network config of a run that starts from random weights.

    As in the paper, it trains and registers on grids of one size in one pass, unless a cascade or
    other passes are set.

    Parameters
    ----------
    preset : str or None
        Of `SHMoARegConfig.preset`; None is "paper", Sec. IV-B.
    changes : mapping
        Changed fields of `SHMoARegConfig`, such as those of Table II.
    settings : FineTuning
        Uses size (0: the preset's) and diffeomorphic: if that is 1, registrations are diffeomorphic
        too.

    Raises
    ------
    InputError
        If there is no such preset, or a value is out of range.
    """
    try:
        config = SHMoARegConfig.from_dict(
            SHMoARegConfig.preset(preset or PRESET).to_dict() | dict(changes)
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"The network config is not valid: {error}") from error
    if settings.diffeomorphic == 1:
        config = replace(config, diffeomorphic=True)
    if settings.cascade > 0 or settings.passes == "keep" or "passes" in changes:
        return config
    return replace(
        config, size=settings.size or round(config.size * config.passes[0]), passes=(1.0,)
    )


def random_network(config: SHMoARegConfig, seed: int) -> SHMoAReg:
    """A network with random weights from a seed; torch's random state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SHMoAReg(config)


def parse_changes(words: list[str]) -> dict[str, Any]:
    """Parse ``attention=mha``, ``shmoe_strides=none``, ``window=5,6,7`` into `SHMoARegConfig`
    fields.

    Raises
    ------
    InputError
        If a word is not NAME=VALUE, there is no such field, or its value has the wrong type.
    """
    defaults = {field.name: field.default for field in fields(SHMoARegConfig)}
    found: dict[str, Any] = {}
    for word in words:
        name, mark, text = (part.strip() for part in word.partition("="))
        name = name.replace("-", "_")
        if not mark or name not in defaults:
            raise InputError(
                f"'{word:.80}' is not a network setting: expected NAME=VALUE, such as"
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
    """Parse a value of the same type as the default."""
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
    "it holds the settings of the run. Restore a copy of it, or start another run in another"
    " folder, from the weights in this one."
)
# Settings that may change on resume: duration, validation, saving; nothing that a step depends on.
FREE = {"minutes", "validate_every", "validation_pairs", "save_every", "tensorboard"}


@dataclass(frozen=True)
class Plan:
    """All settings of a run.

    Attributes
    ----------
    dataset : DatasetChoice or SyntheticChoice
    weights : dict
        What it started from: "name", "sha256", "card". For random weights: "none", no checksum, an
        empty card, and "preset" and "changes" of the network.
    config : dict
        Network config.
    settings : FineTuning
        With the size and the share of diffeomorphic steps of the weights filled in.
    run : RunSettings
    versions : dict of str to str or None
        Versions of the software that started it.
    """

    dataset: DatasetChoice | SyntheticChoice
    weights: Mapping[str, Any]
    config: Mapping[str, Any]
    settings: FineTuning
    run: RunSettings
    versions: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def is_synthetic(self) -> bool:
        """Whether the run trains on synthetic pairs."""
        return isinstance(self.dataset, SyntheticChoice)

    @property
    def synthetic(self) -> SyntheticChoice:
        """The data set of a run on synthetic pairs."""
        assert isinstance(self.dataset, SyntheticChoice)
        recipe = replace(self.dataset.recipe, settings=self.settings)
        return replace(self.dataset, recipe=recipe)

    @property
    def averaging(self) -> float:
        """Decay of the running mean of the weights, which is the result; 0 without."""
        return self.synthetic.recipe.averaging if self.is_synthetic else 0.0

    @property
    def network_config(self) -> SHMoARegConfig:
        """The network config.

        Raises
        ------
        InputError
            If this version does not support it.
        """
        try:
            return SHMoARegConfig.from_dict(self.config)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"This version does not support the network of this run ({error})."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The content of run.json."""
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
        """Return the plan for resuming the run with some options given again.

        Parameters
        ----------
        settings, run, dataset : mapping
            Given fields of `FineTuning`, `RunSettings` and `DatasetChoice`.

        Returns
        -------
        Plan
            May have more steps, other settings of those in `FREE`, and another path of the data
            set; `prepare_data` checks that the scans there are the same.

        Raises
        ------
        InputError
            If other settings differ, or there would be fewer steps.
        """
        pairs = ((self.settings, settings), (self.run, run), (self.dataset, dataset))
        differ = [
            f"{name} ({getattr(own, name, None)!r}, not {value!r})"
            for own, given in pairs
            for name, value in given.items()
            if name not in FREE | {"steps", *(["path"] if self.dataset.path else [])}
            and not _same(name, getattr(own, name, None), value)
        ]
        if differ:
            raise InputError(
                f"The run was started with other settings: {', '.join(differ)}. Resume without"
                " these options, or start another run in another folder."
            )
        steps = settings.get("steps", self.settings.steps)
        if steps < self.settings.steps:
            raise InputError(
                f"The run was started with {self.settings.steps} steps; their number may be"
                f" increased, but not reduced to {steps}.",
                remedy="To end it earlier, use {minutes} or stop it.",
            )
        if steps > self.settings.steps and self.settings.final_rate is not None:
            raise InputError(
                f"The learning rate of the run falls to {self.settings.final_rate:g} over"
                f" {self.settings.steps} steps; with {steps} steps it would jump up again.",
                remedy="Only a run without {final_rate} can be extended: start another run from"
                " the weights of this one.",
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
    """Make the plan of a new run.

    Parameters
    ----------
    weights : str
        Name of shipped weights or a file; "none" for random weights.
    dataset : DatasetChoice
    settings, run : mapping
        Given fields of `FineTuning` and `RunSettings`. By default the size and the share of
        diffeomorphic steps are those of the weights, and the steps from random weights those of
        Sec. IV-B.
    preset, changes : optional
        For random weights only; see `config_from_scratch`.

    Raises
    ------
    InputError
        If there are no such weights, or a setting is out of range.
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
                "A preset and changes of the network are for random weights, but the weights"
                f" '{weights}' have a network. Start from '{NO_NETWORK}', or leave them out."
            )
        chosen, config = FineTuning(**settings), load_network(weights).config
        check_start(chosen)
        start = {"name": weights, "sha256": checksum_of(weights), "card": read_card(weights)}
    config = expert_config(config, chosen)
    if chosen.uses_known_motion and not chosen.known_motion:
        raise InputError(
            "correspondence_weight and the teacher 'drawn' need a known motion, which no pair of"
            " scans has.",
            remedy="Add {known_motion:0.5}: that share of the steps deforms one scan.",
        )
    if not chosen.size:
        chosen = replace(chosen, size=config.learning_size)
    if "diffeomorphic" not in settings and config.diffeomorphic:
        chosen = replace(chosen, diffeomorphic=1.0)
    return Plan(dataset, start, config.to_dict(), chosen, running, versions())


def make_synthetic_plan(recipe: Recipe, maps: str, weights: str | None, minutes: float) -> Plan:
    """Make the plan of a run on synthetic pairs; `check_start_weights` completes it if it is new.

    Parameters
    ----------
    recipe : Recipe
    maps : str
        Folder of label maps; empty without.
    weights : str or None
        As for `make_plan`; None for random weights.
    minutes : float

    Raises
    ------
    InputError
        If the network config or a setting is invalid.
    """
    start = {"name": weights or NO_NETWORK, "sha256": "", "card": {}}
    if weights is None:
        start |= {"preset": recipe.preset, "changes": dict(recipe.config)}
    else:
        check_start(recipe.settings)
    config, run = recipe.network_config().to_dict(), replace(RUN, minutes=minutes)
    return Plan(SyntheticChoice(maps, recipe), start, config, recipe.settings, run, versions())


# config fields on how weights are used or trained, not what they are
USE_FIELDS = {
    "size",
    "passes",
    "diffeomorphic",
    "integration_steps",
    "drop_path",
    "detach_weights",
    "routing_only",
}


def check_start_weights(plan: Plan) -> Plan:
    """Check that the initial weights are of the network of the plan, and add their checksum.

    Raises
    ------
    InputError
        If there are no such weights, or their network has another config.
    """
    name = str(plan.weights["name"])
    if starts_from_scratch(plan.weights):
        return plan
    theirs, own = load_network(name).config, plan.network_config
    theirs = replace(theirs, choice_bias=theirs.choice_bias or own.choice_bias)
    other = [
        f"{key} {value} instead of {plan.config[key]}"
        for key, value in theirs.to_dict().items()
        if key not in USE_FIELDS and value != plan.config[key]
    ]
    if other:
        raise InputError(
            f"The weights '{name}' are of a different network than that of the recipe:"
            f" {', '.join(other)}. Give other weights to --from, or the recipe that they were"
            " trained with."
        )
    return replace(plan, weights={**plan.weights, "sha256": checksum_of(name)})


@names_input
def read_plan(path: Path) -> Plan:
    """Read run.json.

    Raises
    ------
    InputError
        If there is no such file, it is damaged, or from another version.
    """
    return plan_of(read_run_json(path), path)


def plan_of(found: Mapping[str, Any], path: Path) -> Plan:
    """The plan of the content of run.json, which is at `path`.

    Raises
    ------
    InputError
        If it is damaged, or from another version.
    """
    try:
        path_of, options = found["dataset"]["path"], dict(found["dataset"]["options"])
        settings = upgraded(found["settings"])
        for kind, values in ((FineTuning, settings), (RunSettings, found["run"])):
            check_fields(kind, values)
        dataset: DatasetChoice | SyntheticChoice
        if "recipe" in options:
            recipe = recipe_of(options["recipe"], FineTuning(**settings))
            dataset = SyntheticChoice(str(path_of), recipe)
        else:
            check_fields(DatasetChoice, options)
            if options.get("window") is not None:
                options["window"] = tuple(options["window"])
            dataset = DatasetChoice(str(path_of), **options)
        if not all(isinstance(found[key], dict) for key in ("config", "versions")):
            raise ValueError("the network or the versions are missing")
        if not all(
            isinstance(found["from"][key], kind)
            for key, kind in (("name", str), ("sha256", str), ("card", dict))
        ):
            raise ValueError("the weights that it started from are missing")
        return Plan(
            dataset=dataset,
            weights=dict(found["from"]),
            config=dict(found["config"]),
            settings=FineTuning(**settings),
            run=RunSettings(**found["run"]),
            versions=dict(found["versions"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged or from another version of shmoareg ({error}): {REMEDY}"
        ) from error


def read_run_json(path: Path) -> dict[str, Any]:
    """Read run.json as a dict.

    Raises
    ------
    InputError
        If there is no run, or the file is damaged.
    """
    if not path.is_file():
        raise InputError(
            f"{path.parent} is not the folder of a training run (it has no {path.name}). Give"
            " the folder of a run."
        )
    try:
        found = read_json(path, "the settings of a run")
    except InputError as error:
        raise InputError(f"{error} {REMEDY[0].upper()}{REMEDY[1:]}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a run that this version supports (its format is not '{FORMAT}')."
        )
    return found


def write_plan(path: Path, plan: Plan) -> None:
    """Write run.json atomically.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")


def is_same_path(one: str, other: str) -> bool:
    """Whether two paths are the same file or folder, after resolving links."""
    return one == other or user_path(one).resolve() == user_path(other).resolve()


def _same(name: str, own: Any, given: Any) -> bool:
    """Whether a given setting equals that of the run; a size of 0 means that of the weights."""
    if isinstance(own, tuple) or isinstance(given, tuple):
        return tuple(own or ()) == tuple(given or ())
    return bool(own == given) or (name == "size" and given == 0)


def check_split_exists(folder: RunFolder) -> None:
    """Reject a run with a saved state but no split: a new split could train on its test scans.

    Raises
    ------
    InputError
        If there is a saved state and no split.json.
    """
    if folder.state.is_file() and not folder.split.is_file():
        raise InputError(
            f"{folder.split} is missing: it says which scans are used for training, and a new"
            " split could train on the test scans. Restore a copy of it, or start another run in"
            " another folder."
        )


def files_of(checkup: Checkup) -> dict[str, FileRecord]:
    """Size and checksums of the files of the usable scans."""
    checksums, sizes = checkup.checksums, {}
    for name in checkup.usable:
        image = checkup.dataset.scan(name).image
        # 0 for a DICOM series, which is a folder
        sizes[name] = image.stat().st_size if image.is_file() else 0
    return {name: (size, *checksums[name]) for name, size in sizes.items()}


def reference_of(checkup: Checkup, affine: str) -> str | None:
    """The reference scan that all others are aligned with; None without alignment."""
    return None if affine == "none" else checkup.reference


def check_scans_unchanged(
    before: Division, checkup: Checkup, plan: Plan, folder: RunFolder
) -> list[str]:
    """Describe changes of the scans since the run started.

    Parameters
    ----------
    before : Division
        From split.json.
    checkup : Checkup
        After its run.
    plan : Plan
        With the current path of the data set.
    folder : RunFolder
        Its run.json has the previous path.

    Raises
    ------
    InputError
        If the reference scan is gone, or a data set at another path is not the same.
    """
    changed = list(_changed(before, checkup))
    was = read_plan(folder.run_json).dataset.path
    if was != plan.dataset.path and (changed or not before.files):
        why = (
            " ".join(changed)
            or "The run was started by an earlier version, so its scans cannot be compared."
        )
        raise InputError(
            f"The run was started with the data set {was}; {plan.dataset.path} is not a moved"
            f" copy of it: {why} Give the path of the same scans, or start another run in"
            " another folder."
        )
    if before.reference is not None and before.reference not in checkup.usable:
        skipped = {report.name: report.skipped for report in checkup.reports}
        why = skipped.get(before.reference) or "it is not in the data set"
        raise InputError(
            f"The scan '{before.reference}', with which the run aligned all others, cannot be"
            f" used now ({why}). Another reference would change all pairs: restore the scan, or"
            " start another run in another folder. If the data set was moved, give its new path:"
            f" shmoareg fine-tune DATASET --out {folder.path} --resume"
        )
    if before.reference is not None and checkup.reference != before.reference:
        changed.append(
            f"The scans are now aligned with '{checkup.reference}', and were aligned with"
            f" '{before.reference}' when the run started: all pairs change slightly."
        )
    return changed


def _changed(before: Division, checkup: Checkup) -> Iterator[str]:
    now, skipped = files_of(checkup), {report.name: report.skipped for report in checkup.reports}
    used = [name for part in PARTS for name in before.used(part) if name in before.files]
    for name in used:
        if name not in skipped:
            yield (
                f"The scan '{name}' was used when the run started, but is no longer in the"
                " data set."
            )
        elif name not in now:
            yield (
                f"The scan '{name}' was used when the run started, but cannot be used now:"
                f" {skipped[name]}"
            )
        elif now[name][1] != before.files[name][1]:
            yield f"The image of '{name}' has changed since the run started."
        elif now[name][2] != before.files[name][2]:
            yield f"The labels of '{name}' have changed since the run started."
