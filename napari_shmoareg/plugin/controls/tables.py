"""Tables of report values before, after the affine and after the registration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPixmap, QPolygon, QShowEvent
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
from napari_shmoareg.io.label_names import reported_names
from napari_shmoareg.plugin.controls.forms import arranged
from napari_shmoareg.plugin.viewer import ERROR

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

NCC_TIP = "Of the intensities in the common field of view; 1 is best."
NMI_TIP = "Normalised, 0 to 1; suitable across modalities."
ASSD_TIP = "Average symmetric surface distance, mean over labels."
HD95_TIP = "95th percentile of the surface distance, mean over labels."
TRUTH_TIP = "Mean error to the known deformation of this pair."
FOLDING_TIP = "Share of voxels where the deformation folds; 0 is best."
SDLOGJ_TIP = "SD of the log Jacobian: unevenness of the volume change."
MOVED_TIP = "Mean length of the total displacement on the fixed grid."
MOST_TIP = "The largest displacement on the fixed grid."
SIGN = "⚠"
MIN_DROP = 0.002  # Ours: a smaller drop of Dice is ignored


class Row(NamedTuple):
    """A value at the three stages, with its format; None where it does not apply or is unknown."""

    name: str
    values: tuple[float | None, float | None, float | None]
    spec: str
    tip: str

    @property
    def texts(self) -> list[str]:
        """The name and the three values as displayed."""
        return [self.name, *(format_value(value, self.spec) for value in self.values)]


def format_value(value: float | None, spec: str) -> str:
    """Format a value; a dash for None or NaN."""
    return "–" if value is None or value != value else format(value, spec)


def summary_rows(report: Mapping[str, Any]) -> list[Row]:
    """Return the values of a whole registration, from the content of report.json."""
    similarity = report["similarity"]
    jacobian, length = report["jacobian"], report["displacement_mm"]
    truth = report.get("extra", {}).get("true_error_mm")
    dice, surface, whole = report["dice"], report["assd_mm"], report["hd95_mm"]
    staged = [
        ("Correlation ↑", similarity, "ncc", ".3f", NCC_TIP),
        ("Mutual inf. ↑", similarity, "nmi", ".3f", NMI_TIP),
        ("Dice ↑", dice, "mean", ".3f", f"Overlap, mean over {label_summary(report)}; 1 is best."),
        ("ASSD, mm ↓", surface, "mean", ".2f", ASSD_TIP),
        ("HD95, mm ↓", whole, "mean", ".2f", HD95_TIP),
    ]
    if truth is not None:
        staged.append(("True error, mm ↓", truth, "mean", ".2f", TRUTH_TIP))
    final = [
        ("Folding, % ↓", jacobian["folding_percent"], ".4f", FOLDING_TIP),
        ("SDlogJ", jacobian["sdlogj"], ".3f", SDLOGJ_TIP),
        ("Moved, mm", length["mean"], ".2f", MOVED_TIP),
        ("  at most, mm", length["max"], ".2f", MOST_TIP),
    ]
    rows = [Row(name, _at_stages(of, key), spec, tip) for name, of, key, spec, tip in staged]
    rows += [Row(name, (None, None, value), spec, tip) for name, value, spec, tip in final]
    return rows


def cautions_of(report: Mapping[str, Any]) -> list[str]:
    """Return the warnings of report.json, prefixed with ``Caution:``, and its notes.

    Adds a warning about a drop of Dice if the report has none.
    """
    found = list(report["warnings"])
    drop = dice_drop(report)
    if drop is not None and not any("Dice" in text for text in found):
        before, affine, after = drop.means
        than = "before" if before >= affine else "after the affine alone"
        found.append(
            f"The labels overlap less than {than}: Dice {before:.3f} before → {affine:.3f} after"
            f" the affine → {after:.3f} after ↓ (mean over {drop.labels} labels). Look at the"
            " warped labels before you use the result."
        )
    return [f"{SIGN} Caution: {text}" for text in found] + list(report.get("notes", ()))


class DiceDrop(NamedTuple):
    """Mean Dice at the three stages, over the labels that overlap at any stage."""

    means: tuple[float, float, float]
    labels: int


def dice_drop(report: Mapping[str, Any]) -> DiceDrop | None:
    """Return the mean Dice if it is lower at the end than before or after the affine, else None."""
    if report["dice"] is None:
        return None
    stages = [report["dice"][stage]["per_label"] for stage in STAGES]
    overlapping = [
        label
        for label in sorted(set().union(*stages))
        if any((stage.get(label) or 0) > 0 for stage in stages)
    ]
    if not overlapping:
        return None
    before, affine, after = (
        sum(stage.get(label) or 0.0 for label in overlapping) / len(overlapping) for stage in stages
    )
    return (
        DiceDrop((before, affine, after), len(overlapping))
        if has_dropped((before, affine, after))
        else None
    )


def outcome_worse(report: Mapping[str, Any]) -> str:
    """Say in one sentence what is worse after than before: Dice, or the correlation without labels;
    empty if nothing is.
    """
    drop = dice_drop(report)
    if drop is not None:
        before, affine, after = drop.means
        best, stage = max((before, "before"), (affine, "after the affine alone"))
        return f"Dice got worse: {best:.3f} {stage}, {after:.3f} after."
    similarity = report["similarity"]
    before, after = (similarity[stage]["ncc"] for stage in ("before", "after"))
    if report["dice"] is None and None not in (before, after) and after < before - MIN_DROP:
        return f"The images agree less: correlation {before:.3f} before, {after:.3f} after."
    return ""


def has_dropped(dice: Sequence[float | None]) -> bool:
    """Whether the last of the three Dice values is notably below one of the others."""
    after = dice[-1]
    return after is not None and any(
        value is not None and after < value - MIN_DROP for value in dice[:-1]
    )


def label_rows(report: Mapping[str, Any]) -> list[list[float | None]]:
    """Return per label: number, then Dice, ASSD and HD95 (mm), each at the three stages."""
    if report["dice"] is None:
        return []
    found = [report[name][stage]["per_label"] for name, _, _ in PER_LABEL for stage in STAGES]
    return [
        [int(label), *(stage.get(label) for stage in found)] for label in sorted(found[2], key=int)
    ]


def label_summary(report: Mapping[str, Any]) -> str:
    """Describe the labels that a mean is taken over."""
    labels = report.get("labels")
    if not labels:
        return "labels"
    count = len(labels["both"])
    missing = ", ".join(
        reported_names(report).describe(label)
        for label in sorted((*labels["only_moving"], *labels["only_fixed"]))
    )
    text = f"the {count} label{'' if count == 1 else 's'} that both images have"
    return text + (f" (only one has {missing})" if missing else "")


def exclusive_labels(report: Mapping[str, Any] | None) -> dict[int, str]:
    """Return "moving" or "fixed" for each label that only one image has."""
    labels = (report or {}).get("labels") or {}
    return {label: side for side in ("moving", "fixed") for label in labels.get(f"only_{side}", ())}


def table_of(report: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return all values as records for a file: measure, label, before, affine, after, and the name
    of the label.
    """
    rows: list[dict[str, object]] = []
    names = reported_names(report)
    for row in summary_rows(report):
        name = row.name.rstrip(" ↑↓").replace("  at most", "Moved at most")
        figures = dict(zip(STAGES, row.values, strict=True))
        rows.append({"measure": name, "label": "", **figures, "name": ""})
    for label, *values in label_rows(report):
        only = exclusive_labels(report).get(int(label or 0))
        for n, (_, name, _) in enumerate(PER_LABEL):
            name = f"{name} (label in the {only} image only)" if only else name
            figures = dict(zip(STAGES, values[3 * n : 3 * n + 3], strict=True))
            number = int(label or 0)
            about = {"measure": name, "label": number}
            rows.append({**about, **figures, "name": names.get(number)})
    return rows


def as_tsv(rows: Sequence[Mapping[str, object]]) -> str:
    """Format records with a heading, separated by tabs, for spreadsheets."""
    lines: list[list[object]] = [list(rows[0]), *(list(row.values()) for row in rows)]
    return (
        "\n".join("\t".join("" if cell is None else str(cell) for cell in line) for line in lines)
        + "\n"
    )


def _at_stages(
    stages: Mapping[str, Any] | None, name: str
) -> tuple[float | None, float | None, float | None]:
    if stages is None:
        return None, None, None
    before, affine, after = (stages[stage][name] for stage in STAGES)
    return before, affine, after


class Figure(QTableWidgetItem):
    """A cell that sorts by its number; cells without one come last."""

    def __init__(self, value: float | None, spec: str) -> None:
        super().__init__(format_value(value, spec))
        self.value = value
        self.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def mark_dropped(self) -> None:
        """Mark a worse value: an arrow down on red."""
        self.setBackground(QColor(ERROR))
        self.setForeground(QColor("#ffffff"))
        self.setIcon(_arrow_down())

    def __lt__(self, other: QTableWidgetItem) -> bool:
        mine, theirs = self.value, getattr(other, "value", None)
        return theirs is None if mine is None or theirs is None else mine < theirs


class FigureTable(QTableWidget):
    """A read-only table with row selection.

    Parameters
    ----------
    headings : sequence of str
    tips : sequence of str
        Tooltips of the headings.
    stretch : {"none", "first", "all"}
        Which columns take the remaining width; the others fit their contents.
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
        self._fitted = 0  # rows that the height was set to
        columns.setSectionResizeMode(modes.Stretch if stretch == "all" else modes.ResizeToContents)
        if stretch == "first":
            columns.setSectionResizeMode(0, modes.Stretch)

    def show_rows(self, rows: Iterable[Sequence[QTableWidgetItem]]) -> None:
        """Replace the rows."""
        self.setRowCount(0)
        for cells in rows:
            self.add_row(cells)

    def add_row(self, cells: Sequence[QTableWidgetItem]) -> None:
        """Append a row; in a sorted table it goes to its place."""
        sorts, row = self.isSortingEnabled(), self.rowCount()
        self.setSortingEnabled(False)
        self.setRowCount(row + 1)
        cells[0].setData(Qt.ItemDataRole.UserRole, row)
        for column, cell in enumerate(cells):
            self.setItem(row, column, cell)
        self.setSortingEnabled(sorts)

    def chosen(self) -> int | None:
        """Number of the selected row in the order in which they were added, or None."""
        rows = self.selected_rows()
        item = self.item(rows[0], 0) if rows else None
        return None if item is None else int(item.data(Qt.ItemDataRole.UserRole))

    def fit(self, rows: int) -> None:
        """Set the height to this number of rows, plus the scroll bar if needed."""
        self._fitted = rows
        off, needed = (
            Qt.ScrollBarPolicy.ScrollBarAlwaysOff,
            Qt.ScrollBarPolicy.ScrollBarAsNeeded,
        )
        self.setVerticalScrollBarPolicy(off if rows >= self.rowCount() else needed)
        height = (
            self._columns.sizeHint().height()
            + 2 * self.frameWidth()
            + sum(self.rowHeight(n) for n in range(rows))
        )
        bar = self.horizontalScrollBar()
        stretched = self._columns.sectionResizeMode(0) == QHeaderView.ResizeMode.Stretch
        wide = self._columns.length() > self.width() and not stretched
        self.setFixedHeight(height + (bar.sizeHint().height() if bar is not None and wide else 2))

    def showEvent(self, event: QShowEvent | None) -> None:
        """Set the height again: rows have their height in the window's style only now."""
        super().showEvent(event)
        if self._fitted:
            self.fit(self._fitted)

    def selected_rows(self) -> list[int]:
        """Return the selected rows."""
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
    painter.setBrush(QColor("#ffffff"))
    painter.drawRect(6, 1, 4, 8)
    painter.drawPolygon(QPolygon([QPoint(2, 8), QPoint(14, 8), QPoint(8, 15)]))
    painter.end()
    return QIcon(picture)


def origin_of(registration: Registration) -> dict[str, object]:
    """Return columns that identify a registration, for each row of a file."""
    return {
        "pair": f"{registration.pair.moving.name} onto {registration.pair.fixed.name}",
        "weights": registration.weights,
    }


class TableButtons(QWidget):
    """Buttons that copy the rows of a table or save them to a file.

    Parameters
    ----------
    rows : callable
        Returns the current rows.
    name : str
        Suggested file name.
    """

    def __init__(self, rows: Callable[[], Sequence[Mapping[str, object]]], name: str) -> None:
        super().__init__()
        self._rows, self._file_name = rows, name
        self.copy = QPushButton("Copy")
        self.copy.setToolTip("Copy the table to the clipboard, for a spreadsheet")
        self.save = QPushButton("Save CSV…")
        self.save.setToolTip("Save the table, with all values, to a CSV file")
        self.copy.clicked.connect(self.to_clipboard)
        self.save.clicked.connect(self._choose_file)
        arranged(QHBoxLayout(self), None, self.copy, self.save)

    def to_clipboard(self) -> None:
        """Copy the rows to the clipboard, separated by tabs."""
        rows, clipboard = self._rows(), QApplication.clipboard()
        if rows and clipboard is not None:
            clipboard.setText(as_tsv(rows))

    def save_to(self, path: str) -> None:
        """Save the rows as CSV, or show an error."""
        from napari_shmoareg.io.files import write_table

        try:
            write_table(self._rows(), path)
        except InputError as error:
            show_error(str(error))
        else:
            show_info(f"The table was saved in {path}.")

    def _choose_file(self) -> None:
        path, _ = QFileDialog.getSaveFileName(
            self, "Save the table", self._file_name, "CSV (*.csv)"
        )
        if path:
            self.save_to(path)
