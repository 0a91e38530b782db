"""Two processes that learn together, as two threads: what is asked from outside reaches both."""

from __future__ import annotations

import threading
import time

from napari_shmoareg.datasets.dataset import DatasetChoice
from napari_shmoareg.training.plan import make_plan
from napari_shmoareg.training.run_folder import RunControl, write_request
from napari_shmoareg.training.trainer import learn


class OfTwo:
    """One of two that work together in one process; what they say to each other goes through
    `said`.
    """

    size, device = 2, None

    def __init__(self, rank, meeting, said):
        self.rank, self.is_main, self._meeting, self._said = rank, rank == 0, meeting, said

    def _together(self, mine):
        self._said[self.rank] = mine
        self._meeting.wait(60)
        both = list(self._said)
        self._meeting.wait(60)
        return both

    def share(self, count):
        return range(self.rank, count, 2)

    def any(self, flag):
        return any(self._together(flag))

    def wait(self):
        self._together(None)

    def add(self, tensors):
        both = self._together([tensor.detach().clone() for tensor in tensors])
        for tensor, one, other in zip(tensors, *both, strict=True):
            tensor.copy_(one + other)


def test_go_ends_the_pause_of_all_even_where_another_process_looks_for_it_first(
    scans, small, tmp_path
):
    choice = DatasetChoice(str(scans), images="images/*.nii.gz")
    plan = make_plan(
        str(small), choice, {"steps": 3, "batch": 2}, {"split": "6/0/0", "affine": "none"}
    )
    meeting, said = threading.Barrier(2), [None, None]
    leader, follower = (RunControl(tmp_path / "run" / "wish") for _ in range(2))
    written = threading.Event()

    def run(rank, control):
        return learn(
            tmp_path / "run", plan, device="cpu", group=OfTwo(rank, meeting, said), control=control
        )

    def follow():
        for event in run(1, follower):
            if event["event"] == "paused":
                written.wait(60)

    other = threading.Thread(target=follow)
    other.start()
    in_despair = threading.Timer(20, lambda: leader.set_request("stop"))
    in_despair.start()
    told = []
    try:
        for event in run(0, leader):
            told.append(event)
            if event["event"] == "step" and event["step"] == 1:
                leader.set_request("pause")
            elif event["event"] == "paused":
                write_request(tmp_path / "run" / "wish", "go")
                written.set()
                while meeting.n_waiting == 0:  # until the other has looked
                    time.sleep(0.01)
    except BaseException:
        meeting.abort()
        raise
    finally:
        in_despair.cancel()
        other.join(60)
    names = [event["event"] for event in told]
    assert names.count("paused") == names.count("resumed") == 1
    assert told[-1]["reason"] == "finished" and told[-1]["step"] == 3
