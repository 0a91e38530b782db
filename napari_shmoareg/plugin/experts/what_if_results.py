"""The results of the tab What if: the effect of one change, and the importance of all experts."""

from __future__ import annotations

import json
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
SWEEP_HEADINGS = (
    "Gate",
    "Expert",
    "moved, mm",
    "random",
    "times",
    "Dice",
    "random",
    "Share, %",
    "95 %, mm",
    "Folding, pp",
    "Turned, %",
)
SWEEP_TIPS = (
    (
        "Part, layer and direction; the blocks of an encoder layer are changed together, for both"
        " images"
    ),
    "Id from 0. Click a row to show the expert's map",
    "Mean change of the displacement over the content of the fixed image",
    f"The same for {COUNTERPART}",
    f"Ratio to the random counterpart: {COUNTERPART}",
    "Mean Dice with the change minus without it: below 0 the change harmed",
    f"The same for {COUNTERPART}",
    "Share of the selections of these gates",
    "95th percentile of the change of the displacement",
    "Change of the share of folded voxels, in percentage points",
    "Share of the targeted cells that chose other experts than without the change",
)


class SweepTable(FigureTable):
    """Rows of importance, added one by one, which can be sorted at any time."""

    def __init__(self) -> None:
        super().__init__(SWEEP_HEADINGS, SWEEP_TIPS)
        self.setToolTip("Click a heading to sort, a row to show the expert's map.")
        self.rows: list[ImportanceRow] = []
        self.show_rows([])

    def show_rows(self, rows: list[ImportanceRow]) -> None:
        """Replace the rows."""
        self.rows = []
        self.setRowCount(0)
        self.setSortingEnabled(True)
        self.sortByColumn(-1, Qt.SortOrder.DescendingOrder)
        for row in rows:
            self.add(row)

    def add(self, row: ImportanceRow) -> None:
        """Add a row."""
        self.setSortingEnabled(False)
        at = self.rowCount()
        self.setRowCount(at + 1)
        gate = QTableWidgetItem(gate_of(row))
        gate.setData(Qt.ItemDataRole.UserRole, len(self.rows))
        self.rows.append(row)
        cells = [
            gate,
            Figure(row.expert, "d"),
            Figure(row.mean_mm, ".3f"),
            Figure(row.null_mm, ".3f"),
            Figure(times(row), ".2f"),
            Figure(row.mean_dice_change, "+.4f"),
            Figure(row.null_dice_change, "+.4f"),
            Figure(100 * row.share, ".1f"),
            Figure(row.p95_mm, ".3f"),
            Figure(row.folding_change, "+.4f"),
            Figure(100 * row.changed, ".1f"),
        ]
        for column, cell in enumerate(cells):
            self.setItem(at, column, cell)
        self.setSortingEnabled(True)
        if len(self.rows) <= SHOWN:
            self.fit(self.rowCount())

    def chosen(self) -> ImportanceRow | None:
        """The selected row, or None."""
        rows = self.selected_rows()
        item = self.item(rows[0], 0) if rows else None
        return None if item is None else self.rows[int(item.data(Qt.ItemDataRole.UserRole))]


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
            self.table.show_rows([])
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


def gate_of(row: ImportanceRow) -> str:
    """``decoder 1 x``, ``encoder 3``."""
    return str(row.gate).replace("-", " ")


def times(row: ImportanceRow) -> float | None:
    """Ratio of the mean change of the displacement to that of random experts."""
    return row.mean_mm / row.null_mm if row.null_mm else None


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
        change = answer.effect.description
        self.heading.setText(f"<b>{escape(change[:1].upper() + change[1:])}</b>")
        rows = whole_rows(answer)
        self.whole.setRowCount(len(rows))
        for n, (name, tip, form, *values) in enumerate(rows):
            for column, cell in enumerate(
                [QTableWidgetItem(name), *(Figure(value, form) for value in values)]
            ):
                cell.setToolTip(tip)
                self.whole.setItem(n, column, cell)
        self.whole.setColumnHidden(3, answer.null is None)
        self.whole.fit(len(rows))
        self._show_labels(answer)
        self.notes.setText("\n".join(notes(answer)))
        self.notes.setVisible(bool(self.notes.text()))

    def _show_labels(self, answer: Answer) -> None:
        change = answer.effect.dice_change
        self.labels.setVisible(bool(change))
        self.labels.setSortingEnabled(False)
        self.labels.setRowCount(len(change))
        ordered = sorted(change, key=lambda label: -abs(change[label]))
        for n, label in enumerate(ordered):
            null = None if answer.null is None else answer.null.dice_change.get(label)
            cells = [Figure(label, "d"), Figure(answer.before[0][label], ".3f")]
            cells += [Figure(change[label], "+.4f"), Figure(null, "+.4f")]
            for column, cell in enumerate(cells):
                self.labels.setItem(n, column, cell)
        self.labels.setColumnHidden(3, answer.null is None)
        header = self.labels.horizontalHeader()
        if header is not None:
            # no indicator: sorted by absolute change
            header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.labels.setSortingEnabled(True)
        self.labels.fit(min(max(len(change), 1), LABELS_SHOWN))


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
