"""Stands in for `shmoareg fine-tune`: prints the events of a run, and does as its name is told.

``python fake_run.py HOW FOLDER [STEPS]``; HOW is one of the functions below, or "plain".  Reads
"pause", "go" and "stop" from standard input, whose end counts as "stop"."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

SHARES = {"encoder-1-moving": 12, "encoder-1-fixed": 12, "decoder-1-x": 3, "decoder-1-y": 3}


class Fake:
    """A run of so many steps."""

    def __init__(self, how: str, folder: Path, steps: int) -> None:
        self.how, self.folder, self.steps = how, folder, steps
        self.words: list[str] = []
        self.pace = 0.3 if how == "slow" else 0.01
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        for line in sys.stdin:
            self.words.append(line.strip())
        self.words.append("stop")

    def tell(self, event: str, **about: object) -> None:
        print(json.dumps({"event": event, "time": time.time(), **about}), flush=True)

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.json").write_text(
            '{"format": "shmoareg-run-1", "settings": {"steps": 1}}', encoding="utf-8"
        )
        (self.folder / "split.json").write_text(
            json.dumps({"train": ["a", "b"], "validation": ["c", "d"], "test": [], "seed": 0}),
            encoding="utf-8",
        )
        self.check()
        memory = {"need": 3_100_000_000, "free": 12_400_000_000}
        about = {
            "device": "cpu",
            "memory": memory,
            "resumed_at": None,
            "problems": ["label 4 is rare"],
        }
        pairs = {"train": 2, "validation": 2, "test": 0}
        self.tell(
            "begin", run=str(self.folder), pid=os.getpid(), steps=self.steps, pairs=pairs, **about
        )
        step = 0
        while step < self.steps and "stop" not in self.words:
            if self.words and self.words[-1] == "pause":
                self.tell("paused", step=step)
                while self.words[-1] == "pause":
                    time.sleep(0.02)
                self.tell("resumed", step=step)
                continue
            step += 1
            self.step(step)
            time.sleep(self.pace)
        (self.folder / "training.safetensors").write_bytes(b"state")
        self.tell("saved", step=step, what="state")
        (self.folder / "best.safetensors").write_bytes(b"weights")
        reason = "stopped" if step < self.steps else "finished"
        self.tell("end", reason=reason, step=step, weights=str(self.folder / "best.safetensors"))

    def check(self) -> None:
        for n, name in enumerate("abcde"):
            self.tell("phase", phase="checkup", done=(n + 1) / 5, text=f"scan {name}")
            if name == "e":
                found = dict.fromkeys(
                    ("shape", "spacing", "orientation", "low", "high", "labels", "overlap")
                )
                found["skipped"] = "cannot be read: the file is cut short"
            else:
                found = {
                    "shape": [37 + n, 29, 23],
                    "spacing": [3.0, 3.0, 2.0],
                    "orientation": "LIA",
                    "skipped": None,
                }
                found |= {
                    "low": 0.0,
                    "high": 220.0 - n,
                    "labels": [1, 2, 3],
                    "overlap": 0.5 + n / 20 if n else None,
                }
            self.tell("scan", name=name, subject=f"s{name}", overlap_kind="dice", **found)

    def step(self, n: int) -> None:
        if self.how == "crash" and n == 5:
            print("Fatal: the card fell out", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "garbage" and n == 3:
            print(
                '{"event": "step", "step": "three"}\nnot json at all\n{"event": "unheard"}',
                flush=True,
            )
        if self.how == "error" and n == 4:
            self.tell("error", text="The loss is not finite (a and b). Lower the learning rate.")
            self.tell("end", reason="failed", step=n, weights=None)
            sys.exit(1)
        if self.how == "silent" and n == 2:
            time.sleep(3600)
        fall = math.exp(-n / 60)
        wave = 0.1 * math.sin(n * 12.9898) + 0.1
        losses = {
            "total": 0.01 * (fall + wave) + 0.002,
            "similarity": 0.009 * (fall + wave),
            "overlap": None,
        }
        losses |= {
            "smoothness": 0.08 + 0.02 * wave,
            "routing": 0.6 * fall + 0.4,
            "gradient": 1.0,
            "rate": 1e-4,
        }
        left = (self.steps - n) * self.pace
        self.tell(
            "step",
            step=n,
            steps=self.steps,
            seconds=self.pace,
            pairs=[["a", "b"]],
            left_seconds=left,
            **losses,
        )
        if n % 10 == 0:
            self.load(n)
            best = 0.6 + 0.15 * (1 - fall) - 0.0004 * n
            figures = {"dice": best, "ncc": 0.8, "folding_percent": 0.02 * (1 - fall)}
            self.tell("validation", step=n, best=True, seconds=1.0, **figures)

    def load(self, n: int) -> None:
        shares = {}
        for place, count in SHARES.items():
            raw = [1 + 0.5 * math.sin(expert + n / 40) for expert in range(count)]
            if place == "decoder-1-y" and n >= 30:
                raw = [0.0, 1.0, 0.0]
            shares[place] = [value / sum(raw) for value in raw]
        text = (
            "decoder layer 1, y: routing has collapsed: expert 1 has 100 % of the selections. Lower"
            " the rate."
        )
        alarms = [{"place": "decoder-1-y", "text": text}] if n >= 30 else []
        self.tell("load", step=n, shares=shares, alarms=alarms)


if __name__ == "__main__":
    how, folder, *steps = sys.argv[1:]
    Fake(how, Path(folder), int(steps[0]) if steps else 40).run()
