"""``python -m napari_shmoareg``: the same as the command ``shmoareg``."""

from __future__ import annotations

from napari_shmoareg.cli import main

if __name__ == "__main__":
    main()
