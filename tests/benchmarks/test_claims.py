"""The claims run in a tiny form; their verdicts, and the reading of long sequences in pieces, are right."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tasks
import zoo
from benchmarks.claims import (
    addition,
    copying,
    denoising,
    dynamic_programming,
    induction_heads,
    language_models,
    length_extrapolation,
    long_context,
    passkey,
    pointing,
    position_identification,
    routing_membership,
    selective_copying,
)
from benchmarks.claims import run as claims
from benchmarks.claims.run import HOME, steps_to
from layers.module import Statistic
from layers.state import flatten, parameter_count
from tests.tiers import tiered
from training import assembly
from training import input as feed
from training import optimizer as optimizers
from training.step import Skeleton, initial_state, make_evaluation, make_step

NAMES = sorted(
    path.stem for path in (HOME / "benchmarks" / "claims").glob("*.py") if path.stem not in ("run", "__init__")
)


def traced(contest: claims.Contest, contestant: claims.Contestant, seed: int, steps: int) -> claims.Row:
    """A row in place of training, of what is traced: the loss; of the first contestant a step and an evaluation, and
    what the claim measures besides is measured.
    """
    config = claims.config_of(contest, contestant, seed, steps)
    task, model = assembly.build(config)
    batch, test = feed.train_batch(task.examples("train"), 0, 2, 0, 1), {}
    skeleton, arrays = Skeleton(model), flatten(model, nnx.Param) | flatten(model, Statistic)
    if contestant is contest.contestants[0]:
        optimizer = optimizers.create(model, flatten(model, nnx.Param), config.optimizer)
        step = make_step(
            skeleton, task, optimizer, lambda step: jnp.float32(0.1), seed=seed, accumulate=1, ema=config.ema,
            aux_losses=dict(config.aux_losses), sticky=True,
        )  # fmt: skip
        jax.eval_shape(step, jax.eval_shape(lambda: initial_state(model, optimizer, config.ema)), batch)
        held_out = next(iter(feed.evaluation_batches(task.examples("test"), 2)))
        test = dict.fromkeys(jax.eval_shape(make_evaluation(skeleton, task), arrays, held_out)[0][0], 0.5)
        test |= contest.measure(model, contestant) if contest.measure is not None else {}
    else:
        rows, key = {name: leaf[0] for name, leaf in batch.items()}, jax.random.key(0)
        loss = jax.eval_shape(lambda arrays: task.loss(skeleton.build(arrays, key), rows, key)[0], arrays)
        assert loss.shape == ()
    return row(contestant.label, seed, steps, **test) | {"chance": None, "seconds": 1.0}


@pytest.mark.parametrize("name", tiered(NAMES, lambda name: name == "copying"))
def test_every_contestant_can_be_trained(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"benchmarks.claims.{name}")
    contest = module.contest(True)
    monkeypatch.setattr(claims, "train", traced)
    module.run(["--quick", f"--output={tmp_path}"])
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert [row["label"] for row in report["rows"]] == [contestant.label for contestant in contest.contestants]
    assert report["holds"] is None, "a quick run shows nothing"
    assert set(contest.figures) <= set(report["rows"][0]["test"])
    printed = capsys.readouterr().out
    assert all(contestant.label in printed for contestant in contest.contestants)
    assert "not judged" in printed


@pytest.mark.parametrize(
    ("claim", "only"),
    tiered(
        [(copying, "standard"), (induction_heads, "released"), (denoising, "transformer, denoised")],
        lambda case: case[0] is copying,
    ),
)
def test_a_contestant_is_trained(claim: ModuleType, only: str, tmp_path: Path) -> None:
    """From one end to the other; the second one is measured after training, the third one trained on another task
    before.
    """
    contest = claim.contest(True)
    (label,) = (contestant.label for contestant in contest.contestants if only in contestant.label)
    claim.run(["--quick", f"--output={tmp_path}", f"--only={only}"])
    (made,) = json.loads((tmp_path / f"{claim.__name__.rpartition('.')[2]}.json").read_text())["rows"]
    assert made["label"] == label
    assert set(contest.figures) <= set(made["test"])
    assert [point["step"] for point in made["validation"]][-1] == made["steps"] == contest.steps


def test_resume_makes_only_the_runs_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def train(contest: claims.Contest, contestant: claims.Contestant, seed: int, steps: int) -> claims.Row:
        made.append((contestant.label, seed))
        config = claims.config_of(contest, contestant, seed, steps)
        settings = {"model": contestant.model, "options": dict(contestant.options), "task": config.task.to_dict()}
        return row(contestant.label, seed, steps, accuracy=0.5, exact=0.5) | settings | {"chance": None, "seconds": 1.0}

    monkeypatch.setattr(claims, "train", train)
    begin = ["--resume", f"--output={tmp_path}"]
    selective_copying.run([*begin, "--seeds=0", "--only=s4d"])
    first = list(made)
    selective_copying.run([*begin, "--seeds=0,1"])
    labels = [contestant.label for contestant in selective_copying.contest(False).contestants]
    every = [(label, seed) for label in labels for seed in (0, 1)]
    assert 0 < len(first) < len(every)
    assert sorted(made) == sorted(every)
    written = json.loads((tmp_path / "selective_copying.json").read_text())["rows"]
    assert [(row["label"], row["seed"]) for row in written] == every
    selective_copying.run([*begin, "--seeds=0", "--steps=7", "--only=mamba"])
    assert made[-1] == ("mamba", 0), "a run of other steps is another run"


def row(
    label: str,
    seed: int = 0,
    steps: int = 1,
    parameters: int = 1000,
    curve: tuple[tuple[int, float], ...] = (),
    **test: float,
) -> dict[str, object]:
    points = [{"step": step, "accuracy": value} for step, value in curve]
    return {"label": label, "seed": seed, "steps": steps, "parameters": parameters, "test": test, "validation": points}


def test_selective_copying_is_judged_by_medians() -> None:
    rows = [row("mamba", s, accuracy=a) for s, a in enumerate((0.995, 0.2, 0.999))] + [
        row("s4d", s, accuracy=0.5) for s in range(3)
    ]
    assert selective_copying.verdict(rows)
    assert not selective_copying.verdict([*rows, *[row("s4d, twice as deep", s, accuracy=0.95) for s in range(3)]])
    assert not selective_copying.verdict([*rows[:3], *[row("s4d", s, accuracy=0.95) for s in range(3)]])
    assert not selective_copying.verdict([row("mamba", accuracy=0.98), row("s4d", accuracy=0.1)])


def test_induction_heads_are_judged_by_the_median_at_8192() -> None:
    assert induction_heads.verdict([row("mamba", s, at_8192=a, at_65536=0.5) for s, a in enumerate((0.99, 0.2, 0.96))])
    assert not induction_heads.verdict(
        [row("mamba", s, at_8192=a, at_65536=1.0) for s, a in enumerate((0.99, 0.2, 0.94))]
    )


def test_copying_is_judged_by_size_and_by_the_time_to_learn() -> None:
    small, *_, large = copying.STATES

    def rows(mimetic: int, smallest: float = 0.3, linear: float = 0.4) -> list[dict[str, object]]:
        found = [row(f"transformer, string {length}", accuracy=1.0) for length in copying.LENGTHS]
        for form, accuracy in zip(copying.FORMS, (0.95, linear)):
            found.append(row(f"causal relations, {form}, string {copying.LENGTHS[0]}", accuracy=accuracy))
        for length, accuracies in zip(copying.LENGTHS, ((0.6, 0.99), (smallest, 0.97))):
            for state, accuracy in zip((small, large), accuracies):
                for start, step in (("standard", 900), ("mimetic", mimetic)):
                    found.append(
                        row(
                            f"mamba, state {state}, {start}, string {length}",
                            accuracy=accuracy,
                            curve=((100, 0.1), (step, accuracy)),
                        )
                    )
        return found

    short = copying.LENGTHS[0]
    assert copying.verdict(rows(300))
    assert not copying.verdict(rows(1200)), "the mimetic start is the slower one"
    assert not copying.verdict(rows(300, smallest=0.98)), "the smaller state copies as well"
    assert not copying.verdict(rows(300, linear=0.95)), "the linear form copies as well"
    assert {paper: part(rows(1200, linear=0.95)) for paper, part in copying.PAPER.items()} == {
        124: True, 165: False, 182: False
    }  # fmt: skip
    assert steps_to(rows(300), f"mamba, state {large}, mimetic, string {short}", "accuracy", 0.9) == 300
    assert steps_to(rows(300), f"mamba, state {small}, standard, string {short}", "accuracy", 0.9) == float("inf")


def test_language_models_must_be_of_one_size() -> None:
    assert language_models.verdict([row("a", parameters=1000), row("b", parameters=1019)])
    assert not language_models.verdict([row("a", parameters=1000), row("b", parameters=1021)])


def test_language_models_are_of_one_size() -> None:
    sizes = [
        parameter_count(nnx.eval_shape(lambda name=name, o=options: zoo.create(name, **o)))
        for name, options in language_models.MODELS.values()
    ]
    assert max(sizes) <= 1.02 * min(sizes)


def test_reading_by_state_is_reading_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(induction_heads, "PIECE", 16)
    model = zoo.create(
        "transformer_nano", features=32, depth=2, num_heads=2, vocab_size=16, tied=False, embedding_std=1.0
    )
    tokens = np.random.default_rng(0).integers(0, 16, (24, 70))
    whole = np.asarray(nnx.jit(lambda model, tokens: model(tokens)[:, -1].argmax(-1))(model, jnp.asarray(tokens)))
    assert len(set(whole.tolist())) > 3
    np.testing.assert_array_equal(induction_heads.answers_by_state(model, tokens), whole)


def test_accuracy_by_state_counts_every_example(monkeypatch: pytest.MonkeyPatch) -> None:
    task = {"name": "induction_heads", "length": 32}
    examples = tasks.create(**task, test_length=40, num_eval=11).examples("test")
    special = 15
    # An oracle, wrong for one answer in particular.
    known = {examples.get(i, None)["tokens"].tobytes(): int(examples.get(i, None)["targets"][-1]) for i in range(11)}

    def oracle(model: object, tokens: np.ndarray) -> np.ndarray:
        return np.asarray([special if known[row.tobytes()] == first else known[row.tobytes()] for row in tokens])

    first = next(iter(known.values()))
    monkeypatch.setattr(induction_heads, "answers_by_state", oracle)
    expected = sum(answer != first for answer in known.values()) / 11
    assert 0 < expected < 1
    assert induction_heads.accuracy_by_state(None, task, 40, 11, batch_size=4) == expected


@pytest.mark.parametrize("claim", [long_context, passkey], ids=["long_context", "passkey"])
def test_long_context_models_are_of_one_size(claim: object) -> None:
    sizes = [
        parameter_count(nnx.eval_shape(lambda c=c: zoo.create(c.model, **c.options)))
        for c in claim.contest(False).contestants
    ]
    assert max(sizes) <= 1.02 * min(sizes)


def test_a_step_of_a_model_that_follows_its_tokens_is_measured() -> None:
    contest = long_context.contest(True)
    (routing,) = (contestant for contestant in contest.contestants if contestant.label == "routing")
    task, model = assembly.build(claims.config_of(contest, routing, 0, contest.steps))
    cost = long_context.cost_of_a_step(model, task, batch_size=1)
    assert cost["step_seconds"] > 0
    assert cost["step_mib"] > 0


def test_balanced_membership_is_judged_by_what_causal_reading_costs() -> None:
    def rows(balanced_by_causal: float) -> list[dict[str, object]]:
        return [row("balanced", balanced=1.9, causal=balanced_by_causal), row("causal", balanced=2.2, causal=2.0)]

    assert routing_membership.verdict(rows(2.3))
    assert not routing_membership.verdict(rows(1.8)), "nothing was lost"
    assert not routing_membership.verdict(rows(1.95)), "training causally was no better"


def test_positions_are_judged_by_chance_and_by_equal_tokens() -> None:
    def rows(urpe: float, biases: float, spread: float) -> list[dict[str, object]]:
        known = [row("URPE", accuracy=urpe, spread=3.0), row("learned biases", accuracy=biases, spread=spread)]
        return [*known, row("rotary", accuracy=0.06, spread=0.0)]

    assert position_identification.verdict(rows(0.97, 0.07, 1e-6))
    assert not position_identification.verdict(rows(0.9, 0.07, 1e-6))
    assert not position_identification.verdict(rows(0.97, 0.2, 1e-6))
    assert not position_identification.verdict(rows(0.97, 0.07, 0.1))


def test_length_extrapolation_is_judged_by_what_length_costs() -> None:
    def rows(softmax: float, lssa: float, lssar: float, first: float = 2.2) -> list[dict[str, object]]:
        return [
            row("softmax", at_1x=2.2, at_8x=softmax), row("LSSA", at_1x=2.2, at_8x=lssa),
            row("LSSAR", at_1x=first, at_8x=lssar),
        ]  # fmt: skip

    assert length_extrapolation.verdict(rows(4.0, 3.0, 2.4))
    assert not length_extrapolation.verdict(rows(4.0, 2.3, 2.4))
    assert not length_extrapolation.verdict(rows(2.3, 3.0, 2.4))
    assert not length_extrapolation.verdict(rows(4.0, 3.9, 2.9, 2.4)), "worse where it was trained"


def test_denoising_is_judged_by_the_difference_that_is_left() -> None:
    def rows(*accuracy: float) -> list[dict[str, object]]:
        labels = [f"{mixer}, {how}" for how in ("from scratch", "denoised first") for mixer in ("transformer", "s4d")]
        return [row(label, accuracy=figure) for label, figure in zip(labels, accuracy, strict=True)]

    assert denoising.verdict(rows(0.6, 0.9, 0.85, 0.92))
    assert not denoising.verdict(rows(0.6, 0.9, 0.7, 0.92))
    assert not denoising.verdict(rows(0.6, 0.9, 0.5, 0.45)), "both lost"


def test_addition_is_judged_at_and_beyond_the_training_length() -> None:
    def rows(best: float, usual: float, longer: tuple[float, ...]) -> list[dict[str, object]]:
        known = (best, 0.99, usual, 0.9)
        return [row(label, at_3=at, at_4=n) for label, at, n in zip(addition.FORMATS, known, longer, strict=True)]

    assert addition.verdict(rows(0.97, 0.9, (0.5, 0.0, 0.1, 0.4)))
    assert not addition.verdict(rows(0.97, 0.98, (0.5, 0.0, 0.1, 0.4)))
    assert not addition.verdict(rows(0.97, 0.9, (0.3, 0.0, 0.1, 0.4)))


def test_dynamic_programming_is_judged_by_state_and_length() -> None:
    def rows(small: float, large: float, attention: float) -> list[dict[str, object]]:
        figures = {f"mamba, state {state}": figure for state, figure in ((4, small), (16, small), (64, large))}
        figures["transformer"] = attention
        short = [row(f"{label}, length 8", accuracy=0.95) for label in figures]
        return [*short, *(row(f"{label}, length 20", accuracy=figure) for label, figure in figures.items())]

    assert dynamic_programming.verdict(rows(0.6, 0.7, 0.9))
    assert not dynamic_programming.verdict(rows(0.6, 0.61, 0.9))
    assert not dynamic_programming.verdict(rows(0.6, 0.7, 0.5))


def test_pointing_is_judged_at_more_points() -> None:
    def rows(exact: float, area: float) -> list[dict[str, object]]:
        pointer = row("pointer", accuracy=0.9, exact=exact, area=area, simple=0.5)
        return [pointer, row("fixed dictionary", accuracy=0.4, exact=0.0, area=0.0, simple=0.0)]

    assert pointing.verdict(rows(0.2, 0.495))
    assert not pointing.verdict(rows(0.0, 0.495))
    assert not pointing.verdict(rows(0.2, 0.4))


def test_passkey_is_judged_at_the_training_length() -> None:
    assert passkey.verdict([row("full attention", at_128=0.97), row("window 32", at_128=0.2)])
    assert not passkey.verdict([row("full attention", at_128=0.5), row("window 32", at_128=0.2)])


def test_bits_by_position_add_up_to_the_figure_of_the_split() -> None:
    task = tasks.create("text", dataset={"name": "files", "path": __file__}, sequence_length=32)
    model = zoo.create("transformer_nano", features=16, depth=1, num_heads=2)
    parts = long_context.bits_by_position(model, task, (0, 8, 32), 10_000, batch_size=1)
    assert list(parts) == ["bytes_0_to_8", "bytes_8_to_32"]
    examples = task.examples("test")
    batch = {
        name: np.stack([examples.get(i, None)[name] for i in range(len(examples))])
        for name in ("tokens", "targets", "real", "bytes")
    }
    total, count = task.evaluate(model, {**batch, "weight": np.ones(len(examples), np.float32)})["bits_per_byte"]
    real = batch["real"].sum(0)
    mixed = (parts["bytes_0_to_8"] * real[:8].sum() + parts["bytes_8_to_32"] * real[8:].sum()) / real.sum()
    assert mixed == pytest.approx(float(total / count), rel=1e-4)
