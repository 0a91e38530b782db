"""One setting as a control, by the type of its field, with its error below it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QLabel, QLineEdit, QVBoxLayout, QWidget

from napari_shmoareg.geometry import InputError

WRONG = "#e8590c"  # of the border of a value that is refused; seen on light and on dark
KINDS = {int: "A whole number", float: "A number"}


class Field(QWidget):
    """Asks for one value.

    Parameters
    ----------
    kind : type
        int, float, str, bool, a Literal of words, or one of them or None.
    default
        To begin with.
    check : callable
        Raises `InputError` for a value that is refused.
    """

    changed = Signal()

    def __init__(self, kind: Any, default: Any, check: Callable[[Any], object]) -> None:
        super().__init__()
        self._kind, self._or_none = _without_none(kind)
        self._check = check
        self.control: QWidget
        if self._kind is bool:
            box = QCheckBox()
            box.toggled.connect(self._show)
            self.control = box
        elif get_origin(self._kind) is Literal:
            combo = QComboBox()
            combo.addItems([str(word) for word in get_args(self._kind)])
            combo.currentIndexChanged.connect(self._show)
            self.control = combo
        else:
            line = QLineEdit()
            line.setPlaceholderText("none" if self._or_none else "")
            line.textChanged.connect(self._show)
            self.control = line
        self.wrong = QLabel()
        self.wrong.setWordWrap(True)
        self.wrong.hide()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(1)
        column.addWidget(self.control)
        column.addWidget(self.wrong)
        self.value = default

    @property
    def value(self) -> Any:
        """What it says.

        Raises
        ------
        InputError
            If that is no value of its kind, or is refused.
        """
        value = self._read()
        self._check(value)
        return value

    @value.setter
    def value(self, value: Any) -> None:
        if isinstance(self.control, QCheckBox):
            self.control.setChecked(bool(value))
        elif isinstance(self.control, QComboBox):
            self.control.setCurrentText(str(value))
        elif isinstance(self.control, QLineEdit):
            self.control.setText("" if value is None else _written(value))
        self._show()

    @property
    def error(self) -> str | None:
        """Why its value is refused; None if it is not."""
        try:
            _ = self.value
        except InputError as error:
            return str(error)
        return None

    def _read(self) -> Any:
        if isinstance(self.control, QCheckBox):
            return self.control.isChecked()
        if isinstance(self.control, QComboBox):
            return self.control.currentText()
        assert isinstance(self.control, QLineEdit)
        text = self.control.text().strip()
        if not text and self._or_none:
            return None
        try:
            return self._kind(text)
        except ValueError as error:
            raise InputError(f"{KINDS[self._kind]} was expected; got '{text}'.") from error

    def _show(self, *_: object) -> None:
        error = self.error
        self.wrong.setText(error or "")
        self.wrong.setVisible(error is not None)
        self.control.setStyleSheet(f"border: 1px solid {WRONG};" if error else "")
        self.changed.emit()


def _without_none(kind: Any) -> tuple[Any, bool]:
    """``float | None`` is float, or nothing."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [each for each in get_args(kind) if each is not types.NoneType]
        return rest[0], len(rest) < len(get_args(kind))
    return kind, False


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
