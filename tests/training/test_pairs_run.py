"""Pairs of texts through the commands' own assembly and loop: a run, its figures, and what its weights generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from configs import t5
from training import assembly, evaluation, loop, sampling
from training.workdir import read_config

SMALL = {"features": 16, "depth": 1, "num_heads": 2, "head_dim": 8, "hidden": 16}


def config(path: Path) -> Any:
    made = t5.get_config(f"file,path={path}")
    made.model_options.update(SMALL)
    made.task.update({"source_length": 12, "target_length": 8, "monitor": "bleu"})
    made.update({"train_for": "4 steps", "eval_every": "4 steps", "save_every": "4 steps"})
    made.update({"log_every": 2, "batch_size": 8, "workers": 0})
    made.schedule.warmup = "0 steps"
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("pairs")
    path = root / "pairs.tsv"
    path.write_text("".join(f"{i} and {i * i}\t{i % 7}\n" for i in range(80)))
    task, model = assembly.build(config(path))
    made = config(path)
    result = loop.train(made, model, task, root / "run", record=assembly.record(made, task))
    return task, root / "run", result


def test_figures(trained: Any) -> None:
    """Of the whole split, as eval.py computes them again, whatever the batch."""
    task, workdir, result = trained
    figures = result.figures["raw"]
    assert set(figures) == {"loss", "accuracy", "exact", "bleu"}
    assert np.isfinite(list(figures.values())).all()
    assert result.best is not None
    made = read_config(workdir)
    _, model = assembly.build(made, run=workdir)
    evaluation.load(made, model, workdir)
    made.batch_size = 3
    again = evaluation.record(made, model, task)
    assert {name: again[name] for name in figures} == {name: pytest.approx(v, rel=1e-4) for name, v in figures.items()}
    assert any("--source=" in line for line in loop.following(task, workdir, result))


@pytest.mark.full
def test_its_weights_write(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What evaluation writes is what generation does, from tokens, from texts and from a shell."""
    task, workdir, _ = trained
    model: Any = zoo.create(weights=workdir)
    texts = ["3 and 9", "10 and 100"]
    rows = [[*text.encode(), task.end_token] for text in texts]
    width = max(map(len, rows))
    source = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    real = np.arange(width) < np.asarray([[len(row)] for row in rows])
    written = np.asarray(zoo.generation.written(model, source, real, 8))
    found = zoo.generate(model, source=texts, max_new_tokens=8, temperature=0)
    assert found.rows() == [row[row >= 0].tolist() for row in written]
    assert found.texts == [task.decode(row) for row in written]
    sampling.main([f"--workdir={workdir}", "--source=3 and 9", "--max_new_tokens=8", "--temperature=0"])
    assert capsys.readouterr().out == f"{found.texts[0]}\n"


def test_models_without_an_encoder_are_refused(tmp_path: Path) -> None:
    made = t5.get_config()
    made.model = "transformer_nano"
    with pytest.raises(ValueError, match=r"transformer_nano reads no source: .* are for encoder-decoders, as t5_nano"):
        assembly.build(made)
