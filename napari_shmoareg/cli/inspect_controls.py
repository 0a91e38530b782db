"""``shmoareg inspect --controls``: test whether the choice of experts matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from napari_shmoareg.cli.console import ProgressCallback, plain_table, print_note, progress, show
from napari_shmoareg.cli.pair_list import (
    PLAN,
    ListOptions,
    file_states,
    list_plan,
    list_summary,
    process_pairs,
    weights_in_plan,
    write_figures,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.choice_checks import ChoiceCheck, check_choices, mean_checks
from napari_shmoareg.experts.controls import controls_of
from napari_shmoareg.experts.routing_scores import (
    BEFORE,
    LEARNED,
    MEASURES,
    ControlledPair,
    control_rows,
    measure_controls,
    measure_for,
    routing_sentence,
    scores_of,
)
from napari_shmoareg.figures.routing import PARTS, controls_caption, controls_figure, title_of
from napari_shmoareg.io import read_pair
from napari_shmoareg.io.checkpoint import write_with_card
from napari_shmoareg.io.files import (
    check_new_file,
    check_new_folder,
    new_folder,
    write_table,
)
from napari_shmoareg.io.machine import versions
from napari_shmoareg.io.untrusted import check_fields
from napari_shmoareg.io.work_folder import check_row, write_json

if TYPE_CHECKING:
    from napari_shmoareg.datasets import PairFiles
    from napari_shmoareg.experts.controls import Control, Passes
    from napari_shmoareg.experts.routing_scores import ControlRow, Measure
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.replay import Replay


CONTROLS, PER_PAIR, GATES = "controls.csv", "controls_per_pair.csv", "controls_gates.csv"
FIGURE, SUMMARY = "controls", "summary.json"
SEED = 0
# share of the work on a pair until it is aligned, and until all controls have run
ALIGNED, CONTROLLED = 0.08, 0.8
CHECKS_LEGEND = (
    "Sign: share of a choice that the sign of the motion explains. Best: share of cells that"
    " chose the expert of least local error, among cells where it makes a difference. Kappa: the"
    " same above chance (0 chance, 1 always). Noise kappa: choices that do not change under"
    " noise of 1 %, above chance. Label bits: information of a choice about the label;"
    " untrained: the same for an untrained gate with equal loads."
)
SHARE_LEGEND = (
    "Gain kept: 100 % means that the change costs nothing, so what was learned there is not"
    " needed; 0 % that the whole gain over the alignment is lost; less, that the result is worse"
    " than the alignment."
)


@dataclass(frozen=True, eq=False)
class MeasuredPair:
    """The saved results of one pair.

    Attributes
    ----------
    pair : ControlledPair
    checks : list of ChoiceCheck
    names : tuple of 2 str
        Names of the moving and the fixed image.
    about : mapping
        Network grid, passes, variant, affine.
    files : mapping of str to (int, int)
        From `file_states`.
    """

    pair: ControlledPair
    checks: list[ChoiceCheck]
    names: tuple[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As a JSON row."""
        record = asdict(self.pair) | {"checks": [asdict(check) for check in self.checks]}
        return record | {"names": self.names, "about": self.about, "files": self.files}

    @classmethod
    def of_row(cls, row: Mapping[str, Any], controls: Iterable[Control]) -> MeasuredPair:
        """Parse a JSON row; raises ValueError, KeyError or TypeError if it is damaged."""
        check_row(_Row, row)
        for check in row["checks"]:
            check_fields(ChoiceCheck, check)
        keys = (BEFORE, LEARNED, *(control.key for control in controls))
        values = {key: float(row["values"][key]) for key in keys}
        pair = ControlledPair(row["moving"], row["fixed"], row["measure"], values)
        checks = [ChoiceCheck(**check) for check in row["checks"]]
        return cls(pair, checks, tuple(row["names"]), row["about"], row["files"])


@dataclass(frozen=True)
class _Row:
    """The types of a row."""

    names: tuple[str, str]
    moving: str
    fixed: str
    measure: str
    values: dict[str, float]
    checks: list[dict[str, Any]]
    about: dict[str, Any]
    files: dict[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class ControlOptions(ListOptions):
    """The options of the command.

    Attributes
    ----------
    card : Path or None
        Path for a copy of the weights with the scores on its card.
    passes : {"all", "last"}
    """

    card: Path | None
    passes: Passes


def control_pairs(listing: Path, options: ControlOptions) -> None:
    """Measure the pairs of a list that the folder does not have yet, and write the results of
    all.
    """
    from napari_shmoareg.datasets import read_pair_list

    listed = read_pair_list(listing, nan=options.nan, channel=options.channel)
    name, network = options.request.network()
    _check_card(options, name)
    controls = _controls(network, options.passes)
    labelled = [bool(f.moving_labels and f.fixed_labels) for f in listed.files]
    measure: Measure = "dice" if all(labelled) else "similarity"
    if any(labelled) and not all(labelled):
        print_note(
            "Warning: not every pair has labels of both images, so all pairs are measured by"
            " local correlation."
        )
    plan = list_plan(listed, options, name, _used) | _of_plan(controls, measure)

    def measured(number: int, report: ProgressCallback) -> MeasuredPair:
        report("reading", 0.0)
        moving, fixed, *labels = _used(listed.files[number])
        files = file_states((moving, fixed, *labels))
        pair = read_pair(str(moving), str(fixed), *labels, nan=listed.nan, channel=listed.channel)
        replay = options.request.replay(pair, network, report)
        return _measured(replay, controls, measure, report, (str(moving), str(fixed)), files)

    parse = partial(MeasuredPair.of_row, controls=controls)
    verb = ("measure", "measured")
    with process_pairs(listed, plan, options, parse, measured, verb) as (done, failures):
        _finish(plan, done, failures, controls, network, name, options.out, options)


def control_one(
    make: Callable[[SHMoAReg, ProgressCallback], Replay], options: ControlOptions
) -> None:
    """Measure one pair and write the results to a new folder, atomically.

    Parameters
    ----------
    make : callable
        Reads and aligns the pair, given the network and a progress callback.
    options : ControlOptions
    """
    check_new_folder(options.out)
    with progress(options.quiet) as report:
        report("loading", 0.0)
        name, network = options.request.network()
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

    found = controls_of(network, passes=passes, seed=SEED)
    if not found:
        raise InputError(
            "This network has neither attention nor experts, so there is nothing to control."
        )
    return found


def _check_card(options: ControlOptions, weights: str) -> None:
    """Reject an invalid --card path before the work starts."""
    if options.card is not None:
        if options.card.suffix != ".safetensors":
            raise InputError(
                f"--card has to be a file that ends in .safetensors; got {options.card}."
            )
        check_new_file(options.card, inputs=[weights] if Path(weights).is_file() else [])


def _of_plan(controls: Sequence[Control], measure: Measure) -> dict[str, Any]:

    keys = [control.key for control in controls]
    return {
        "controls": keys,
        "passes": controls[0].passes,
        "seed": SEED,
        "measure": f"{measure}: {MEASURES[measure]}",
    }


def _used(files: PairFiles) -> tuple[Path | None, ...]:
    return files.moving, files.fixed, files.moving_labels, files.fixed_labels


def _measured(
    replay: Replay,
    controls: Sequence[Control],
    measure: Measure | None,
    report: ProgressCallback,
    subjects: tuple[str, str],
    files: Mapping[str, Sequence[int]] | None = None,
) -> MeasuredPair:
    """Run controls and checks on a pair."""
    from napari_shmoareg.experts.routing_scores import ControlledPair

    def part(low: float, high: float) -> ProgressCallback:
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
    return MeasuredPair(measured, checks, (pair.moving.name, pair.fixed.name), about, files or {})


def _finish(
    plan: Mapping[str, Any],
    pairs: Mapping[int, MeasuredPair],
    failures: Mapping[int, str],
    controls: Sequence[Control],
    network: SHMoAReg,
    weights: str,
    folder: Path,
    options: ControlOptions,
) -> None:
    """Write tables, figure, summary and card, and print the tables."""
    done, kernels = list(pairs.values()), network.config.kernels
    rows = control_rows([one.pair for one in done], controls)
    checks = [check for one in done for check in one.checks]
    # voxels along the longest axis of the network grid
    size = max(max(one.about["network_shape"]) for one in done)
    scores = scores_of(rows) | {"size": size}
    sentence, caption = routing_sentence({"routing_matters": scores}), controls_caption(rows)
    write_table([row.to_dict() for row in rows], folder / CONTROLS)
    each = [
        dict(zip(("pair", "moving", "fixed"), (n + 1, *one.names), strict=True))
        | {"control": key, one.pair.measure: value}
        for n, one in pairs.items()
        for key, value in one.pair.values.items()
    ]
    write_table(each, folder / PER_PAIR)
    write_table([_empty_for_none(asdict(check)) for check in mean_checks(checks)], folder / GATES)
    figure = controls_figure(rows, caption, kernels), "controls of the routing", caption
    write_figures(folder, {FIGURE: figure}, plan, [one.names for one in done])
    images = {
        n: {"moving": one.names[0], "fixed": one.names[1], **one.about} for n, one in pairs.items()
    }
    summary = {**plan, "network": network.config.to_dict()} | list_summary(plan, images, failures)
    summary |= {"routing_matters": scores, "sentence": sentence, "caption": caption}
    write_json(summary | {"reading": [SHARE_LEGEND, CHECKS_LEGEND]}, folder / SUMMARY)
    if options.card is not None:
        matters = scores | {"shmoareg": versions()["shmoareg"]}
        write_with_card(weights, options.card, {"routing_matters": matters})
    if not options.quiet:
        show(*_tables(rows, kernels), _gates_table(mean_checks(checks, by_layer=True)))
        files = sorted(path.name for path in folder.glob("[!.]*.*") if path.name != PLAN)
        lines = [CHECKS_LEGEND, "", SHARE_LEGEND, "", sentence, ""]
        lines += [f"  {options.out / name}" for name in files]
        if options.card is not None:
            lines.append(f"  {options.card}: the weights with these scores on their card")
        typer.echo("\n".join(lines))


def _empty_for_none(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: "" if value is None else value for key, value in row.items()}


def _tables(rows: Sequence[ControlRow], kernels: Sequence[int]) -> list[Table]:
    """Tables of before and learned, then of the controls of encoder and decoder."""

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
                is_control = row.control is not None
                kept = row.kept.text() if row.kept is not None else "no gain"
                table.add_row(
                    title_of(row, kernels),
                    f"{row.value:.3f}",
                    change if is_control else "",
                    kept if is_control else "",
                )
            tables.append(table)
    return tables


def _gates_table(checks: Sequence[ChoiceCheck]) -> Table:
    """Table of what the choices depend on, per layer and direction."""
    table = plain_table("what the choices depend on (last pass)")
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
