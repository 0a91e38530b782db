"""What is asked of a run: pause, go, stop; from this process or from outside."""

from __future__ import annotations

import os
from pathlib import Path

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import partial
from napari_shmoareg.io.atomic import writing

WORDS = ("pause", "go", "stop")


class Wishes:
    """What was asked of a run so far.

    Parameters
    ----------
    file : Path
        Where another process may write a word; it is removed when it is read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stop = False
        self._pause = False
        self._hears = True

    def follow(self) -> None:
        """Leave the file to the leader of a team, whose answer is that of all: a word read twice is read by one."""
        self._hears = False

    def ask(self, word: str) -> None:
        """Ask from within this process; also from another thread or a signal's handler.

        Raises
        ------
        InputError
            If the word is none of `WORDS`.
        """
        if word not in WORDS:
            raise InputError(f"A run can be asked to {', '.join(WORDS)}; got '{word}'.")
        if word == "stop":
            self._stop = True
        else:
            self._pause = word == "pause"

    @property
    def stop(self) -> bool:
        """Whether the run is to end at the next safe step."""
        self._look()
        return self._stop

    @property
    def pause(self) -> bool:
        """Whether the run is to wait."""
        self._look()
        return self._pause

    def forget(self) -> None:
        """Drop what was written for an earlier process."""
        self._file.unlink(missing_ok=True)

    def _look(self) -> None:
        if not self._hears or not self._file.exists():
            return
        taken = partial.hidden(self._file.parent, self._file.name)
        try:
            os.replace(self._file, taken)
        except FileNotFoundError:  # taken back just now
            return
        word = taken.read_text(encoding="utf-8", errors="replace").strip()
        taken.unlink()
        if word in WORDS:
            self.ask(word)


def write_wish(file: Path, word: str) -> None:
    """Ask a run of another process.

    Raises
    ------
    InputError
        If it cannot be written there.
    """
    with writing(file) as temporary:
        temporary.write_text(f"{word}\n", encoding="utf-8")
