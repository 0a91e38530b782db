"""A corpus of malformed inputs: none ends, stops or fools the process that reads them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import napari_shmoareg

pytestmark = pytest.mark.slow

CHILD = Path(__file__).parent / "malformed" / "reading.py"
FINE = {"refused", "warned", "read"}
AT_LEAST = 1500


def test_every_malformed_input_is_refused_by_name_warned_about_or_read_right(tmp_path):
    """Or read with the values and at the place that an independent reader finds.

    About 1,640 inputs; some 15 s on an idle core.  ``CORPUS_SEED=7 CORPUS_TIMES=8 python
    tests/malformed/reading.py FOLDER`` draws others, and more.
    """
    paths = [str(Path(napari_shmoareg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CHILD), str(tmp_path)]
    child = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | more, timeout=600, check=False
    )
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    begun = [line for line in lines if "begun" in line]
    ended = [line for line in lines if "outcome" in line]
    last = begun[-1] if begun else "nothing"
    assert child.returncode == 0, f"ended with {child.returncode} at {last}: {child.stderr[-3000:]}"
    total = lines[-1]
    assert total["inputs"] == len(begun) == len(ended) >= AT_LEAST
    faults = [f"{b['kind']}, {b['name']}: {e['outcome']}: {e['detail']}" for b, e in zip(begun, ended, strict=True)
              if e["outcome"] not in FINE]  # fmt: skip
    counts = Counter(line["outcome"] for line in ended)
    print(f"{total['inputs']} malformed inputs in {total['seconds']} s: {dict(counts)}")
    assert not faults, "\n".join(faults[:20])
