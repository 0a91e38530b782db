"""``shmoareg demo``: the built-in pair, with the truth."""

from __future__ import annotations

import json

import pytest


def test_the_demo_states_the_true_error_before_and_after(weights, shmoareg, tmp_path):
    out = tmp_path / "demo"
    result = shmoareg("demo", "--weights", weights, "--out", out, "--no-viewer")
    assert result.exit_code == 0, result.stderr
    truth = json.loads((out / "report.json").read_text())["extra"]["true_error_mm"]
    assert truth["affine"]["mean"] < truth["before"]["mean"]
    row = next(line for line in result.stdout.splitlines() if line.startswith("true error, mm"))
    assert row.split()[3:] == [f"{truth[stage]['mean']:.2f}" for stage in ("before", "affine", "after")]
    assert "viewer" not in (result.stdout + result.stderr).lower()
    assert {p.name for p in (out / "figures").iterdir()} >= {"overview.png", "expert_maps.png", "expert_loads.png"}


def test_the_demo_does_not_fill_a_folder_twice(weights, shmoareg, tmp_path, plain):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "report.json").write_text("{}")
    assert plain(shmoareg("demo", "--weights", weights, "--out", out)).search("not empty")


def test_the_shipped_weights_bring_the_sample_closer_to_the_truth(shmoareg, tmp_path):
    from napari_shmoareg.io.checkpoint import shipped_weights

    if not shipped_weights():
        pytest.skip("no weights are shipped yet")
    out = tmp_path / "demo"
    result = shmoareg("demo", "--out", out, "--quiet")
    assert result.exit_code == 0, result.stderr
    report = json.loads((out / "report.json").read_text())
    truth = report["extra"]["true_error_mm"]
    assert truth["after"]["mean"] < truth["affine"]["mean"] < truth["before"]["mean"]
    assert report["dice"]["after"]["mean"] > report["dice"]["affine"]["mean"]
    assert report["folding_percent"] < 1
