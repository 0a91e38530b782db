"""Fine-tune on a folder and judge the result: python fine_tune_folder.py FOLDER RUN [STEPS]."""

import subprocess
import sys

folder, run = sys.argv[1:3]
steps = sys.argv[3] if len(sys.argv) > 3 else "500"


def shmoareg(*words: str) -> None:
    """Run the command of that name."""
    subprocess.run([sys.executable, "-m", "napari_shmoareg", *words], check=True)


shmoareg("fine-tune", folder, "--out", run, "--steps", steps, "--split", "60%/20%/20%")
shmoareg("evaluate", "--run", run, "--weights", "small", "--out", f"{run}-before")
shmoareg("evaluate", "--run", run, "--out", f"{run}-after", "--against", f"{run}-before")
