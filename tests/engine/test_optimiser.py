"""Loading torch's compiler beside a window that draws by LLVM."""

from __future__ import annotations

import sys

import pytest

from napari_shmoareg.registration import refinement


@pytest.mark.parametrize(
    ("loaded", "hidden"), [("/usr/lib/libLLVM-15.so.1", True), ("/usr/lib/libc.so.6", False)]
)
def test_triton_is_hidden_only_where_it_would_crash(loaded, hidden, tmp_path, monkeypatch):
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r-xp 00000000 00:00 0 {loaded}\n", encoding="utf-8")
    monkeypatch.setattr(refinement, "LOADED_LIBRARIES", maps)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    with refinement.without_triton():
        assert ("triton" in sys.modules and sys.modules["triton"] is None) == hidden
    assert "triton" not in sys.modules


def test_a_triton_that_is_loaded_already_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", sys)
    with refinement.without_triton():
        assert sys.modules["triton"] is sys
