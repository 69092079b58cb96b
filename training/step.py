"""The training step and the evaluation step, both jitted: functions of flat dictionaries of arrays.

The state is ``{"params", "statistics", "optimizer", "ema", "step", "halted"}``; the first two and ``ema`` are flat,
under dotted names. A model in float16 adds ``"loss_scale"``, a stream ``"carry"`` (:mod:`training.streaming`). The
model exists only at trace time. Random keys are not part of the state: each key in the model is derived from (seed,
step, microbatch) and its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from layers.module import AuxLogits, AuxLoss, Module, Sown, collecting
from layers.state import assign, flatten
from suggestions import unknown
from tasks import KeepsRows, Task
from training import precision
from training.optimizer import Optimizer
from training.schedule import Schedule
from training.streaming import Reading

State = dict[str, Any]
Arrays = dict[str, jax.Array]


def _named_key(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


class Skeleton:
    """The structure of a model without its arrays, from which a traced function rebuilds the model with given
    arrays.
    """

    def __init__(self, model: nnx.Module) -> None:
        parts: tuple[Any, ...] = nnx.split(model, nnx.Any(nnx.Param, nnx.BatchStat, nnx.RngState), ...)
        self._graph, emptied, self._constants = parts
        self._emptied = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), emptied)

    def build(self, arrays: Mapping[str, jax.Array], key: jax.Array) -> nnx.Module:
        """The model with ``arrays`` in its parameters and statistics, and its random streams started from ``key``."""
        model = nnx.merge(self._graph, self._emptied, self._constants, copy=True)
        keys = {name: _named_key(key, name) for name in flatten(model, nnx.RngKey)}
        counts = {name: jnp.zeros(count.shape, count.dtype) for name, count in flatten(model, nnx.RngCount).items()}
        assign(model, {**arrays, **keys, **counts})
        return model


def initial_weights(model: nnx.Module, optimizer: Optimizer, ema: float) -> State:
    """``params``, ``statistics`` and ``ema`` of the state before the first step; all except the average share the
    model's arrays.
    """
    params, statistics = flatten(model, nnx.Param), flatten(model, nnx.BatchStat)
    averaged = {**{name: params[name] for name in optimizer.trainable}, **statistics} if ema else {}
    return {
        "params": params,
        "statistics": statistics,
        "ema": {name: jnp.array(value, jnp.float32, copy=True) for name, value in averaged.items()},
    }


def initial_state(model: nnx.Module, optimizer: Optimizer, ema: float) -> State:
    """The state before the first step."""
    state = initial_weights(model, optimizer, ema)
    trained = {name: state["params"][name] for name in optimizer.trainable}
    init = optimizer.transformation(0.0).init
    if all(len(array.sharding.device_set) == 1 for array in trained.values()):
        init = jax.jit(init)  # one program, not one for each shape; arrays of several devices would lose their places
    return {
        **state,
        "optimizer": init(trained),
        "step": jnp.zeros((), jnp.int32),
        "halted": jnp.zeros((), bool),
        **({"loss_scale": precision.first_loss_scale()} if precision.needs_loss_scale(model) else {}),
    }


def weights(state: Mapping[str, Any], averaged: bool) -> Arrays:
    """Parameters and statistics to evaluate with: those of the exponential moving average where it is requested and
    kept.
    """
    raw = {**state["params"], **state["statistics"]}
    return {**raw, **{name: value.astype(raw[name].dtype) for name, value in state["ema"].items()}} if averaged else raw


class _Reporting:
    """A model as a task sees it in training: it also returns the logits that its modules sowed.

    ``reading`` is what is called: the model itself, or in a stream its :class:`training.streaming.Reading`.
    """

    def __init__(self, model: Any, sown: Sown, reading: Any):
        self._model, self._sown, self._reading = model, sown, reading

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._reading(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def aux_logits(self) -> dict[str, jax.Array]:
        """The sown logits by name."""
        return {path.rsplit(".", 1)[-1]: logits for path, logits in self._sown.named(self._model, AuxLogits).items()}


def auxiliary(
    model: nnx.Module, sown: Mapping[str, Any], factors: Mapping[str, float]
) -> tuple[Arrays, dict[str, float]]:
    """The sums of the sown auxiliary losses by name, and their weights: those in ``factors``, else the modules' own.

    Raises:
      ValueError: a weight for a loss that no module sows, or a sown loss without a weight.
    """
    own = {
        name: weight
        for _, module in nnx.iter_modules(model)
        if isinstance(module, Module)
        for name, weight in module.aux_losses.items()
    }
    sums: Arrays = {}
    for path, value in sown.items():
        name = path.rsplit(".", 1)[-1]
        sums[name] = sums.get(name, jnp.zeros((), jnp.float32)) + sum(jnp.sum(v) for v in jax.tree.leaves(value))
    for name in factors:
        if name not in sums:
            raise ValueError(f"aux_losses: {unknown('auxiliary loss', name, sums)}")
    for name in sums:
        if name not in factors and name not in own:
            raise ValueError(
                f"the model reports the auxiliary loss {name!r}, which has no weight: set "
                f"aux_losses={{{name!r}: ...}}, 0 to leave it out"
            )
    return sums, {name: factors.get(name, own.get(name, 0.0)) for name in sums}


def make_step(
    skeleton: Skeleton,
    task: Task,
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    seed: int,
    accumulate: int,
    ema: float,
    aux_losses: Mapping[str, float],
    sticky: bool,
) -> Callable[[State, Arrays], tuple[State, dict[str, Any]]]:
    """Returns ``step(state, batch) -> (state, report)``.

    ``batch`` leaves are (accumulate, rows, ...), as are those of the state's ``"carry"``, where there is one; the batch
    then marks in "start" the rows at the start of a lane. ``report`` has ``pairs`` (the task's metrics as (sum,
    count)), ``learning_rate``, ``gradient_norm``, ``squares`` (the sum of squared gradients of each trainable
    parameter, in the order of ``optimizer.trainable``), ``kept`` (whether the state was updated) and, with a loss
    scale, ``loss_scale`` and ``overflow`` (whether only a gradient overflow under the scale prevented the update).

    A step whose loss or gradient is not finite leaves parameters, statistics, optimizer state and averages unchanged.
    If ``sticky``, all later steps do too, and the step count stops; otherwise the step count still advances. A gradient
    that overflows in float16 under a loss scale above 1 halves the scale and does not stop the run.
    """

    def microbatch(
        trained: Arrays, frozen: Arrays, statistics: Arrays, batch: Arrays, key: jax.Array, scale: jax.Array, carry: Any
    ) -> tuple[jax.Array, Arrays, Arrays, Any, Any]:
        def loss(trained: Arrays) -> tuple[jax.Array, tuple[Arrays, Any, jax.Array, Any]]:
            model = skeleton.build({**frozen, **trained, **statistics}, key)
            model.train()
            _still(model, frozen)
            reading: Any = model if carry is None else Reading(model, carry, batch["start"])
            with collecting(AuxLoss, AuxLogits) as sown:
                value, pairs = task.loss(_Reporting(model, sown, reading), batch, _named_key(key, "task"))
            count = jnp.asarray(pairs["loss"][1], jnp.float32)
            extra, factors = auxiliary(model, sown.named(model, AuxLoss), aux_losses)
            for name, term in extra.items():
                value = value + factors[name] * term
            pairs = {**pairs, **{name: (term * count, count) for name, term in extra.items()}}
            after = None if carry is None else reading.after
            return value * scale, (flatten(model, nnx.BatchStat), pairs, value * count, after)

        # The gradient of a mean stays in the range of float16 for any number of tokens. It is multiplied by their
        # count, so that microbatches with unequal counts add up correctly, only in float32.
        (_, (statistics, pairs, value, after)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        factor = jnp.asarray(pairs["loss"][1], jnp.float32) / scale
        return value, jax.tree.map(lambda g: g.astype(jnp.float32) * factor, gradients), statistics, pairs, after

    def step(state: State, batch: Arrays) -> tuple[State, dict[str, Any]]:
        rate = schedule(state["step"])
        trained = {name: state["params"][name] for name in optimizer.trainable}
        frozen = {name: value for name, value in state["params"].items() if name not in trained}
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        loss_scale = state.get("loss_scale")
        scale = jnp.float32(1) if loss_scale is None else loss_scale["value"]

        def accumulated(
            sums: tuple[Arrays, Arrays], part: tuple[jax.Array, Arrays, Any]
        ) -> tuple[tuple[Arrays, Arrays], Any]:
            number, rows, before = part
            total, statistics = sums
            value, gradients, statistics, pairs, after = microbatch(
                trained, frozen, statistics, rows, jax.random.fold_in(key, number), scale, before
            )
            return (jax.tree.map(jnp.add, total, gradients), statistics), (value, pairs, after)

        carry = state.get("carry")
        if accumulate == 1:
            value, gradients, statistics, pairs, after = microbatch(
                trained,
                frozen,
                state["statistics"],
                {name: rows[0] for name, rows in batch.items()},
                jax.random.fold_in(key, 0),
                scale,
                jax.tree.map(lambda leaf: leaf[0], carry),
            )
            after = jax.tree.map(lambda leaf: leaf[None], after)
        else:
            sums = (jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), trained), state["statistics"])
            (gradients, statistics), (values, parts, after) = jax.lax.scan(
                accumulated, sums, (jnp.arange(accumulate), batch, carry)
            )
            value, pairs = jax.tree.map(lambda x: jnp.sum(x, 0), (values, parts))

        total = jnp.maximum(pairs["loss"][1], 1e-9)
        gradients = jax.tree.map(lambda g: g / total, gradients)
        squares = jnp.stack([jnp.sum(jnp.square(gradients[name])) for name in optimizer.trainable])
        norm = jnp.sqrt(jnp.sum(squares))
        kept = jnp.isfinite(value) & jnp.isfinite(norm) & ~state["halted"]
        overflow = jnp.isfinite(value) & ~jnp.isfinite(norm) & (scale > 1)

        updates, moments = optimizer.transformation(rate).update(gradients, state["optimizer"], trained)
        trained = optax.apply_updates(trained, updates)
        new = {
            "params": {name: trained.get(name, value) for name, value in state["params"].items()},
            "statistics": statistics,
            "optimizer": moments,
            "ema": _averaged(state["ema"], {**trained, **statistics}, state["step"], ema),
            **({} if carry is None else {"carry": after}),
        }
        moved = jax.tree.map(lambda a, b: jnp.where(kept, a, b), new, {name: state[name] for name in new})
        halted = state["halted"] | (~kept & ~overflow if sticky else False)
        moved |= {"step": state["step"] + jnp.where(halted, 0, 1).astype(jnp.int32), "halted": halted}
        report = {"pairs": pairs, "learning_rate": rate, "gradient_norm": norm, "squares": squares, "kept": kept}
        if loss_scale is not None:
            moved["loss_scale"] = jax.tree.map(
                lambda a, b: jnp.where(halted, b, a), precision.next_loss_scale(loss_scale, overflow), loss_scale
            )
            report |= {"overflow": overflow & ~halted, "loss_scale": scale}
        return moved, report

    return step


def _still(model: nnx.Module, frozen: Mapping[str, Any]) -> None:
    """Puts modules that keep statistics and whose parameters are all frozen into evaluation mode, where the statistics
    are not updated.
    """
    if not frozen:
        return
    names = list(flatten(model, nnx.Param))
    for path, module in nnx.iter_modules(model):
        if any(isinstance(value, nnx.BatchStat) for value in vars(module).values()):
            prefix = "".join(f"{part}." for part in path)
            own = [name for name in names if name.startswith(prefix)]
            if own and all(name in frozen for name in own):
                module.eval()


def _averaged(ema: Arrays, new: Arrays, step: jax.Array, decay: float) -> Arrays:
    """The exponential moving average after a step, with a smaller decay at first, so that the initial weights are soon
    forgotten.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return {name: kept * old + (1 - kept) * new[name].astype(jnp.float32) for name, old in ema.items()}


def make_evaluation(skeleton: Skeleton, task: Task) -> Callable[..., Any]:
    """Returns ``evaluate(arrays, batch, carry) -> ((pairs, weight, rows), carry)``; ``batch`` leaves are (rows, ...),
    with "weight" (rows,), which is 0 for rows that only fill a batch. The carry is None except in a stream.
    """

    def evaluate(arrays: Arrays, batch: Arrays, carry: Any = None) -> Any:
        model = skeleton.build(arrays, jax.random.key(0))
        model.eval()
        reading: Any = model if carry is None else Reading(model, carry, batch["start"])
        pairs, rows = (
            task.evaluate_rows(reading, batch) if isinstance(task, KeepsRows) else (task.evaluate(reading, batch), {})
        )
        return (pairs, batch["weight"], rows), None if carry is None else reading.after

    return evaluate
