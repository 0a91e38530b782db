"""The numbers of a report as rows of a table: before, after the affine, after all.

Tables of figures: cells that sort by number.

Copy and Save CSV for a table of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPixmap, QPolygon
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.forms import arranged
from napari_shmoareg.plugin.viewer import CAUTION, ON_CAUTION

if TYPE_CHECKING:
    from napari_shmoareg.registration.register import Registration


STAGES = ("before", "affine", "after")
HEADINGS = ("", "before", "affine", "after")
LABEL_HEADINGS = (
    "label",
    *(f"{what}\n{stage}" for what in ("Dice", "ASSD", "HD95") for stage in STAGES),
)
PER_LABEL = (
    ("dice", "Dice", ".3f"),
    ("assd_mm", "ASSD, mm", ".2f"),
    ("hd95_mm", "HD95, mm", ".2f"),
)

SIGN = "⚠"
NOTABLE = 0.002  # Ours: a smaller loss of Dice is no news


class Row(NamedTuple):
    """One figure at the three stages; None where it does not apply or is not known."""

    name: str
    values: tuple[float | None, float | None, float | None]
    form: str
    tip: str

    @property
    def texts(self) -> list[str]:
        """The name and the three figures as they are shown."""
        return [self.name, *(shown(value, self.form) for value in self.values)]


def shown(value: float | None, form: str) -> str:
    """A figure as text; a dash for none."""
    return "–" if value is None or value != value else format(value, form)


def summary_rows(report: Mapping[str, Any]) -> list[Row]:
    """The figures of a whole registration.

    Parameters
    ----------
    report : mapping
        The content of report.json.
    """
    alike = report["similarity"]
    jacobian, length = report["jacobian"], report["displacement_mm"]
    truth = report.get("extra", {}).get("true_error_mm")
    rows = [
        Row(
            "Correlation ↑",
            _each(alike, "ncc"),
            ".3f",
            "Of the intensities where both images are seen; 1 is best.",
        ),
        Row(
            "Mutual inf. ↑",
            _each(alike, "nmi"),
            ".3f",
            "Normalised, 0 to 1; also across modalities.",
        ),
        Row(
            "Dice ↑",
            _each(report["dice"], "mean"),
            ".3f",
            f"Overlap, mean over {labels_in(report)}; 1 is best.",
        ),
        Row(
            "ASSD, mm ↓",
            _each(report["assd_mm"], "mean"),
            ".2f",
            "Average symmetric distance of surfaces.",
        ),
        Row(
            "HD95, mm ↓",
            _each(report["hd95_mm"], "mean"),
            ".2f",
            "95th percentile of it; both mean over labels.",
        ),
    ]
    if truth is not None:
        rows.append(
            Row("True error, mm ↓", _each(truth, "mean"), ".2f", "Known for this pair, mean.")
        )
    folding = "Share of voxels where the deformation turns tissue inside out; 0 is best."
    rows += [
        _last("Folding, % ↓", jacobian["folding_percent"], ".4f", folding),
        _last(
            "SDlogJ",
            jacobian["sdlogj"],
            ".3f",
            "SD of log Jacobian: how unevenly volumes change.",
        ),
        _last(
            "Moved, mm",
            length["mean"],
            ".2f",
            "Length of the whole displacement, mean over the fixed grid.",
        ),
        _last("  at most, mm", length["max"], ".2f", "The largest displacement on the fixed grid."),
    ]
    return rows


def cautions_of(report: Mapping[str, Any]) -> list[str]:
    """What to know before a registration is trusted, one sentence or more each, with ``Caution:``
    before it.

    Parameters
    ----------
    report : mapping
        The content of report.json.  Where the labels came to overlap less and its own warnings say
        nothing of that, it is said here.
    """
    found = list(report["warnings"])
    fall = dice_fall(report)
    if fall is not None and not any("Dice" in text for text in found):
        before, affine, after = fall.means
        than = "before" if before >= affine else "after the affine alone"
        found.append(
            f"The labels overlap less than {than}: Dice {before:.3f} before → {affine:.3f} after"
            f" the affine → {after:.3f} after ↓ (mean over {fall.labels} labels). Look at the"
            " warped labels before you use the result."
        )
    return [f"{SIGN} Caution: {text}" for text in found] + list(report.get("notes", ()))


class Fall(NamedTuple):
    """Mean Dice at the three stages, over the labels that overlap at any of them."""

    means: tuple[float, float, float]
    labels: int


def dice_fall(report: Mapping[str, Any]) -> Fall | None:
    """The Dice of a registration whose labels overlap less at its end than before, or after the
    affine; else None.
    """
    if report["dice"] is None:
        return None
    stages = [report["dice"][stage]["per_label"] for stage in STAGES]
    met = [
        label
        for label in sorted(set().union(*stages))
        if any((stage.get(label) or 0) > 0 for stage in stages)
    ]
    if not met:
        return None
    before, affine, after = (
        sum(stage.get(label) or 0.0 for label in met) / len(met) for stage in stages
    )
    return Fall((before, affine, after), len(met)) if has_fallen((before, affine, after)) else None


def has_fallen(dice: Sequence[float | None]) -> bool:
    """Whether the last of three Dice, before, after the affine and after all, is notably below one
    of the others.
    """
    after = dice[-1]
    return after is not None and any(
        value is not None and after < value - NOTABLE for value in dice[:-1]
    )


def label_rows(report: Mapping[str, Any]) -> list[list[float | None]]:
    """Of each label its number, then Dice, ASSD and HD95 (mm), each at the three stages; none
    without labels.
    """
    if report["dice"] is None:
        return []
    found = [report[name][stage]["per_label"] for name, _, _ in PER_LABEL for stage in STAGES]
    return [
        [int(label), *(stage.get(label) for stage in found)] for label in sorted(found[2], key=int)
    ]


def labels_in(report: Mapping[str, Any]) -> str:
    """Over which labels a mean is taken, in a few words."""
    labels = report.get("labels")
    if not labels:
        return "labels"
    count = len(labels["both"])
    lacking = ", ".join(
        str(label) for label in sorted((*labels["only_moving"], *labels["only_fixed"]))
    )
    words = f"the {count} label{'' if count == 1 else 's'} that both images have"
    return words + (f" (one lacks {lacking})" if lacking else "")


def sides_of(report: Mapping[str, Any] | None) -> dict[int, str]:
    """Of each label that only one image has, which: "moving" or "fixed"."""
    labels = (report or {}).get("labels") or {}
    return {label: side for side in ("moving", "fixed") for label in labels.get(f"only_{side}", ())}


def table_of(report: Mapping[str, Any]) -> list[dict[str, object]]:
    """All figures, those of the whole and of each label, for a file: measure, label, before,
    affine, after.
    """
    rows: list[dict[str, object]] = []
    for row in summary_rows(report):
        name = row.name.rstrip(" ↑↓").replace("  at most", "Moved at most")
        rows.append({"measure": name, "label": "", **dict(zip(STAGES, row.values, strict=True))})
    for label, *values in label_rows(report):
        only = sides_of(report).get(int(label or 0))
        for n, (_, name, _) in enumerate(PER_LABEL):
            name = f"{name} (label in the {only} image only)" if only else name
            figures = dict(zip(STAGES, values[3 * n : 3 * n + 3], strict=True))
            rows.append({"measure": name, "label": int(label or 0), **figures})
    return rows


def as_tsv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with a heading, separated by tabs, as spreadsheets take them from the clipboard."""
    lines: list[list[object]] = [list(rows[0]), *(list(row.values()) for row in rows)]
    return (
        "\n".join("\t".join("" if cell is None else str(cell) for cell in line) for line in lines)
        + "\n"
    )


def _each(
    stages: Mapping[str, Any] | None, name: str
) -> tuple[float | None, float | None, float | None]:
    if stages is None:
        return None, None, None
    before, affine, after = (stages[stage][name] for stage in STAGES)
    return before, affine, after


def _last(name: str, value: float | None, form: str, tip: str) -> Row:
    """A figure that only the finished registration has."""
    return Row(name, (None, None, value), form, tip)


class Figure(QTableWidgetItem):
    """A cell that sorts by its number; cells without one come last."""

    def __init__(self, value: float | None, form: str) -> None:
        super().__init__(shown(value, form))
        self.value = value
        self.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def mark_fallen(self) -> None:
        """Mark a figure that became worse: an arrow down, in the colour of cautions."""
        self.setBackground(QColor(CAUTION))
        self.setForeground(QColor(ON_CAUTION))
        self.setIcon(_arrow_down())

    def __lt__(self, other: QTableWidgetItem) -> bool:
        mine, its = self.value, getattr(other, "value", None)
        return its is None if mine is None or its is None else mine < its


class FigureTable(QTableWidget):
    """A table that is read, not edited, whose rows are selected whole.

    Parameters
    ----------
    headings : sequence of str
    tips : sequence of str
        Of the headings, where they have any.
    stretch : {"none", "first", "all"}
        Which columns take the width that is left; the others are as wide as they need.
    """

    def __init__(
        self, headings: Sequence[str], tips: Sequence[str] = (), stretch: str = "none"
    ) -> None:
        super().__init__(0, len(headings))
        for column, heading in enumerate(headings):
            item = QTableWidgetItem(heading)
            item.setToolTip(tips[column] if tips else "")
            self.setHorizontalHeaderItem(column, item)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setShowGrid(False)
        rows, columns = self.verticalHeader(), self.horizontalHeader()
        assert rows is not None and columns is not None
        rows.setVisible(False)
        self._columns, modes = columns, QHeaderView.ResizeMode
        columns.setSectionResizeMode(modes.Stretch if stretch == "all" else modes.ResizeToContents)
        if stretch == "first":
            columns.setSectionResizeMode(0, modes.Stretch)

    def fit(self, rows: int) -> None:
        """Make it as high as some of its rows, and as its scroll bar, should it need one."""
        height = (
            self._columns.sizeHint().height()
            + 2 * self.frameWidth()
            + sum(self.rowHeight(n) for n in range(rows))
        )
        bar = self.horizontalScrollBar()
        stretched = self._columns.sectionResizeMode(0) == QHeaderView.ResizeMode.Stretch
        wide = self._columns.length() > self.width() and not stretched
        self.setFixedHeight(height + (bar.sizeHint().height() if bar is not None and wide else 2))

    def selected_rows(self) -> list[int]:
        """The rows that are selected."""
        model = self.selectionModel()
        return [] if model is None else sorted(index.row() for index in model.selectedRows())

    def select_rows(self, rows: Sequence[int]) -> None:
        """Select these rows and no others."""
        self.clearSelection()
        mode = self.selectionMode()
        self.setSelectionMode(QAbstractItemView.SelectionMode.MultiSelection)
        for row in rows:
            self.selectRow(row)
        self.setSelectionMode(mode)


def _arrow_down() -> QIcon:
    picture = QPixmap(16, 16)
    picture.fill(Qt.GlobalColor.transparent)
    painter = QPainter(picture)
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(QColor(ON_CAUTION))
    painter.drawRect(6, 1, 4, 8)
    painter.drawPolygon(QPolygon([QPoint(2, 8), QPoint(14, 8), QPoint(8, 15)]))
    painter.end()
    return QIcon(picture)


def origin_of(registration: Registration) -> dict[str, object]:
    """Which registration the figures of a file are of: columns for each of its rows."""
    return {
        "pair": f"{registration.pair.moving.name} onto {registration.pair.fixed.name}",
        "weights": registration.weights,
    }


class TableButtons(QWidget):
    """Two buttons that give the rows of a table to the clipboard or to a file.

    Parameters
    ----------
    rows : callable
        The rows as they are when a button is pressed.
    name : str
        Of the file, to begin with.
    """

    def __init__(self, rows: Callable[[], Sequence[Mapping[str, object]]], name: str) -> None:
        super().__init__()
        self._rows, self._name = rows, name
        self.copy = QPushButton("Copy")
        self.copy.setToolTip("Put the table on the clipboard, for a spreadsheet")
        self.save = QPushButton("Save CSV…")
        self.save.setToolTip("Write the table, with all its figures, to a CSV file")
        self.copy.clicked.connect(self.to_clipboard)
        self.save.clicked.connect(self._ask)
        arranged(QHBoxLayout(self), None, self.copy, self.save)

    def to_clipboard(self) -> None:
        """Put the rows on the clipboard, separated by tabs."""
        rows, clipboard = self._rows(), QApplication.clipboard()
        if rows and clipboard is not None:
            clipboard.setText(as_tsv(rows))

    def save_to(self, path: str) -> None:
        """Write the rows as CSV; what keeps them from being written is told."""
        from napari_shmoareg.io.files import write_table

        try:
            write_table(self._rows(), path)
        except InputError as error:
            show_error(str(error))
        else:
            show_info(f"The table lies in {path}.")

    def _ask(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the table", self._name, "CSV (*.csv)")
        if path:
            self.save_to(path)
