"""How many examples of a training step fit in the memory of a device, for every published model, counted by tracing:
``python -m benchmarks.step_memory`` writes benchmarks/results/counted/step_memory.json after each model and continues
with those that are missing or failed; ``--again`` counts those of ``--only`` once more.

Nothing is computed, and no parameter is allocated. The step is that of train.py with everything in float32: AdamW,
cross entropy, no rematerialization (``remat="nothing"``), no average of the weights. Images have the size of the model;
a text has as many tokens as the model has positions, 2,048 where it has no limit, and so has each side of an
encoder-decoder. Ops have the form that they take on a CPU; kernels on other devices keep less.

Memory is the estimate of :func:`training.memory.needed`. Where two steps have the same operations, the memory at each
point of the program grows linearly with the number of examples, so two traced steps predict how many fit. A number
between two such steps is taken as it is. A step beyond them is traced too; where its need differs from the prediction,
because a layer has another form for more rows, the prediction is repeated with it.

``--compile=MODEL,...`` compiles steps on this device with as many examples as fit 8 GiB by that count, and records the
compiler's figure beside the estimate. That needs no more memory than compilation does.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

    from zoo.registry import Variant

HOME = Path(__file__).resolve().parents[1]
RESULTS = HOME / "benchmarks" / "results" / "counted" / "step_memory.json"
GIB = 1 << 30
DEVICES = (8, 24, 80)
FIRST = 4
TRIES = 6
"""How often a prediction is repeated."""
TOKENS = 2048
FARTHEST = 16
"""How many times more examples than any traced step a prediction may have."""
MOST = 1 << 20
"""Examples that are not exceeded in a search."""


class Entropy:
    """The mean cross entropy of a model's logits, as tasks of images and of text have it."""

    def loss(self, model: Any, batch: Any, rngs: Any) -> tuple[jax.Array, Any]:
        import jax
        import jax.numpy as jnp

        del rngs
        inputs = list(batch.values())
        more = {"tokens2": inputs.pop()} if _compares(model.config) else {}
        logits = model(*inputs, **more).astype(jnp.float32)
        own = jnp.take_along_axis(logits, jnp.zeros((*logits.shape[:-1], 1), jnp.int32), -1)
        losses = jax.nn.logsumexp(logits, -1, keepdims=True) - own
        return losses.mean(), {"loss": (losses.sum(), jnp.float32(losses.size))}


def _compares(config: Any) -> bool:
    """Whether a model compares two sequences."""
    return getattr(config, "head", None) == "dual"


def example(entry: Variant, model: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and types of what a model reads of one example."""
    from zoo.backbones.encoder_decoder import EncoderDecoder

    config: Any = entry.config
    if hasattr(config, "image_size"):
        return [((config.image_size, config.image_size, config.in_channels), "float32")]
    multiple = math.lcm(getattr(model, "segment_multiple", 1), getattr(config, "ratio", 1))
    length = getattr(config, "max_length", TOKENS) // multiple * multiple
    if not hasattr(config, "vocab_size"):
        return [((length, config.in_features), "float32")]
    return [((length,), "int32")] * (2 if isinstance(model, EncoderDecoder) or _compares(config) else 1)


class Step:
    """The training step of a model of shapes.

    Attributes:
      state: shapes of the arrays that a step takes and returns.
      example: as :func:`example`.
    """

    def __init__(self, entry: Variant):
        import jax
        import jax.numpy as jnp
        import numpy as np
        from flax import nnx

        from layers.state import flatten
        from training import optimizer as optimizers
        from training.step import Skeleton, make_step
        from zoo.creation import create_abstract

        model = create_abstract(entry.name)
        for _, variable in nnx.iter_graph(model):
            kept = nnx.Param | nnx.BatchStat | nnx.RngState
            if isinstance(variable, nnx.Variable) and not isinstance(variable, kept):
                zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable.get_value())
                variable.set_value(zeros)  # constants, which are part of the program
        params = flatten(model, nnx.Param)
        optimizer = optimizers.create(model, params, {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05})
        trained = {name: params[name] for name in optimizer.trainable}
        self.example = example(entry, model)
        self.state = {
            "params": params,
            "statistics": flatten(model, nnx.BatchStat),
            "ema": {},
            "optimizer": jax.eval_shape(optimizer.transformation(0.0).init, trained),
            "step": jax.ShapeDtypeStruct((), jnp.int32),
            "halted": jax.ShapeDtypeStruct((), bool),
        }
        self._step = make_step(
            Skeleton(model), Entropy(), optimizer, lambda step: jnp.float32(1e-3), seed=0, accumulate=1, ema=0.0,
            aux_losses={}, sticky=True,
        )  # fmt: skip

    def trace(self, examples: int) -> tuple[Any, Any]:
        """The step of so many examples, traced, and the shapes of its arguments."""
        import jax

        batch = {
            f"input {number}": jax.ShapeDtypeStruct((1, examples, *shape), dtype)
            for number, (shape, dtype) in enumerate(self.example)
        }
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), (self.state, batch)
        )
        return jax.jit(self._step, donate_argnums=0).trace(*arguments), arguments

    def needed(self, examples: int) -> int:
        """Bytes of a step of so many examples."""
        from training import memory

        traced, arguments = self.trace(examples)
        return memory.needed(traced.jaxpr, arguments, 1)


def size(tree: Any) -> int:
    """Bytes of the arrays of a tree."""
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def count(name: str) -> dict[str, Any]:
    """The row of a model."""
    from zoo.registry import variant

    since = time.process_time()
    step = Step(variant(name))
    state, gradients = size(step.state), size(step.state["params"])
    row: dict[str, Any] = {"example": [list(shape) for shape, _ in step.example], "state_bytes": state}
    if state + gradients > DEVICES[-1] * GIB:
        return {**row, "state_and_gradients_bytes": state + gradients, "fits": [0] * len(DEVICES)}
    known = _Known(step)
    # The outer two first, which are traced, then those between them.
    fits = {limit: known.most(limit * GIB) for limit in (DEVICES[0], DEVICES[-1], *DEVICES[1:-1])}
    traced = {str(examples): max(live) for examples, live in sorted(known.traced.items())}
    return {
        **row,
        "traced_bytes": traced,
        "fits": [fits[limit] for limit in DEVICES],
        "cpu_seconds": round(time.process_time() - since, 1),
    }


class _Known:
    """The steps of a model that were traced.

    Attributes:
      traced: by number of examples, the bytes that live at each moment.
    """

    def __init__(self, step: Step):
        self._step = step
        self.traced: dict[int, list[int]] = {}
        state = size(step.state)
        self.trace(1)
        self.trace(FIRST)
        about = int(FIRST * (DEVICES[0] * GIB - state) / (max(self.traced[FIRST]) - state))
        self.trace(max(about, 2 * FIRST))

    def trace(self, examples: int) -> None:
        """Traces a step of so many examples."""
        from primitives.memory import moments

        program, arguments = self._step.trace(examples)
        held = size(arguments)
        self.traced[examples] = [held + live for live in moments(program.jaxpr)]

    def most(self, limit: int) -> int:
        """The most examples whose step fits: traced, or between two traced steps with the same operations; 0 where not
        even one fits.
        """
        if max(self.traced[1]) > limit:
            return 0
        near = min(self.traced, key=lambda n: abs(max(self.traced[n]) - limit))
        for _ in range(TRIES):
            needed = self._line(near)
            near = max(1, min(most(lambda n, needed=needed: needed(n) <= limit), FARTHEST * max(self.traced)))
            live = self.traced.get(near)
            if max(live) <= limit if live else self._between(near):
                return near
            self.trace(near)
        return max(n for n, live in self.traced.items() if max(live) <= limit)

    def _between(self, examples: int) -> bool:
        """Whether the nearest traced steps of fewer and of more examples have the same operations."""
        fewer = [n for n in self.traced if n < examples]
        more = [n for n in self.traced if n > examples]
        return bool(fewer and more) and len(self.traced[max(fewer)]) == len(self.traced[min(more)])

    def _line(self, near: int) -> Callable[[int], float]:
        """The bytes of a step by its examples, from two traced ones near to ``near``: of those with the same
        operations if there are."""
        order = sorted(self.traced, key=lambda n: abs(n - near))
        alike = [n for n in order[1:] if len(self.traced[n]) == len(self.traced[order[0]])]
        first, second = order[0], (alike or order[1:])[0]
        a, b = (self.traced[n] if alike else [max(self.traced[n])] for n in (first, second))
        grow = [(y - x) / (second - first) for x, y in zip(a, b, strict=True)]
        return lambda n: max(x + slope * (n - first) for x, slope in zip(a, grow, strict=True))


def most(fits: Any) -> int:
    """The greatest number of examples for which ``fits`` holds, which holds for all smaller ones."""
    low, high = 0, 1
    while high < MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def compiled(name: str, examples: int) -> dict[str, Any]:
    """What the compiler says of a step of so many examples, and the estimate."""
    import jax

    from training import memory
    from zoo.registry import variant

    traced, arguments = Step(variant(name)).trace(examples)
    estimate = memory.needed(traced.jaxpr, arguments, 1)
    said = traced.lower().compile().memory_analysis()
    real = said.argument_size_in_bytes + said.temp_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    device = jax.devices()[0].device_kind
    return {
        "examples": examples, "estimated_bytes": estimate, "compiled_bytes": real, "ratio": round(estimate / real, 2),
        "device": device, "jax": jax.__version__,
    }  # fmt: skip


def published() -> list[str]:
    """The models whose sizes are published: the one with the shortest name of each family, then the second, ..."""
    import zoo
    from zoo.registry import variant

    places: dict[str, tuple[int, str]] = {}
    members: dict[str, int] = {}
    for name in sorted(zoo.list_models(), key=lambda name: (len(name), name)):
        if variant(name).published:
            place = members[variant(name).family] = members.get(variant(name).family, -1) + 1
            places[name] = place, variant(name).family
    return sorted(places, key=places.__getitem__)


def names(text: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def main(given: Sequence[str] | None = None) -> None:
    """Counts, and writes the file after each model."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=names, help="models, commas between; default all that are published")
    parser.add_argument("--again", action="store_true", help="also models that the file has")
    parser.add_argument("--compile", type=names, default=[], help="models that are compiled too")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(given)
    import jax

    from primitives.garbage import none_collected

    wanted = published() if args.only is None else args.only
    if unknown := sorted({*wanted, *args.compile} - set(published())):
        parser.error(f"no published model is {', '.join(unknown)}: zoo.list_models() lists all")
    report: dict[str, Any] = {"models": {}, "compiled": {}}
    if args.output.exists():
        report = json.loads(args.output.read_text())
    report |= {"gib": DEVICES, "jax": jax.__version__}

    def write() -> None:
        parts = {part: report[part] for part in ("gib", "jax")}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in parts.items()]
        for part in ("compiled", "models"):  # a line each
            rows = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(report[part].items())]
            lines.append(f' "{part}": {{\n' + ",\n".join(rows) + "\n }")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    for name in wanted:
        if args.again or "fits" not in report["models"].get(name, ()):
            try:
                with none_collected():  # a third of the time of tracing
                    report["models"][name] = count(name)
            except Exception as error:  # a model that fails is a row that says so
                report["models"][name] = {"fault": f"{type(error).__name__}: {error}"}
            write()
            print(name, json.dumps(report["models"][name]), flush=True)
            jax.clear_caches()  # nothing of a model is wanted for the next
            gc.collect()
    for name in args.compile:
        if examples := report["models"][name]["fits"][0]:
            report["compiled"][name] = compiled(name, examples)
            write()
            print(name, json.dumps(report["compiled"][name]), flush=True)


if __name__ == "__main__":
    main()
