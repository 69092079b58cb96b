"""The training loop: every task, every model, one device or many.

A run is a function of its config, and its position is the step: stopping it anywhere and running the same command again
gives, bit for bit, the result of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from layers.state import assign, flatten
from tasks import Describes, Explains, Streams, Task
from training import curve, memory, metrics, schedule, sharding, streaming
from training import optimizer as optimizers
from training.checkpoint import Best, Checkpoints
from training.duration import Clock
from training.evaluation import IN_FLIGHT, Evaluator, held_out
from training.input import train_batches
from training.logging import Log, duration, number, peak_memory, table
from training.processes import any_of, leads
from training.sampling import WritesText
from training.step import Skeleton, State, initial_state, make_step, weights
from training.workdir import locked, open_workdir, plain, write_json

EXPLAINED = "classes.json"
"""The file with the details of the final figures: for image classification, the accuracy of each class and the most
confused pairs.
"""


class NonFiniteError(ValueError):
    """The loss or a gradient was not finite; the message names the step, the learning rate and the parameters."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      step: steps done; fewer than requested if the run was stopped.
      total: steps requested.
      figures: the figures on the held-out split, by the kind of final weights: "raw" and, where an average is kept,
        "ema".
      best: the best validation figure and its step, if any.
      seconds: wall time of this call.
      early: whether ``config.patience`` ended the run.
    """

    step: int
    total: int
    figures: dict[str, dict[str, float]]
    best: Best | None
    seconds: float
    early: bool = False

    @property
    def finished(self) -> bool:
        return self.early or self.step >= self.total


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM or Ctrl-C asked for a stop; only the main thread can receive
    these signals.

    A second Ctrl-C stops at once, without saving.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Window:
    """The reports of the steps since the last record, kept on the device until they are read."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self.reports: list[dict[str, Any]] = []
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Restarts the clock, so that evaluation and compilation do not count as step time."""
        self._since = time.perf_counter()

    def add(self, report: dict[str, Any]) -> None:
        self.reports.append(report)
        jax.block_until_ready(self.reports[-IN_FLIGHT:][0]["kept"])

    def close(self, first: int, batch_size: int) -> tuple[dict[str, float], list[str]]:
        """The figures of the window, whose first step is ``first``, and a line on each step that was not finite."""
        reports = jax.device_get(self.reports)
        seconds = time.perf_counter() - self._since
        good = [r for r in reports if r["kept"]]
        figures = metrics.figures(r["pairs"] for r in good or reports[:1])
        figures |= {
            "learning_rate": float(reports[-1]["learning_rate"]),
            "gradient_norm": float(np.mean([r["gradient_norm"] for r in good])) if good else math.nan,
            "step_seconds": seconds / len(reports),
            "examples_per_second": batch_size * len(reports) / seconds,
            "peak_memory_mib": peak_memory(),
        }
        if "loss_scale" in reports[-1]:
            figures["loss_scale"] = float(reports[-1]["loss_scale"])
        faults = [
            self._fault(first + number, r)
            for number, r in enumerate(reports)
            if not (r["kept"] or r.get("overflow", False))
        ]
        self.reports = []
        return figures, faults

    def _fault(self, step: int, report: dict[str, Any]) -> str:
        groups: dict[str, int] = {}
        for name in np.asarray(self._names)[~np.isfinite(report["squares"])]:
            group = ".".join(name.split(".")[:-1]) or name
            groups[group] = groups.get(group, 0) + 1
        listed = list(groups)
        shown = ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
        what = f"gradients of {shown}" if groups else "the loss"
        return f"step {step + 1}, learning rate {float(report['learning_rate']):.3g}: {what} not finite"


def train(
    config: ConfigDict,
    model: nnx.Module,
    task: Task,
    workdir: Path,
    *,
    extend: bool = False,
    record: Mapping[str, Any] | None = None,
) -> Result:
    """Trains ``model`` on ``task``, resuming from the state of ``workdir``.

    Args:
      config: the whole config of the run; configs/common.py explains its fields.
      model: newly made; its arrays are donated to the run, and afterward it holds the final weights (the averaged ones,
        where kept).
      task: the task to train on.
      workdir: the working directory; created if it does not exist.
      extend: allow durations other than those the run began with.
      record: what is stored about the model so that it can be used without the data (:func:`training.assembly.record`).

    Raises:
      ValueError: an unsupported config field, a config that differs from the directory's, or a directory in use.
      NonFiniteError: a loss or gradient is not finite and ``config.nonfinite`` is "stop"; the last finite state is
        saved first.
      OSError: the directory can't be written.
    """
    started = time.perf_counter()
    examples = task.examples("train")
    size = config.batch_size
    if not len(examples):
        raise ValueError("the split to train on is empty")
    if config.nonfinite not in ("stop", "skip"):
        raise ValueError(f'nonfinite={config.nonfinite!r}: "stop" or "skip"')
    mesh = sharding.create_mesh(config.mesh)
    sharding.check_batch(mesh, size, config.accumulate)
    if isinstance(examples, Streams) and mesh.shape["sequence"] > 1:
        raise ValueError('order="stream" reads the tokens of a row one after another: leave mesh.sequence at 1')
    clock = Clock(size, len(examples))
    total = clock.steps(config.train_for, "train_for")
    eval_every, save_every = (
        clock.examples(config.eval_every, "eval_every"),
        clock.examples(config.save_every, "save_every"),
    )
    log_every, patience = max(int(config.log_every), 1), int(config.patience)
    if patience and not (eval_every and "validation" in task.splits):
        raise ValueError(
            f"patience={patience} counts evaluations of the validation split: set eval_every, and use data with such a "
            f"split"
        )
    plan = config.schedule
    optimizer = optimizers.create(model, flatten(model, nnx.Param), config.optimizer)
    rates = schedule.create(plan.name, optimizer.peak, total, clock.steps(plan.warmup, "schedule.warmup"), plan.final)
    with contextlib.ExitStack() as held:
        held.enter_context(locked(workdir, lambda text: print(text, file=sys.stderr)))
        tokenizer = getattr(getattr(task, "tokenizer", None), "content", b"")
        open_workdir(workdir, config, extend=extend, record=record, tokenizer=tokenizer)
        checkpoints = Checkpoints(workdir, config.keep)

        skeleton = Skeleton(model)
        state = initial_state(model, optimizer, config.ema)
        if isinstance(examples, Streams):
            state["carry"] = streaming.empty(lambda: model, size // config.accumulate, config.accumulate)
        places = sharding.of_tree(mesh, state, sharding.rules_of(model))
        state = sharding.place(state, places)
        step_function = make_step(
            skeleton, task, optimizer, rates, seed=config.seed, accumulate=config.accumulate, ema=config.ema,
            aux_losses=dict(config.aux_losses), sticky=config.nonfinite == "stop",
        )  # fmt: skip
        evaluate = Evaluator(skeleton, task, mesh, size, config.workers)
        restored = checkpoints.restore(state)
        state, step = restored or (state, 0)
        state = sharding.place(state, places)
        best = checkpoints.best()

        def is_enough() -> bool:
            """Whether the last ``patience`` evaluations brought no better figure."""
            waited = (
                clock.times(step, eval_every) - clock.times(best.step if best else 0, eval_every) if patience else 0
            )
            return patience > 0 and waited >= patience

        early = is_enough()
        steps = range(step, step if early else total)
        if config.profile and config.profile + UNTRACED > len(steps):
            raise ValueError(
                f"profile={config.profile} traces that many steps after the first {UNTRACED}, and {len(steps)} are "
                f"left: ask for at most {max(len(steps) - UNTRACED, 0)}, or lengthen train_for"
            )
        count = sum(leaf.size for leaf in state["params"].values())
        trained = sum(state["params"][name].size for name in optimizer.trainable)
        data = task.describe("train") if isinstance(task, Describes) else f"{len(examples):,} examples"
        with jax.set_mesh(mesh), Log(workdir, plain(config), step, total) as log, _stop_requests() as told_to_stop:
            log.say(f"workdir {workdir}")
            devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            log.say(
                f"{config.model} on {devices}: {trained:,} of {count:,} parameters trained, {data}, {total:,} steps of "
                f"{size}"
            )
            if len(examples) < size:
                log.say(f"fewer examples ({len(examples):,}) than a batch has ({size:,}): each step repeats some")
            if restored:
                log.say(f"resuming from step {step} of {total}")
            window, first, compiled = _Window(optimizer.trainable), step, None
            trace = _Trace(workdir / "profile", config.profile)
            batches = train_batches(
                examples, steps, size, seed=config.seed, accumulate=config.accumulate, workers=config.workers
            )
            with contextlib.closing(batches), trace:
                for number, batch in batches:
                    placed = sharding.place_batch(mesh, batch, leading=1)
                    if compiled is None:
                        traced = jax.jit(
                            step_function, donate_argnums=0, out_shardings=(places, sharding.of_state(mesh))
                        ).trace(state, placed)
                        log.say(
                            memory.report(
                                memory.needed(traced.jaxpr, (state, placed), sharding.row_parts(mesh)),
                                memory.available(),
                                config,
                            )
                        )
                        log.say("compiling ...")
                        since = time.perf_counter()
                        compiled = traced.lower().compile()
                        seconds = time.perf_counter() - since
                        log.say(f"compiled in {duration(seconds)}")
                        log.write(step, "compile", {"seconds": seconds})
                        log.unpause()
                        window.restart()
                    state, report = compiled(state, placed)
                    window.add(report)
                    step = number + 1
                    log.progress(step)
                    trace.step(state)
                    evaluating = clock.due(step, eval_every) and "validation" in task.splits
                    closing = step - first >= log_every
                    # All processes must stop at the same step, so they exchange their flags, but only every log_every
                    # steps.
                    stopping = told_to_stop() if jax.process_count() == 1 else closing and any_of(told_to_stop())
                    saving = clock.due(step, save_every) or step == total or stopping
                    if closing or evaluating or saving:
                        checkpoints.check()
                        figures, faults = window.close(first, size)
                        first = step
                        if faults and config.nonfinite == "stop":
                            _stop(checkpoints, state, faults[0])
                        for fault in faults:
                            log.say(f"skipped {fault}")
                        figures |= {"epoch": step * size / len(examples)} | ({"skipped": len(faults)} if faults else {})
                        log.write(step, "train", figures)
                        shown = {
                            name: figures[name] for name in dict.fromkeys(("loss", task.monitor)) if name in figures
                        }
                        log.progress(
                            step, {"epoch": figures["epoch"], **shown, "examples/s": figures["examples_per_second"]}
                        )
                        if evaluating:
                            figures = evaluate(weights(state, averaged=True), "validation").figures
                            log.write(step, "validation", figures)
                            log.say(f"step {step}: validation " + _listed(figures))
                            best = _better(best, step, figures, task, checkpoints, state)
                            early = is_enough()
                        if saving or early:
                            checkpoints.save(state, step)
                        if stopping or early:
                            break
                        window.restart()
            checkpoints.close()
            figures_of: dict[str, dict[str, float]] = {}
            if step >= total or early:
                split = held_out(task)
                for name in ("ema", "raw") if config.ema else ("raw",):
                    done = evaluate(weights(state, averaged=name == "ema"), split)
                    figures_of[name] = done.figures
                    log.write(step, f"{split}_{name}", done.figures)
                    if isinstance(task, Explains) and name == ("ema" if config.ema else "raw") and leads():
                        write_json(
                            workdir / EXPLAINED,
                            {"split": split, "step": step, "weights": name, **task.explain(done.rows)},
                        )
        assign(model, weights(state, averaged=True))
        return Result(step, total, figures_of, best, time.perf_counter() - started, early)


def _stop(checkpoints: Checkpoints, state: State, fault: str) -> None:
    """Saves the state, which is that of the last finite step, and raises NonFiniteError."""
    finite = int(state["step"])
    if finite:
        checkpoints.save(state, finite)
    checkpoints.close()
    raise NonFiniteError(
        f"{fault}. The state after step {finite} is kept. Lower optimizer.learning_rate, lengthen schedule.warmup or "
        f"set optimizer.clip_norm "
        f"for a new run, or skip such steps with --config.nonfinite=skip"
    )


def _better(
    best: Best | None, step: int, figures: dict[str, float], task: Task, checkpoints: Checkpoints, state: State
) -> Best | None:
    """Saves the weights if their validation figure is the best so far; returns the best one.

    Raises:
      ValueError: the evaluation does not report the task's ``monitor``.
    """
    if task.monitor not in figures:
        raise ValueError(
            f"the task monitors {task.monitor!r}, which its evaluation does not report: it reports {', '.join(figures)}"
        )
    value = figures[task.monitor]
    sign = 1 if task.higher_is_better else -1
    if math.isnan(value) or (best is not None and sign * value <= sign * best.value):
        return best
    checkpoints.save_best(state, step, value)
    return Best(step, value)


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in figures.items())


def summary(result: Result, task: Task, workdir: Path) -> str:
    """The table that is printed at the end of a run."""
    split = held_out(task)
    rows = [(f"{split} ({name} weights)", _listed(figures)) for name, figures in result.figures.items()]
    if result.best:
        rows.append((f"best validation {task.monitor}", f"{number(result.best.value)} at step {result.best.step}"))
    if getattr(task, "report", ""):
        rows.append(("data", task.report))  # type: ignore[attr-defined]
    steps = f"{result.step:,}" + (
        f" of {result.total:,}: the last evaluations brought no better {task.monitor}" if result.early else ""
    )
    rows += [("steps", steps), ("time", duration(result.seconds)), ("workdir", str(workdir))]
    kept = {EXPLAINED: "each class", curve.FILE: "curve"}
    return table([*rows, *((what, str(workdir / name)) for name, what in kept.items() if (workdir / name).is_file())])


def following(task: Task, workdir: Path, result: Result) -> list[str]:
    """Commands to use a finished run; they take the best weights where those are not the last."""
    folder, best = shlex.quote(str(workdir)), result.best is not None and result.best.step != result.step
    lines = [f"python eval.py --workdir={folder}" + (" --checkpoint=best" if best else "")]
    if isinstance(task, WritesText):
        lines.append(f'python generate.py --workdir={folder} --prompt="..."' + (" --checkpoint=best" if best else ""))
    elif getattr(task, "tokenizer", None) is not None:
        lines.append(f'python generate.py --workdir={folder} --source="..."' + (" --checkpoint=best" if best else ""))
    elif getattr(task, "preprocess", None):
        lines.append(f"python predict.py --weights={folder}{'/best' if best else ''} IMAGE...")
    return [*lines, f"tensorboard --logdir={folder}/tensorboard"]


UNTRACED = 2
"""Steps before a trace starts: the first one compiles, and the second may still wait for that."""


class _Trace:
    """Writes a profiler trace of ``steps`` steps, after the first ``UNTRACED``."""

    def __init__(self, directory: Path, steps: int) -> None:
        self._directory, self._last, self._count, self._open = directory, steps + UNTRACED if steps else 0, 0, False

    def __enter__(self) -> _Trace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            jax.profiler.stop_trace()

    def step(self, state: State) -> None:
        """Called after each step."""
        if self._count >= self._last:
            return
        self._count += 1
        if self._count == UNTRACED:
            jax.profiler.start_trace(str(self._directory))
            self._open = True
        elif self._count == self._last:
            jax.block_until_ready(state["step"])
            jax.profiler.stop_trace()
            self._open = False
