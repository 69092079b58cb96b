"""Text in packed rows through the commands' own assembly and loop: a run, its figures, and its resumption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs import longnet, transformer
from training import loop
from training.assembly import build


def config(path: Path, source=transformer, **options):
    made = source.get_config(f"text,path={path}")
    made.task.packing, made.task.sequence_length = True, 64
    made.model_options.update({"features": 8, "depth": 1, "num_heads": 2, **options})
    made.update({"train_for": "4 steps", "eval_every": "4 steps", "save_every": "2 steps"})
    made.update({"log_every": 1, "batch_size": 8, "workers": 0})
    made.schedule.warmup = "0 steps"
    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"file {number} " * (number % 20 + 1))
    return folder


def test_a_run_on_packed_rows_counts_every_prediction(text: Path, tmp_path: Path) -> None:
    made = config(text)
    task, model = build(made)
    result = loop.train(made, model, task, tmp_path / "run")
    assert result.finished
    rows = [task.examples("test").get(i, None) for i in range(len(task.examples("test")))]
    size = sum(float(row["real"].sum()) for row in rows)
    assert max(row["segment_ids"].max() for row in rows) > 0
    figures = result.figures["raw"]
    assert figures["bits_per_byte"] == pytest.approx(figures["loss"] / np.log(2), rel=1e-4)  # bytes are tokens
    assert size == sum(float(row["bytes"]) for row in rows)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]


def test_documents_begin_where_the_model_needs_them(text: Path) -> None:
    task, model = build(config(text, longnet, segments=(16, 32), rates=(2, 8)))
    assert model.segment_multiple == 8
    examples = task.examples("train")
    ids = np.stack([examples.get(i, None)["segment_ids"] for i in range(len(examples))])
    begins = 1 + np.nonzero(np.diff(ids, axis=1))[1]
    assert len(begins)
    assert (begins % 8 == 0).all()
    with pytest.raises(ValueError, match="multiples of 24 tokens for this model"):
        build(config(text, longnet, segments=(24,), rates=(24,)))
