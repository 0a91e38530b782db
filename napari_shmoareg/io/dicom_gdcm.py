"""Compressed DICOM frames unpacked by GDCM, in a process of its own.

Run as a script: it reads paths of single-frame files, one a line, and answers each by a line of JSON and
the values.  A damaged stream can end a codec by a segmentation fault, which must not end the caller.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import numpy as np
from numpy.typing import NDArray

PATIENCE = 60.0
"""Seconds that one frame may take."""


class Decoder:
    """A process that unpacks frames, started with the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path) -> NDArray:
        """Unpack the pixels of a single-frame file.

        Returns
        -------
        (rows, columns) array, as GDCM gives it

        Raises
        ------
        ValueError
            If they are damaged.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        timer = Timer(PATIENCE, process.kill)
        timer.start()
        try:
            process.stdin.write(os.fsencode(path) + b"\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline() or b'{"error": "the decoder failed on them"}')
            if "error" in answer:
                raise ValueError(answer["error"])
            values = np.dtype(answer["dtype"])
            content = process.stdout.read(int(np.prod(answer["shape"])) * values.itemsize)
            return np.frombuffer(content, values).reshape(answer["shape"])
        except BrokenPipeError as error:
            raise ValueError("the decoder failed on them") from error
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )


@contextmanager
def decoding() -> Iterator[Decoder]:
    """A decoder whose process ends with the block."""
    decoder = Decoder()
    try:
        yield decoder
    finally:
        decoder.close()


def _main() -> None:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints must not get among the answers
    for line in sys.stdin.buffer:
        try:
            values = sitk.GetArrayFromImage(sitk.ReadImage(os.fsdecode(line.rstrip(b"\n"))))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()
            answers.write(json.dumps({"error": reason[-1].strip() if reason else "no reason given"}).encode() + b"\n")
        else:
            values = values.reshape(values.shape[1:]) if values.ndim == 3 and values.shape[0] == 1 else values
            answer = {"dtype": values.dtype.str, "shape": values.shape}
            answers.write(json.dumps(answer).encode() + b"\n" + np.ascontiguousarray(values).tobytes())
        answers.flush()


if __name__ == "__main__":
    _main()
