"""The comparison of vision models: peers are known, rows are made of what processes found, and one is measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import zoo
from benchmarks import vision
from benchmarks.vision_peers import PEERS, Peer


def found(forward: float, step: float, memory: float) -> dict[str, Any]:
    measured = {"forward": forward, "training_step": step, "memory": memory, "product": 1.0}
    return {**measured, "losses": [3.0], "logits": [1.0, -2.0]}


def test_rows_have_the_least_of_two_measurements_and_ratios_to_the_peer() -> None:
    other = {**found(6.0, 8.0, 200.0), "logits": [1.0, -2.5]}
    row = vision.combine(found(5.0, 10.0, 100.0), [found(4.0, 12.0, 110.0)], {"eager": other})
    assert row["ours"] == {"forward": 4.0, "training_step": 10.0, "memory": 100.0, "losses": [3.0], "product": 1.0}
    assert row["times_faster_than_eager"] == {"forward": 1.5, "training_step": 0.8}
    assert row["memory_of_eager"] == 0.5
    assert row["eager"]["largest_relative_difference"] == 0.2


def test_what_was_stopped_is_in_the_row() -> None:
    late = {"logits": [1.0, -2.0], "forward": 9.0, "stopped": "not done after 90 s"}
    row = vision.combine(found(5.0, 10.0, 100.0), [late], {"eager": late})
    assert row["ours"]["forward"] == 5.0
    assert row["eager"]["stopped"] == "not done after 90 s"
    assert row["times_faster_than_eager"] == {"forward": 1.8}
    assert vision.combine({"stopped": "broke"}, [], {"eager": late})["ours"] == {"stopped": "broke"}


def test_means_are_of_families_that_were_measured() -> None:
    ratios = [{"forward": 0.5, "training_step": 2.0}, {"forward": 2.0}, {}]
    rows = {f"m{i}": {"family": "f", "times_faster_than_eager": ratio} for i, ratio in enumerate(ratios)}
    rows |= {"gpu": {"family": "f", "stopped": "needs a GPU"}, "old": {"times_faster_than_eager": {"forward": 9.0}}}
    assert vision.means(rows) == {"forward": 1.0, "training_step": 2.0}


@pytest.mark.parametrize("name", PEERS)
def test_peers_are_of_published_models_with_classes(name: str) -> None:
    peer, entry = PEERS[name], zoo.variant(name)
    side, classes = vision.sizes(name)
    assert side >= 32
    assert classes >= 10
    assert entry.rules
    assert bool(peer.timm) != bool(peer.repository)
    if peer.script:
        path = Path(vision.__file__).parents[1] / "tests" / "references" / f"{peer.script}.py"
        assert "def published(" in path.read_text()


def test_a_peer_that_is_not_here_is_told_with_the_reason(tmp_path: Path) -> None:
    peer = Peer(repository="owner/name", script="biformer")
    assert "--clones=FOLDER, with it as owner+name" in peer.missing(tmp_path)
    assert "no checkout of github.com/owner/name" in peer.missing(None)
    (tmp_path / "owner+name").mkdir()
    assert not peer.missing(tmp_path)
    assert Peer(repository="owner/name", reason="needs a GPU").missing(tmp_path) == "needs a GPU"


def test_rows_that_are_not_measured_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "vision.json"
    row = {"family": "f", "times_faster_than_eager": {"forward": 2.0, "training_step": 1.0}}
    monkeypatch.setattr(vision, "measured", lambda name, size, folder, args: {**row, "name": name})
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1")
    for name in ("resnet18", "pvt_v2_b0"):
        monkeypatch.setattr(sys, "argv", ["vision", f"--models={name}", f"--output={output}"])
        vision.main()
    rows = json.loads(output.read_text())["milliseconds"]
    assert {name: row["name"] for name, row in rows.items()} == {
        "resnet18, batch 8": "resnet18", "pvt_v2_b0, batch 8": "pvt_v2_b0"
    }  # fmt: skip
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2")
    with pytest.raises(SystemExit, match="other versions"):
        vision.main()


@pytest.mark.full
@pytest.mark.reference
def test_a_row_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a batch of one, of the smallest model that timm has."""
    importlib.import_module("tests.references.live")
    output = tmp_path / "vision.json"
    monkeypatch.setattr(
        sys, "argv", ["vision", "--models=convnext_atto", "--batches=1", "--repeats=1", f"--output={output}"]
    )
    vision.main()
    row = json.loads(output.read_text())["milliseconds"]["convnext_atto, batch 1"]
    assert row["peer"] == "timm convnext_atto"
    assert row["eager"]["largest_relative_difference"] < 1e-4
    for side in ("ours", "eager"):
        assert min(row[side]["forward"], row[side]["training_step"], row[side]["memory"]) > 0
    assert row["ours"]["losses"] == pytest.approx(row["eager"]["losses"], rel=1e-3)
