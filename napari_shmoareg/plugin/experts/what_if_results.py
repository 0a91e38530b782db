"""The results of the tab What if: the effect of one change, and the importance of all experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QTableWidgetItem, QVBoxLayout, QWidget

from napari_shmoareg.plugin.controls.forms import arranged, wrapped
from napari_shmoareg.plugin.controls.tables import Figure, FigureTable, TableButtons
from napari_shmoareg.plugin.experts.what_if_work import Answer, Figures

if TYPE_CHECKING:
    from napari_shmoareg.experts.experiment import ImportanceRow
    from napari_shmoareg.plugin.experts.what_if_work import Sweep


SHOWN = 12  # rows before it scrolls
# minimum share of the cells that choose as recorded, for the weights to count as the same
MIN_AGREEMENT = 0.98
COUNTERPART = (
    "the same number of selections of other experts, in patches of the same kind, with the same"
    " shares of content and background; one draw"
)
# heading, format, value of a row, and tooltip
SWEEP_COLUMNS: tuple[tuple[str, str, Callable[[ImportanceRow], float | None], str], ...] = (
    ("Expert", "d", lambda row: row.expert, "Id from 0. Click a row to show the expert's map"),
    (
        "moved, mm",
        ".3f",
        lambda row: row.mean_mm,
        "Mean change of the displacement over the content of the fixed image",
    ),
    ("random", ".3f", lambda row: row.null_mm, f"The same for {COUNTERPART}"),
    (
        "times",
        ".2f",
        lambda row: row.mean_mm / row.null_mm if row.null_mm else None,
        f"Ratio to the random counterpart: {COUNTERPART}",
    ),
    (
        "Dice",
        "+.4f",
        lambda row: row.mean_dice_change,
        "Mean Dice with the change minus without it: below 0 the change harmed",
    ),
    ("random", "+.4f", lambda row: row.null_dice_change, f"The same for {COUNTERPART}"),
    ("Share, %", ".1f", lambda row: 100 * row.share, "Share of the selections of these gates"),
    (
        "95 %, mm",
        ".3f",
        lambda row: row.p95_mm,
        "95th percentile of the change of the displacement",
    ),
    (
        "Folding, pp",
        "+.4f",
        lambda row: row.folding_change,
        "Change of the share of folded voxels, in percentage points",
    ),
    (
        "Turned, %",
        ".1f",
        lambda row: 100 * row.changed,
        "Share of the targeted cells that chose other experts than without the change",
    ),
)
GATE_TIP = (
    "Part, layer and direction; the blocks of an encoder layer are changed together, for both"
    " images"
)


class SweepTable(FigureTable):
    """Rows of importance, added one by one, which can be sorted at any time."""

    def __init__(self) -> None:
        headings, _, _, tips = zip(*SWEEP_COLUMNS, strict=True)
        super().__init__(("Gate", *headings), (GATE_TIP, *tips))
        self.setToolTip("Click a heading to sort, a row to show the expert's map.")
        self.rows: list[ImportanceRow] = []
        self.clear_rows()

    def clear_rows(self) -> None:
        """Remove the rows, and the order by a column."""
        self.rows = []
        self.setRowCount(0)
        self.setSortingEnabled(True)
        self.sortByColumn(-1, Qt.SortOrder.DescendingOrder)

    def add(self, row: ImportanceRow) -> None:
        """Add a row."""
        figures = (Figure(value(row), spec) for _, spec, value, _ in SWEEP_COLUMNS)
        self.add_row([QTableWidgetItem(str(row.gate).replace("-", " ")), *figures])
        self.rows.append(row)
        if len(self.rows) <= SHOWN:
            self.fit(self.rowCount())


def other_weights(agreement: float) -> list[str]:
    """A warning if the choices of the network differ from those of the registration."""
    if agreement >= MIN_AGREEMENT:
        return []
    return [
        "The weights that were found choose the experts recorded in this registration at only"
        f" {100 * agreement:.0f} % of the cells. If they are not the weights of this registration,"
        " press 'Choose weights…'."
    ]


class SweepBox(QWidget):
    """The table of a sweep, with a heading and buttons."""

    def __init__(self) -> None:
        super().__init__()
        self.sweep: Sweep | None = None
        self.heading, self.note, self.table = QLabel(), QLabel(), SweepTable()
        self.buttons = TableButtons(
            lambda: [] if self.sweep is None else self.sweep.table(), "importance.csv"
        )
        wrapped(self.heading, self.note, narrow=True)
        arranged(QVBoxLayout(self), self.heading, self.note, self.table, self.buttons)
        self.show_sweep(None)

    def show_sweep(self, sweep: Sweep | None) -> None:
        """Show another sweep, or none."""
        if sweep is not self.sweep or sweep is None:
            self.sweep = sweep
            self.table.clear_rows()
        self.follow()

    def follow(self) -> None:
        """Show the new rows."""
        sweep = self.sweep
        for row in [] if sweep is None else sweep.rows[len(self.table.rows) :]:
            self.table.add(row)
        if sweep is not None:
            self.heading.setText(
                f"<b>{escape(sweep.title)}</b><br>"
                + escape(", ".join(map(str, sweep.about.values())))
            )
            self.note.setText("\n".join(other_weights(sweep.agreement)))
        for widget in (self.heading, self.table, self.buttons):
            widget.setVisible(bool(self.table.rows))
        self.note.setVisible(bool(self.table.rows) and bool(self.note.text()))


LABELS_SHOWN = 8  # rows before the table scrolls
HEADINGS = ("", "before", "changed", "random")
TIPS = ("", "The network as it is", "With the change", f"The same change for {COUNTERPART}")
LABEL_HEADINGS = ("Label", "Dice", "change", "random")
LABEL_TIPS = (
    "Number of the label",
    "Overlap without the change; 1 is best",
    "Dice with the change minus without it: below 0 the change harmed",
    f"The same for {COUNTERPART}",
)
Row = tuple[str, str, str, float | None, float | None, float | None]


class WhatIfResult(QWidget):
    """Two tables, of the whole image and of each label, and notes."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Answer | None = None
        self.heading, self.notes = QLabel(), QLabel()
        self.whole = FigureTable(HEADINGS, TIPS, stretch="first")
        self.labels = FigureTable(LABEL_HEADINGS, LABEL_TIPS, stretch="all")
        self.labels.setToolTip("Biggest change first. Click a heading to sort.")
        self.buttons = TableButtons(
            lambda: [] if self.answer is None else table_of(self.answer), "what_if.csv"
        )
        wrapped(self.heading, self.notes, narrow=True)
        tables = (self.whole, self.labels)
        arranged(QVBoxLayout(self), self.heading, *tables, self.notes, self.buttons)
        self.show_answer(None)

    def show_answer(self, answer: Answer | None) -> None:
        """Show the effect of a change, or nothing."""
        self.answer = answer
        self.setVisible(answer is not None)
        if answer is None:
            return
        title = answer.effect.description
        self.heading.setText(f"<b>{escape(title[:1].upper() + title[1:])}</b>")
        rows = whole_rows(answer)
        self.whole.show_rows(_cells(*row) for row in rows)
        self.whole.fit(len(rows))
        change, null = answer.effect.dice_change, answer.null
        self.labels.setVisible(bool(change))
        self.labels.setSortingEnabled(False)
        self.labels.show_rows(
            [
                Figure(label, "d"),
                Figure(answer.before[0][label], ".3f"),
                Figure(change[label], "+.4f"),
                Figure(None if null is None else null.dice_change.get(label), "+.4f"),
            ]
            for label in sorted(change, key=lambda label: -abs(change[label]))
        )
        header = self.labels.horizontalHeader()
        if header is not None:
            # no indicator: sorted by absolute change
            header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.labels.setSortingEnabled(True)
        self.labels.fit(min(max(len(change), 1), LABELS_SHOWN))
        for table in (self.whole, self.labels):
            table.setColumnHidden(3, null is None)
        self.notes.setText("\n".join(notes(answer)))
        self.notes.setVisible(bool(self.notes.text()))


def _cells(name: str, tip: str, spec: str, *values: float | None) -> list[QTableWidgetItem]:
    """The cells of a row."""
    cells = [QTableWidgetItem(name), *(Figure(value, spec) for value in values)]
    for cell in cells:
        cell.setToolTip(tip)
    return cells


def whole_rows(answer: Answer) -> list[Row]:
    """Name, tooltip, format and the values before, changed, random; None if not applicable."""
    effect, null = answer.effect, answer.null
    folding = "Share of voxels where the deformation turns tissue inside out"
    moved = (
        "Distance of the displacement from that without the change, within the content of the fixed"
        " image"
    )
    turned = "Share of the targeted cells that chose other experts than without the change"

    def pair(name: str) -> tuple[None, float, float | None]:
        return None, getattr(effect, name), None if null is None else getattr(null, name)

    rows: list[Row] = []
    _, mean, folded = answer.before
    if mean is not None:
        values = mean, effect.mean_dice, None if null is None else null.mean_dice
        rows.append(
            ("Dice, mean", "Overlap of the labels, mean over labels; 1 is best", ".4f", *values)
        )
    rows.append(("Folding, %", folding, ".4f", folded, *pair("folding_percent")[1:]))
    for name, title in (
        ("mean_mm", "Moved, mm"),
        ("p95_mm", "  95th percentile"),
        ("max_mm", "  at most"),
    ):
        rows.append((title, moved, ".3f", *pair(name)))
    share = None if null is None else 100 * null.changed
    rows.append(
        (
            "Choices turned, %",
            f"{turned} ({effect.cells:,} cells)",
            ".2f",
            None,
            100 * effect.changed,
            share,
        )
    )
    return rows


def table_of(answer: Answer) -> list[dict[str, object]]:
    """Rows for a file: measure, label, before, changed, random."""
    change = answer.effect.description
    about = answer.about | {"settings": json.dumps(answer.settings, sort_keys=True, default=str)}
    about |= {"cells": answer.effect.cells, "share_of_selections": answer.share, "change": change}
    about |= {"random_counterpart": "" if answer.null is None else answer.null.description}
    rows: list[dict[str, object]] = []
    for name, _, _, before, after, null in whole_rows(answer):
        rows.append(about | _row(name.strip(), "", before, after, null))
    for label, value in answer.before[0].items():
        null = None if answer.null is None else answer.null.dice[label]
        rows.append(about | _row("Dice", label, value, answer.effect.dice[label], null))
    return rows


def notes(answer: Answer) -> list[str]:
    """Notes for the interpretation of the results."""
    effect, weights = answer.effect, str(answer.about["weights"])
    lines = (
        []
        if answer.share is None
        else [f"The expert had {100 * answer.share:.1f} % of the selections there."]
    )
    if answer.share is None:
        lines += gain(answer)
    elif effect.changed == 0:
        lines.append("No cell chose other experts, so nothing changed.")
    elif answer.null is not None:
        lines.append(compare_with_null(effect, answer.null))
    if answer.null is not None:
        lines.append(f"Random: {answer.null.description}.")
    if answer.settings.get("untrained") or "untrained" in weights.lower() or not weights:
        lines.append("These weights are untrained: the effect of an expert means nothing.")
    lines += other_weights(answer.agreement)
    if answer.settings.get("refine"):
        lines.append(
            "'Before' is without the refinement on the pair, so its values differ from those in the"
            " panel Quality."
        )
    return lines


def gain(answer: Answer) -> list[str]:
    """A sentence on the share of the network's gain over the alignment that a control leaves."""
    before, after, aligned = answer.before[1], answer.effect.mean_dice, answer.aligned
    if before is None or after is None or aligned is None:
        return ["Without labels of both images the loss by the change is unknown."]
    if before <= aligned:
        return [
            f"The network gains nothing here: mean Dice {aligned:.3f} after the alignment,"
            f" {before:.3f} after the network."
        ]
    retained = (after - aligned) / (before - aligned)
    return [
        f"Mean Dice is {aligned:.3f} after the alignment and {before:.3f} with the unchanged"
        f" network; {100 * retained:.0f} % of this gain is left. One pair is little evidence:"
        " 'shmoareg inspect --controls --pairs' measures many, with intervals."
    ]


def compare_with_null(effect: Figures, null: Figures) -> str:
    """A sentence that compares the change with random experts."""
    if null.mean_mm <= 0:
        return "Its random counterpart moved nothing."
    ratio = effect.mean_mm / null.mean_mm
    return f"It moved {ratio:.2g} times as far as its random counterpart (one draw)."


def _row(measure: str, label: object, *values: object) -> dict[str, object]:
    # NaN: only one image has it
    before, after, null = (None if value != value else value for value in values)
    return {"measure": measure, "label": label, "before": before, "changed": after, "random": null}
