"""The command line: ``shmoareg demo | register | apply | inspect ...``."""

from __future__ import annotations


def main() -> None:
    """Run the command and exit with code 0 (done), 1 (failed), 2 (wrong usage) or 130
    (cancelled).
    """
    import signal
    from types import FrameType

    from napari_shmoareg.cli.allocator import keep_freed_memory

    keep_freed_memory()
    from napari_shmoareg.cli.app import app

    # SIGTERM (kill, a cluster's time limit) runs the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def handle_hangup(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a closing terminal sends it more than once
        raise KeyboardInterrupt

    # not under nohup
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, handle_hangup)
    app(prog_name="shmoareg")
