"""What a change did, in figures: before, changed, and random experts beside it."""

from __future__ import annotations

import json
from html import escape

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QSizePolicy, QTableWidgetItem, QVBoxLayout, QWidget

from napari_shmoareg.widgets.experts.table_buttons import TableButtons
from napari_shmoareg.widgets.experts.what_if.experimenting import Answer, Figures
from napari_shmoareg.widgets.experts.what_if.sweep_table import COUNTERPART, other_weights
from napari_shmoareg.widgets.figure_table import Figure, FigureTable

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
    """Two tables, of the whole and of each label, and words about what they mean."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Answer | None = None
        self.heading, self.notes = QLabel(), QLabel()
        self.whole = FigureTable(HEADINGS, TIPS, stretch="first")
        self.labels = FigureTable(LABEL_HEADINGS, LABEL_TIPS, stretch="all")
        self.labels.setToolTip("Biggest change first. Click a heading to sort.")
        self.buttons = TableButtons(lambda: [] if self.answer is None else table_of(self.answer), "what_if.csv")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for label in (self.heading, self.notes):
            label.setWordWrap(True)
            label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        for widget in (self.heading, self.whole, self.labels, self.notes, self.buttons):
            column.addWidget(widget)
        self.show_answer(None)

    def show_answer(self, answer: Answer | None) -> None:
        """Show what a change did; None for nothing."""
        self.answer = answer
        self.setVisible(answer is not None)
        if answer is None:
            return
        change = answer.effect.told
        self.heading.setText(f"<b>{escape(change[:1].upper() + change[1:])}</b>")
        rows = whole_rows(answer)
        self.whole.setRowCount(len(rows))
        for n, (name, tip, form, *values) in enumerate(rows):
            for column, cell in enumerate([QTableWidgetItem(name), *(Figure(value, form) for value in values)]):
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
            beside = None if answer.null is None else answer.null.dice_change.get(label)
            cells = [Figure(label, "d"), Figure(answer.before[0][label], ".3f")]
            cells += [Figure(change[label], "+.4f"), Figure(beside, "+.4f")]
            for column, cell in enumerate(cells):
                self.labels.setItem(n, column, cell)
        self.labels.setColumnHidden(3, answer.null is None)
        header = self.labels.horizontalHeader()
        if header is not None:
            header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)  # as they stand: the biggest change first
        self.labels.setSortingEnabled(True)
        self.labels.fit(min(max(len(change), 1), LABELS_SHOWN))


def whole_rows(answer: Answer) -> list[Row]:
    """Name, tip, form and the figures before, changed, random; None where it does not apply."""
    effect, null = answer.effect, answer.null
    folding = "Share of voxels where the deformation turns tissue inside out"
    moved = "How far the displacement is from that without the change, within what the fixed image shows"
    turned = "Share of the cells meant, at which other experts were chosen than without the change"

    def pair(name: str) -> tuple[None, float, float | None]:
        return None, getattr(effect, name), None if null is None else getattr(null, name)

    rows: list[Row] = []
    _, mean, folded = answer.before
    if mean is not None:
        values = mean, effect.mean_dice, None if null is None else null.mean_dice
        rows.append(("Dice, mean", "Overlap of the labels, mean over labels; 1 is best", ".4f", *values))
    rows.append(("Folding, %", folding, ".4f", folded, *pair("folding_percent")[1:]))
    for name, title in (("mean_mm", "Moved, mm"), ("p95_mm", "  95th percentile"), ("max_mm", "  at most")):
        rows.append((title, moved, ".3f", *pair(name)))
    share = None if null is None else 100 * null.changed
    rows.append(("Choices turned, %", f"{turned} ({effect.cells:,} cells)", ".2f", None, 100 * effect.changed, share))
    return rows


def table_of(answer: Answer) -> list[dict[str, object]]:
    """All figures for a file: measure, label, before, changed, random."""
    change = answer.effect.told
    about = answer.about | {"settings": json.dumps(answer.settings, sort_keys=True, default=str)}
    about |= {"cells": answer.effect.cells, "share_of_selections": answer.share, "change": change}
    about |= {"random_counterpart": "" if answer.null is None else answer.null.told}
    rows: list[dict[str, object]] = []
    for name, _, _, before, after, null in whole_rows(answer):
        rows.append(about | _row(name.strip(), "", before, after, null))
    for label, value in answer.before[0].items():
        null = None if answer.null is None else answer.null.dice[label]
        rows.append(about | _row("Dice", label, value, answer.effect.dice[label], null))
    return rows


def notes(answer: Answer) -> list[str]:
    """What has to be known before the figures are read."""
    effect, weights = answer.effect, str(answer.about["weights"])
    said = [] if answer.share is None else [f"The expert had {100 * answer.share:.1f} % of the selections there."]
    if answer.share is None:
        said += gain(answer)
    elif effect.changed == 0:
        said.append("No cell chose otherwise, so nothing changed.")
    elif answer.null is not None:
        said.append(beside(effect, answer.null))
    if answer.null is not None:
        said.append(f"Random: {answer.null.told}.")
    if answer.settings.get("untrained") or "untrained" in weights.lower() or not weights:
        said.append("These weights are untrained: what an expert changes means nothing.")
    said += other_weights(answer.alike)
    if answer.settings.get("refine"):
        said.append(
            "'Before' is without the refinement on the pair, so its figures differ from those of the panel Quality."
        )
    return said


def gain(answer: Answer) -> list[str]:
    """How much of the network's gain over the alignment a control leaves, in a sentence."""
    before, after, aligned = answer.before[1], answer.effect.mean_dice, answer.aligned
    if before is None or after is None or aligned is None:
        return ["Without labels of both images it is not known what the change costs."]
    if before <= aligned:
        return [f"The network gains nothing here: mean Dice {aligned:.3f} by the alignment, {before:.3f} after it."]
    kept = (after - aligned) / (before - aligned)
    return [
        f"Mean Dice is {aligned:.3f} by the alignment alone and {before:.3f} as learned; of this gain {100 * kept:.0f} "
        "% is left. One pair says little: 'shmoareg inspect --controls --pairs' measures many, with intervals."
    ]


def beside(effect: Figures, null: Figures) -> str:
    """How the change compares with random experts, in a sentence."""
    if null.mean_mm <= 0:
        return "Its random counterpart moved nothing."
    ratio = effect.mean_mm / null.mean_mm
    return f"It moved {ratio:.2g} times as far as its random counterpart (one draw)."


def _row(measure: str, label: object, *values: object) -> dict[str, object]:
    before, after, null = (None if value != value else value for value in values)  # NaN: only one image has it
    return {"measure": measure, "label": label, "before": before, "changed": after, "random": null}
