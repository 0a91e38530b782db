"""``shmoareg inspect --controls``: whether it matters which experts are chosen."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from rich.table import Table

from napari_shmoareg.cli.console import CANCELLED, Report, explain, plain_table, progress, say, show
from napari_shmoareg.cli.inspect_folder import (
    PAIRS,
    check_unchanged,
    file_of,
    state_of,
    write_failure,
    write_json,
)
from napari_shmoareg.cli.inspect_pairs import absolute, settings_in_plan, weights_in_plan
from napari_shmoareg.cli.options import Running
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.work_folder import begin_work

if TYPE_CHECKING:
    from napari_shmoareg.datasets import PairFiles, PairList
    from napari_shmoareg.experts.choice_checks import ChoiceCheck
    from napari_shmoareg.experts.controls import Control, Passes
    from napari_shmoareg.experts.routing_scores import ControlledPair, ControlRow, Measure
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.replay import Replay


DEFAULT_OUT = Path("shmoareg-controls")
PLAN, CONTROLS, PER_PAIR, GATES = (
    "inspect.json",
    "controls.csv",
    "controls_per_pair.csv",
    "controls_gates.csv",
)
FIGURE, SUMMARY = "controls", "summary.json"
SEED = 0
# of the work on a pair, until it is aligned, and until all controls have run
ALIGNED, CONTROLLED = 0.08, 0.8
CHECKS_LEGEND = (
    "Sign: how much of a choice the sign of the motion tells. Best: cells that chose the expert of"
    " the least local error, of those where it makes a difference. Kappa: the same above chance (0"
    " chance, 1 always). Noise kappa: choices that stay under noise of 1 %, above chance. Label"
    " bits: what a choice tells of the label; untrained: what that of an untrained gate with equal"
    " loads tells."
)
SHARE_LEGEND = (
    "Gain kept: 100 % means that the change costs nothing, so that what was learned there is not"
    " needed; 0 % that the whole gain over the alignment is lost; below, that the result is worse"
    " than the alignment."
)


@dataclass(frozen=True, eq=False)
class Measured:
    """What is kept of one pair.

    Attributes
    ----------
    pair : ControlledPair
    checks : list of ChoiceCheck
    names : tuple of 2 str
        Of the moving and the fixed image.
    about : mapping
        Network grid, passes, variant, affine.
    files : mapping of str to (int, int)
        As of `state_of`.
    """

    pair: ControlledPair
    checks: list[ChoiceCheck]
    names: tuple[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kept:
    """Of which kinds the parts of a pair's file are."""

    names: tuple[str, str]
    moving: str
    fixed: str
    measure: str
    values: dict[str, float]
    checks: list[dict[str, Any]]
    about: dict[str, Any]
    files: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class ControlOptions:
    """The options of the command, beside those of a registration.

    Attributes
    ----------
    out : Path
    card : Path or None
        Where a copy of the weights goes that has the scores on its card.
    passes : {"all", "last"}
    nan, channel
        As for `read_pair`.
    quiet, debug : bool
    """

    out: Path
    card: Path | None
    passes: Passes
    nan: float | None
    channel: int | None
    quiet: bool
    debug: bool


def control_pairs(listing: Path, running: Running, options: ControlOptions) -> None:
    """Measure the pairs of a list that the folder does not have yet, and write what all of them
    come to.

    Raises
    ------
    InputError
        If the list, the weights or the folder is not what it has to be, or no pair could be
        measured.
    """
    from napari_shmoareg.datasets import read_pair_list

    listed = read_pair_list(listing, nan=options.nan, channel=options.channel)
    name, network = running.network()
    _check_card(options, name)
    controls = _controls(network, options.passes)
    measure: Measure = (
        "dice" if all(f.moving_labels and f.fixed_labels for f in listed.files) else "similarity"
    )
    if measure == "similarity" and any(f.moving_labels and f.fixed_labels for f in listed.files):
        say(
            "Warning: not every pair has labels of both images, so that all are measured by their"
            " local correlation."
        )
    plan = _plan(listed, running, name, controls, measure)
    begin_work(options.out / PLAN, plan, "inspection")
    (options.out / PAIRS).mkdir(exist_ok=True)
    kept = {n: _read_kept(options.out, n, controls) for n in range(len(listed))}
    done, failures = {n: found for n, found in kept.items() if found is not None}, dict[int, str]()
    check_unchanged(options.out, done)
    try:
        with progress(options.quiet) as report:
            report("loading", 0.0)
            for number in (n for n in kept if n not in done):
                found = _measured_of_list(
                    listed, number, running, network, controls, measure, report, options.debug
                )
                _keep(found, options.out, number, done, failures)
        if not done:
            raise InputError(
                f"None of the {len(listed)} pairs could be measured. The first: {failures[0]}"
            )
    except KeyboardInterrupt:
        say(
            f"Stopped after {len(done)} of {len(listed)} pairs; {options.out} holds them. The same"
            " command goes on."
        )
        raise typer.Exit(CANCELLED) from None
    _finish(
        plan, dict(sorted(done.items())), failures, controls, network, name, options.out, options
    )


def control_one(
    make: Callable[[SHMoAReg, Report], Replay], running: Running, options: ControlOptions
) -> None:
    """Measure one pair, and write what it comes to into a new folder, whole or not at all.

    Parameters
    ----------
    make : callable
        Reads and aligns the pair, given the network, telling how far it is.
    running : Running
    options : ControlOptions

    Raises
    ------
    InputError
        If the pair, the weights or the folder is not what it has to be.
    """
    from napari_shmoareg.io.files import check_new_folder, new_folder
    from napari_shmoareg.io.machine import versions

    check_new_folder(options.out)
    with progress(options.quiet) as report:
        report("loading", 0.0)
        name, network = running.network()
        _check_card(options, name)
        controls = _controls(network, options.passes)
        replay = make(network, report)
        found = _measured(
            replay, controls, None, report, (replay.pair.moving.name, replay.pair.fixed.name)
        )
    settings = {
        "device": str(next(network.parameters()).device),
        "diffeomorphic": replay.diffeomorphic,
    }
    plan = {
        "weights": weights_in_plan(name),
        "settings": settings,
        "versions": versions(),
        "pairs": [found.names],
    }
    plan |= _of_plan(controls, found.pair.measure)
    with new_folder(options.out) as folder:
        _finish(plan, {0: found}, {}, controls, network, name, folder, options)


def _controls(network: SHMoAReg, passes: Passes) -> list[Control]:
    from napari_shmoareg.experts.controls import controls_of

    found = controls_of(network, passes=passes, seed=SEED)
    if not found:
        raise InputError(
            "This network has neither attention nor experts, so that there is nothing to control."
        )
    return found


def _check_card(options: ControlOptions, weights: str) -> None:
    """Refuse, before the work, a place for weights with a card that could not be written."""
    if options.card is not None:
        from napari_shmoareg.io.files import check_new_file

        if options.card.suffix != ".safetensors":
            raise InputError(
                "--card names a file for weights, and has to end in .safetensors; got"
                f" {options.card}."
            )
        check_new_file(options.card, inputs=[weights] if Path(weights).is_file() else [])


def _plan(
    listed: PairList, running: Running, name: str, controls: Sequence[Control], measure: Measure
) -> dict[str, Any]:
    """All that the figures depend on, as it stands in inspect.json."""
    from napari_shmoareg.io.machine import versions

    pairs = [[absolute(path) for path in _used(files)] for files in listed.files]
    plan = {"weights": weights_in_plan(name), "settings": settings_in_plan(running, listed)}
    return plan | _of_plan(controls, measure) | {"pairs": pairs, "versions": versions()}


def _of_plan(controls: Sequence[Control], measure: Measure) -> dict[str, Any]:
    from napari_shmoareg.experts.routing_scores import MEASURES

    keys = [control.key for control in controls]
    return {
        "controls": keys,
        "passes": controls[0].passes,
        "seed": SEED,
        "measure": f"{measure}: {MEASURES[measure]}",
    }


def _used(files: PairFiles) -> tuple[Path | None, ...]:
    return files.moving, files.fixed, files.moving_labels, files.fixed_labels


def _measured_of_list(
    listed: PairList,
    number: int,
    running: Running,
    network: SHMoAReg,
    controls: Sequence[Control],
    measure: Measure,
    report: Report,
    debug: bool,
) -> Measured | str:
    """One pair of a list measured, or why that failed."""
    from napari_shmoareg.io import read_pair

    def report_pair(title: str, done: float) -> None:
        report(f"pair {number + 1} of {len(listed)}, {title}", (number + done) / len(listed))

    try:
        report_pair("reading", 0.0)
        moving, fixed, *labels = _used(listed.files[number])
        files = state_of((moving, fixed, *labels))
        pair = read_pair(str(moving), str(fixed), *labels, nan=listed.nan, channel=listed.channel)
        replay = running.replay(pair, network, report_pair)
        return _measured(replay, controls, measure, report_pair, (str(moving), str(fixed)), files)
    except Exception as error:
        if debug:
            traceback.print_exception(error, file=sys.stderr)
        return explain(error).removeprefix("Error: ")


def _measured(
    replay: Replay,
    controls: Sequence[Control],
    measure: Measure | None,
    report: Report,
    subjects: tuple[str, str],
    files: Mapping[str, Sequence[int]] | None = None,
) -> Measured:
    """Controls and checks on a pair."""
    from napari_shmoareg.experts.choice_checks import check_choices
    from napari_shmoareg.experts.routing_scores import ControlledPair, measure_controls, measure_for

    def part(low: float, high: float) -> Report:
        return lambda title, done: report(title, low + (high - low) * done)

    values = dict(
        measure_controls(replay, controls, measure=measure, progress=part(ALIGNED, CONTROLLED))
    )
    checks = check_choices(replay, seed=SEED, progress=part(CONTROLLED, 1.0))
    pair, grid = replay.pair, replay.grid
    about: dict[str, Any] = {"network_shape": grid.shape, "network_spacing_mm": grid.spacing}
    about |= {
        "passes": replay.passes,
        "diffeomorphic": replay.diffeomorphic,
        "affine": replay.affine.tolist(),
    }
    measured = ControlledPair(*subjects, measure or measure_for(pair), values)
    return Measured(measured, checks, (pair.moving.name, pair.fixed.name), about, files or {})


def _keep(
    found: Measured | str,
    out: Path,
    number: int,
    done: dict[int, Measured],
    failures: dict[int, str],
) -> None:
    """On the disk before the next pair begins."""
    if isinstance(found, str):
        say(f"pair {number + 1} failed: {found}")
        write_failure(found, out, number)
        failures[number] = found
        return
    record = asdict(found.pair) | {
        "names": found.names,
        "checks": [asdict(check) for check in found.checks],
    }
    write_json(record | {"about": found.about, "files": found.files}, file_of(out, number))
    done[number] = found


def _read_kept(out: Path, number: int, controls: Sequence[Control]) -> Measured | None:
    """A pair that was done before; None for one that was not, or failed.

    Raises
    ------
    InputError
        If its file is damaged.
    """
    from napari_shmoareg.experts.choice_checks import ChoiceCheck
    from napari_shmoareg.experts.routing_scores import BEFORE, LEARNED, ControlledPair
    from napari_shmoareg.io.untrusted import check_fields, read_object

    place = file_of(out, number)
    if not place.is_file():
        return None
    try:
        record = read_object(place, "a measured pair")
        if "error" in record:
            return None
        check_fields(_Kept, {key: record[key] for key in get_type_hints(_Kept)})
        for check in record["checks"]:
            check_fields(ChoiceCheck, check)
        values = {
            key: float(record["values"][key])
            for key in (BEFORE, LEARNED, *(c.key for c in controls))
        }
        pair = ControlledPair(record["moving"], record["fixed"], record["measure"], values)
        checks = [ChoiceCheck(**check) for check in record["checks"]]
        return Measured(pair, checks, tuple(record["names"]), record["about"], record["files"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{place} is damaged ({error!r}). Delete it; the same command then measures this pair"
            " again."
        ) from error


def _finish(
    plan: Mapping[str, Any],
    pairs: Mapping[int, Measured],
    failures: Mapping[int, str],
    controls: Sequence[Control],
    network: SHMoAReg,
    weights: str,
    folder: Path,
    options: ControlOptions,
) -> None:
    """Write tables, figure and summary into a folder, print the tables, and write the card."""
    from napari_shmoareg.experts.choice_checks import mean_checks
    from napari_shmoareg.experts.routing_scores import control_rows, routing_sentence, scores_of
    from napari_shmoareg.figures.routing import controls_caption, controls_figure
    from napari_shmoareg.io.checkpoint import write_with_card
    from napari_shmoareg.io.files import ENDINGS, write_figure, write_table, writing
    from napari_shmoareg.io.machine import versions

    done, kernels = list(pairs.values()), network.config.kernels
    rows = control_rows([one.pair for one in done], controls)
    checks = [check for one in done for check in one.checks]
    # voxels along the longest axis of the network grid
    size = max(max(one.about["network_shape"]) for one in done)
    scores = scores_of(rows) | {"size": size}
    sentence, caption = routing_sentence({"routing_matters": scores}), controls_caption(rows)
    write_table([row.to_dict() for row in rows], folder / CONTROLS)
    each = [
        {
            "pair": n + 1,
            "moving": one.names[0],
            "fixed": one.names[1],
            "control": key,
            one.pair.measure: value,
        }
        for n, one in pairs.items()
        for key, value in one.pair.values.items()
    ]
    write_table(each, folder / PER_PAIR)
    write_table([_blank(asdict(check)) for check in mean_checks(checks)], folder / GATES)
    about = {
        "Title": "controls of the routing",
        "Caption": caption,
        "Software": f"shmoareg {versions()['shmoareg']}",
        "Weights": f"{plan['weights']['name']} (SHA-256 {plan['weights']['sha256']})",
        "Pairs": (
            f"{len(done)}, moving to fixed: " + "; ".join(" to ".join(one.names) for one in done)
        ),
        "Settings": str(plan["settings"]),
    }
    for ending in ENDINGS:
        with writing(folder / f"{FIGURE}{ending}") as temporary:
            write_figure(controls_figure(rows, caption, kernels), temporary, about)
    images = [
        {"pair": n + 1, "moving": one.names[0], "fixed": one.names[1], **one.about}
        for n, one in pairs.items()
    ]
    failed = [
        {"pair": n + 1, "files": plan["pairs"][n], "error": error} for n, error in failures.items()
    ]
    summary = {
        **plan,
        "network": network.config.to_dict(),
        "pairs_listed": len(plan["pairs"]),
        "pairs_done": len(done),
    }
    summary |= {
        "pairs": images,
        "failed": failed,
        "routing_matters": scores,
        "sentence": sentence,
        "caption": caption,
    }
    write_json(summary | {"reading": [SHARE_LEGEND, CHECKS_LEGEND]}, folder / SUMMARY)
    if options.card is not None:
        write_with_card(
            weights,
            options.card,
            {"routing_matters": scores | {"shmoareg": versions()["shmoareg"]}},
        )
    if not options.quiet:
        show(*_tables(rows, kernels), _gates_table(mean_checks(checks, by_layer=True)))
        files = sorted(
            path.name for path in folder.iterdir() if path.is_file() and path.name != PLAN
        )
        lines = [
            CHECKS_LEGEND,
            "",
            SHARE_LEGEND,
            "",
            sentence,
            "",
            *(f"  {options.out / name}" for name in files),
        ]
        lines += (
            []
            if options.card is None
            else [f"  {options.card}: the weights with these scores on their card"]
        )
        typer.echo("\n".join(lines))


def _blank(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: "" if value is None else value for key, value in row.items()}


def _tables(rows: Sequence[ControlRow], kernels: Sequence[int]) -> list[Table]:
    """Before and learned, then the controls of the encoder and of the decoder."""
    from napari_shmoareg.experts.routing_scores import MEASURES
    from napari_shmoareg.figures.routing import PARTS, title_of

    tables = []
    over = f"{rows[0].pairs} pairs of {rows[0].images} images" if rows[0].pairs > 1 else "one pair"
    over += "" if rows[0].change.low is not None else ": no intervals, too few subjects"
    groups = {f"the network ({over})": [r for r in rows if r.control is None]}
    groups |= {
        title: [r for r in rows if r.control and r.control.part == part]
        for part, title in PARTS.items()
    }
    for title, own in groups.items():
        if own:
            table = plain_table(title)
            table.add_column("", min_width=28)
            table.add_column(MEASURES[rows[0].measure], justify="right")
            table.add_column("change", justify="right")
            table.add_column("gain kept", justify="right")
            for row in own:
                change = f"{row.change.value:+.3f}"
                if row.change.low is not None:
                    change += f" [{row.change.low:+.3f}, {row.change.high:+.3f}]"
                known = row.control is not None
                kept = row.kept.text() if row.kept is not None else "no gain"
                table.add_row(
                    title_of(row, kernels),
                    f"{row.value:.3f}",
                    change if known else "",
                    kept if known else "",
                )
            tables.append(table)
    return tables


def _gates_table(checks: Sequence[ChoiceCheck]) -> Table:
    """What choices follow, per layer and direction."""
    table = plain_table("what the choices follow (last pass)")
    heads = ("", "sign, %", "best, %", "kappa", "noise kappa", "label bits", "untrained")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for check in checks:
        figures = (
            (check.sign_share, 100, ".0f"),
            (check.best_agreement, 100, ".0f"),
            (check.best_kappa, 1, ".2f"),
            (check.stability, 1, ".2f"),
            (check.information, 1, ".3f"),
            (check.untrained_information, 1, ".3f"),
        )
        cells = [
            "" if value is None else format(factor * value, form) for value, factor, form in figures
        ]
        table.add_row(f"{check.part} {check.layer} {check.direction or ''}".strip(), *cells)
    return table
