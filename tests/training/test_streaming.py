"""Text read in order: each row of a batch continues where it stopped, and a model keeps its state between windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tasks
import zoo
from configs import mamba, transformer, transformer_xl
from layers import flatten
from tasks.language_modeling import Lanes, Stream
from tests.tiers import tiered
from training import input as feed
from training import loop, streaming
from training import optimizer as optimizers
from training.assembly import build
from training.checkpoint import Checkpoints
from training.step import Skeleton, initial_state, make_evaluation, make_step

LENGTH, ROWS = 8, 2
MODELS = {
    "transformer_xl_nano": {"segment": 4, "memory": 6, "num_heads": 2},
    "compressive_transformer_nano": {"segment": 4, "memory": 4, "compressed": 3, "num_heads": 2},
    "mamba_nano": {},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"file {number} says {number * number} " * (number % 3 + 1))
    return folder


def task_on(folder: Path, **options: Any) -> tasks.LanguageModeling:
    dataset = {"name": "files", "path": str(folder)}
    return tasks.create("text", dataset=dataset, sequence_length=LENGTH, order="stream", **options)


@pytest.mark.parametrize("lanes", [1, 3, 7])
def test_lanes(lanes: int) -> None:
    """Side by side they hold every prediction once, in order; then they begin anew."""
    stream = Lanes(Stream(np.arange(54, dtype=np.uint8), 53), 10, 0)
    read = []
    for lane in range(lanes):
        parts = [stream.part(number, lane, lanes) for number in range(stream.parts(lanes))]
        assert [bool(part["start"]) for part in parts] == [True] + [False] * (len(parts) - 1)
        own = np.concatenate([part["targets"][part["real"] > 0] for part in parts])
        assert (np.diff(own) == 1).all()
        read.append(own)
        again = stream.part(stream.parts(lanes), lane, lanes)
        assert all(np.array_equal(again[name], value) for name, value in parts[0].items())
        assert sum(part["bytes"] for part in parts) == pytest.approx(len(own))
    np.testing.assert_array_equal(np.concatenate(read), np.arange(1, 54))


def tiny(name: str) -> Any:
    return zoo.create(name, features=16, depth=2, vocab_size=256, **MODELS[name])


def lanes_of(task: tasks.LanguageModeling, split: str) -> dict[str, np.ndarray]:
    """Whole lanes (ROWS, all tokens of one)."""
    examples: Any = task.examples(split)
    rows = [[examples.part(n, lane, ROWS) for n in range(examples.parts(ROWS))] for lane in range(ROWS)]
    return {
        name: np.stack([np.concatenate([p[name] for p in row]) for row in rows])
        for name in ("tokens", "targets", "real")
    }


def loss_of(model: Any, lanes: dict[str, np.ndarray]) -> np.ndarray:
    """Nats (ROWS, all tokens of a lane) of lanes that are read at once."""
    graph, state = nnx.split(model)
    logits = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, lanes["tokens"])
    losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, lanes["targets"][..., None], -1)[..., 0]
    return np.asarray(losses * lanes["real"])


def step_of(model: Any, task: Any, rate: float, accumulate: int = 1) -> tuple[Any, dict[str, Any]]:
    optimizer = optimizers.create(model, flatten(model, nnx.Param), transformer.get_config("").optimizer)
    step = make_step(
        Skeleton(model), task, optimizer, lambda step: jnp.float32(rate), seed=0, accumulate=accumulate, ema=0.0,
        aux_losses={}, sticky=True,
    )  # fmt: skip
    state = initial_state(model, optimizer, 0.0)
    return jax.jit(step), state | {"carry": streaming.empty(lambda: model, ROWS // accumulate, accumulate)}


@pytest.mark.parametrize("name", tiered(MODELS, lambda name: name == "transformer_xl_nano"))
def test_losses_are_those_of_whole_lanes(name: str, text: Path) -> None:
    """In training, at a rate of 0, and in evaluation; the second time through, rows begin anew."""
    task, model = task_on(text), tiny(name)
    lanes = lanes_of(task, "train")
    want = loss_of(model, lanes).reshape(ROWS, -1, LENGTH).sum((0, 2))
    step, state = step_of(model, task, 0.0)
    found = []
    examples: Any = task.examples("train")
    for number in range(examples.parts(ROWS) + 1):
        state, report = step(state, feed.train_batch(examples, number, ROWS, 0))
        found.append(float(report["pairs"]["loss"][0]))
    np.testing.assert_allclose(found, [*want, want[0]], rtol=1e-5)
    lanes = lanes_of(task, "validation")
    evaluate = jax.jit(make_evaluation(Skeleton(model), task))
    carry, total = streaming.empty(lambda: model, ROWS), 0.0
    for batch in feed.evaluation_batches(task.examples("validation"), ROWS):
        (pairs, _, _), carry = evaluate(flatten(model), batch, carry)
        total += float(pairs["loss"][0])
    np.testing.assert_allclose(total, loss_of(model, lanes).sum(), rtol=1e-5)


@pytest.mark.full
def test_microbatches_have_lanes_of_their_own(text: Path) -> None:
    task, model = task_on(text), tiny("transformer_xl_nano")
    sums = []
    for accumulate in (1, 2):
        step, state = step_of(model, task, 0.0, accumulate)
        for number in range(3):
            state, report = step(state, feed.train_batch(task.examples("train"), number, ROWS, 0, accumulate))
        sums.append(float(report["pairs"]["loss"][0]))
    np.testing.assert_allclose(*sums, rtol=1e-5)


def config(source: Any, path: Path, **options: Any) -> Any:
    made = source.get_config(f"text,path={path}")
    made.task.order, made.task.sequence_length = "stream", LENGTH
    made.model_options.update({"features": 8, "depth": 1, "num_heads": 2, **options})
    made.update({"train_for": "6 steps", "eval_every": "6 steps", "save_every": "3 steps", "log_every": 1})
    made.update({"batch_size": 4, "workers": 0})
    made.schedule.warmup = "0 steps"
    return made


def run(made: Any, folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    task, model = build(made)
    result = loop.train(made, model, task, folder)
    return result, {name: np.asarray(value) for name, value in flatten(model).items()}


def test_a_run_goes_on_bit_for_bit(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The carry is in the checkpoints: without it the steps after a restart would forget."""
    made = config(transformer_xl, text, segment=4, memory=8)
    whole, weights = run(made, tmp_path / "whole")
    assert whole.finished
    batches = loop.train_batches
    monkeypatch.setattr(loop, "train_batches", lambda examples, steps, *a, **k: batches(examples, steps[:3], *a, **k))
    run(made, tmp_path / "parts")
    monkeypatch.setattr(loop, "train_batches", batches)
    kept = Checkpoints(tmp_path / "parts", read_only=True)
    assert kept.steps() == [3]
    result, found = run(made, tmp_path / "parts")
    assert result.finished
    assert all(np.array_equal(found[name], value) for name, value in weights.items())
    assert result.figures == whole.figures
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.full
def test_mamba_in_a_stream(text: Path, tmp_path: Path) -> None:
    """A recurrent model needs no option but the order, and microbatches."""
    made = config(mamba, text)
    made.accumulate = 2
    assert run(made, tmp_path)[0].finished


def test_refusals(text: Path, tmp_path: Path) -> None:
    made = config(transformer, text)
    with pytest.raises(ValueError, match=r"in constant memory, and this model can't do that: .* unwindowed attention"):
        run(made, tmp_path / "unwindowed")
    made = config(transformer, text, window=8, position="learned", max_length=64)
    with pytest.raises(ValueError, match=r"can't do that: its table of positions ends at max_length=64"):
        run(made, tmp_path / "positions")
    made = config(transformer, text, window=8)
    made.batch_size = 1024
    with pytest.raises(ValueError, match=r"can't be cut into batch_size=1024 lanes"):
        run(made, tmp_path / "few")
    with pytest.raises(ValueError, match="packing=True makes rows of whole documents: take one of them"):
        task_on(text, packing=True)
    with pytest.raises(ValueError, match='order=\'sorted\': "shuffled" or "stream"'):
        tasks.create("text", dataset={"name": "files", "path": str(text)}, order="sorted")
    model = tiny("mamba_nano")
    reading = streaming.Reading(model, streaming.empty(lambda: model, 1), jnp.ones(1, bool))
    reading(jnp.zeros((1, 3), jnp.int32))
    with pytest.raises(ValueError, match="a batch of a stream is read once"):
        reading(jnp.zeros((1, 3), jnp.int32))
