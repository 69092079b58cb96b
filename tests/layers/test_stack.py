"""A stack as a loop, scanned, and with rematerialization: the same values, gradients, statistics and randomness."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import MLP, Block, Branch, Place, Stack, Statistic, drop_path_rates, flatten, making
from layers.state import flatten_state
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

FEATURES = 8
FORMS: dict[str, dict[str, Any]] = {
    "loop": {},
    "scan": {"scan": True},
    "remat": {"remat": True},
    "scan+remat": {"scan": True, "remat": "block"},
    "scan+dots": {"scan": True, "remat": "dots"},
    "scan+offload": {"scan": True, "remat": "offload"},
}
CAPTURED = (3, -1)  # the outputs of two pairs and of the block after them, for a pattern of two
X = np.random.default_rng(0).standard_normal((2, 6, FEATURES)).astype(np.float32)

# What a step may change beside the output: dropped paths and features by random counters, statistics of norms.
KIND: dict[str, Any] = {
    "pattern": ("mlp", "attention"),
    "depth": 5,
    "drop_path": 0.5,
    "dropout": 0.3,
    "layer_scale": 2.0,
    "norm": "batch",
    "order": "post",
}


def make(
    pattern: tuple[str, ...] = ("attention+mlp",),
    depth: int = 4,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Stack:
    form = {name: options.pop(name) for name in ("scan", "remat") if name in options}

    def build(rngs: nnx.Rngs) -> Stack:
        blocks = []
        for i, rate in enumerate(drop_path_rates(drop_path, depth)):
            place, kind = Place(num_heads=2, dropout=dropout), pattern[i % len(pattern)]
            branches: dict[str, nnx.Module] = {}
            if "attention" in kind:
                branches["mixer"] = layers.create_mixer("attention", FEATURES, place=place, rngs=rngs)
            if "mlp" in kind:
                branches["channel"] = MLP(FEATURES, 16, dropout=dropout, rngs=rngs)
            blocks.append(Block(branches, features=FEATURES, drop_path=rate, rngs=rngs, **options))
        return Stack(blocks, **form)

    return making.make(build, nnx.Rngs(seed))


def block_by_block(stack: Stack, x: jax.Array) -> jax.Array:
    for block in stack:
        x = block(x)
    return x


@functools.partial(jax.jit, static_argnums=0)
def by_itself(graphdef: Any, params: nnx.State, rest: nnx.State, x: jax.Array, dy: jax.Array) -> tuple[Any, ...]:
    """One block: its output, what else changed in it, and the gradients for parameters and input."""

    def call(params: nnx.State, x: jax.Array) -> Any:
        block = nnx.merge(graphdef, params, rest, copy=True)
        return block(x), nnx.state(block, nnx.Not(nnx.Param))

    y, pull, rest = jax.vjp(call, params, x, has_aux=True)
    return y, rest, *pull(dy)


def step_of_blocks(stack: Stack, x: jax.Array) -> tuple[Any, ...]:
    """As :func:`step_of_stack`, each block called and differentiated by itself."""
    inputs, parts = [x], [nnx.split(block, nnx.Param, ...) for block in stack]
    for part in parts:
        inputs.append(by_itself(*part, inputs[-1], jnp.zeros_like(x))[0])
    dy, gradients = 2 * inputs[-1], {}
    for i, part in reversed(list(enumerate(parts))):
        _, rest, gradient, dy = by_itself(*part, inputs[i], dy)
        nnx.update(stack[i], rest)
        gradients |= {f"{i}.{name}": value for name, value in flatten_state(gradient).items()}
    return inputs[-1], [inputs[1:][i] for i in CAPTURED], gradients


@functools.partial(jax.jit, static_argnums=0)
def gradient_of_stack(graphdef: Any, params: nnx.State, rest: nnx.State, x: jax.Array) -> Any:
    def loss(params: nnx.State) -> Any:
        stack = nnx.merge(graphdef, params, rest, copy=True)
        y, found = stack(x, capture=CAPTURED)
        return jnp.sum(y**2), (y, found, nnx.state(stack, nnx.Not(nnx.Param)))

    return jax.grad(loss, has_aux=True)(params)


def step_of_stack(stack: Stack, x: jax.Array) -> tuple[Any, ...]:
    """Output, captured outputs and gradients of the sum of squares; what else changed is changed in ``stack``."""
    gradient, (y, found, rest) = gradient_of_stack(*nnx.split(stack, nnx.Param, ...), x)
    nnx.update(stack, rest)
    return y, found, flatten_state(gradient)


@functools.cache
def step(form: str | None) -> tuple[Any, ...]:
    """What one training step gives, the output of a second forward pass, and the statistics after both.

    Without a form the blocks are called one by one.
    """
    stack = make(**KIND, **FORMS[form or "loop"])
    stack.train()
    run = step_of_stack if form else step_of_blocks
    y, found, gradient = run(stack, X)
    again, *_ = run(stack, X)
    return jax.device_get((y, again, found, gradient, flatten_state(nnx.state(stack, Statistic))))


@pytest.mark.parametrize("form", tiered(FORMS, ("scan",).__contains__))
def test_every_form_runs_block_by_block(form: str) -> None:
    y, again, found, gradient, statistics = step(None)
    other_y, other_again, other_found, other_gradient, other_statistics = step(form)
    assert relative(other_y, y) < 1e-5
    assert relative(other_again, again) < 1e-5  # random counters and statistics moved on alike
    for a, b in zip(other_found, found, strict=True):
        assert relative(a, b) < 1e-5
    assert other_gradient.keys() == gradient.keys()
    scale = max(float(np.abs(g).max()) for g in gradient.values())
    for name, value in gradient.items():
        assert float(np.abs(other_gradient[name] - value).max()) < 1e-5 * scale, name
    assert other_statistics.keys() == statistics.keys()
    for name, value in statistics.items():
        np.testing.assert_allclose(other_statistics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_randomness_differs_from_call_to_call_and_statistics_move() -> None:
    y, again, _, _, statistics = step("scan")
    assert relative(again, y) > 1e-3
    assert len(statistics) == 2 * 5
    assert all(float(np.abs(value).max()) > 0 for name, value in statistics.items() if name.endswith("mean"))


def test_the_same_seed_gives_the_same_weights_and_names() -> None:
    loop, scanned = (flatten(make(**KIND, **FORMS[form])) for form in ("loop", "scan"))
    assert list(loop) == list(scanned)
    assert all(np.array_equal(loop[name], scanned[name]) for name in loop)
    assert any(name.startswith("3.mixer.query.kernel") for name in loop)
    other = flatten(make(**KIND, seed=1))
    assert not np.array_equal(other["3.mixer.query.kernel"], loop["3.mixer.query.kernel"])


def scans(stack: Stack, **options: Any) -> list[int]:
    """Lengths of the scans in the stack's program."""
    graphdef, state = nnx.split(stack)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x, **options)[0])(state, X)
    return [equation.params["length"] for equation in jaxpr.eqns if equation.primitive.name == "scan"]


def test_equal_neighbors_become_one_scan() -> None:
    assert scans(make()) == []
    assert scans(make(scan=True)) == [4]
    assert scans(make(scan=True, drop_path=0.2)) == [4]
    pairs = make(**KIND, scan=True)
    assert scans(pairs) == scans(pairs, capture=CAPTURED) == [2]  # two pairs; the fifth block runs by itself


def test_unequal_blocks_run_as_a_loop() -> None:
    assert scans(make(pattern=("mlp", "attention"), depth=2, scan=True)) == []


def test_capture_returns_outputs_in_the_order_asked_for() -> None:
    stack = make(depth=3)

    @jax.jit
    def run(x: jax.Array) -> Any:
        first = stack[0](x)
        return stack(x, capture=(2, 0, -2)), first, stack[1](first)

    (y, found), first, second = run(X)
    for got, want in zip(found, (y, first, second), strict=True):
        np.testing.assert_array_equal(got, want)


def test_extend_equals_the_whole() -> None:
    rngs = nnx.Rngs(0)
    blocks = [
        Block(
            {"mixer": layers.MultiHeadAttention(FEATURES, num_heads=2, causal=True, rotary=100.0, rngs=rngs)},
            features=FEATURES,
            rngs=rngs,
        )
        for _ in range(2)
    ]
    stack = Stack(blocks)
    want, extend, state, got = program(stack)(X)[0], program(stack, "extend"), stack.init_state(2, max_length=6), []
    for start, stop in ((0, 4), (4, 5), (5, 6)):
        y, state = extend(X[:, start:stop], state)
        got.append(y)
    assert relative(np.concatenate(got, 1), want) < 1e-5


def causal(depth: int, pattern: tuple[int | None, ...] = (None,), **form: bool) -> Stack:
    rngs = nnx.Rngs(0)
    common = {"num_heads": 2, "causal": True, "rotary": 100.0, "rngs": rngs}
    mixers = [layers.MultiHeadAttention(FEATURES, window=pattern[i % len(pattern)], **common) for i in range(depth)]
    return Stack([Block({"mixer": mixer}, features=FEATURES, rngs=rngs) for mixer in mixers], **form)


def test_scanned_extend_is_the_loop() -> None:
    pattern = (None, 3)
    loop, scanned = causal(5, pattern), causal(5, pattern, scan=True)
    x = X[:, :2]

    @jax.jit
    def run(states: Any) -> Any:
        return [stack.extend(x, state) for stack, state in zip((loop, scanned), states, strict=True)]

    first = run([loop.init_state(2, max_length=6)] * 2)
    want, got = run([state for _, state in first])
    assert jax.tree.structure(want) == jax.tree.structure(got)
    assert all(
        np.array_equal(a, b) or relative(a, b) < 1e-5
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    )


def test_rematerialized_extend_keeps_less() -> None:
    """And has the same gradient."""
    plain, remat = causal(2), causal(2, remat=True)
    state = plain.init_state(2, max_length=6)
    found, kept = [], []
    for stack in (plain, remat):
        graph, params, rest = nnx.split(stack, nnx.Param, ...)

        def loss(params: Any, graph: Any = graph, rest: Any = rest) -> jax.Array:
            y, new = nnx.merge(graph, params, rest, copy=True).extend(X[:, :2], state)
            return jnp.sum(y**2) + jnp.sum(new[-1]["mixer"].key)

        found.append(jax.jit(jax.grad(loss))(params))
        kept.append(
            sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], params)))
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)
    assert kept[1] < kept[0]


def test_a_scanned_step_of_decoding_does_not_grow_with_depth() -> None:
    def equations(jaxpr: Any) -> int:
        return sum(
            1 + sum(equations(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
            for equation in jaxpr.eqns
        )

    def size(depth: int, **form: bool) -> int:
        stack = causal(depth, **form)
        return equations(jax.make_jaxpr(stack.extend)(X[:, :1], stack.init_state(2, max_length=6)).jaxpr)

    # Weights and states are stacked and taken apart: one reshape for each, and no arithmetic.
    assert size(8, scan=True) - size(2, scan=True) < 0.2 * (size(8) - size(2))


@pytest.mark.parametrize("form", tiered(FORMS, ("scan",).__contains__))
def test_functions_may_close_over_a_stack(form: str) -> None:
    stack = make(**{**KIND, "depth": 3, "pattern": ("attention",)}, **FORMS[form])
    stack.eval()

    @jax.jit
    def closed_over(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x: stack(x)[0], x)
        return y, pull(jnp.ones_like(y))[0]

    y, gradient = closed_over(X)
    assert relative(jax.jit(lambda x: block_by_block(stack, x))(X), y) < 1e-5
    assert float(jnp.abs(gradient).max()) > 0


def test_equal_blocks_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = causal(6, (None, 3))
    want = stack(X)[0]  # runs at once, block by block
    called = []
    extended = Block.__call__
    monkeypatch.setattr(
        Block, "__call__", lambda block, *args: called.append(block.mixer.window) or extended(block, *args)
    )
    assert relative(jax.jit(lambda x: stack(x)[0])(X), want) < 1e-5
    assert sorted(called, key=str) == [3, None]
    called.clear()
    stack(X)
    assert called == [None, 3] * 3


def test_drop_path_rates_grow_linearly() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.0, 3) == [None] * 3
    assert drop_path_rates(0.5, 1) == [0.0]


class Handing(layers.Mixer):
    """Adds to x what it alone is given and a third of what the block before hands on, and hands on twice that plus its
    input.
    """

    shares = causal = supports_causal = True

    def mix(  # type: ignore[override]
        self, x: jax.Array, tokens: layers.Tokens, shared: Any, own: Any
    ) -> tuple[jax.Array, Any]:
        return x * own["factor"] + shared["sum"] / 3, {"sum": 2 * shared["sum"] + x}

    def init_state(self, batch_size: int, *_: Any, **__: Any) -> jax.Array:
        return jnp.zeros((batch_size,), jnp.int32)

    def mix_next(  # type: ignore[override]
        self, x: jax.Array, state: jax.Array, tokens: layers.Tokens, shared: Any, own: Any
    ) -> tuple[jax.Array, jax.Array, Any]:
        y, shared = self.mix(x, tokens, shared, own)
        return y, state + x.shape[1], shared


@pytest.mark.parametrize("form", [{}, {"scan": True}, {"remat": True}, {"scan": True, "remat": True}], ids=str)
def test_blocks_hand_on_a_tree_and_get_their_own(form: dict[str, bool]) -> None:
    depth, rngs = 4, nnx.Rngs(0)
    stack = Stack(
        [Block({"mixer": Branch(Handing(), norm=None)}, features=FEATURES, rngs=rngs) for _ in range(depth)], **form
    )
    own, shared = {"factor": jnp.linspace(0.1, 1, depth)}, {"sum": jnp.ones_like(X)}
    x, handed = jnp.asarray(X), shared["sum"]
    want = []
    for factor in own["factor"]:
        x, handed = x + x * factor + handed / 3, 2 * handed + x
        want.append(x)
    run = jax.jit(lambda x: stack(x, shared=shared, per_block=own, capture=(1,)))
    y, (captured,), last = run(X)
    for got, expected in ((y, want[-1]), (captured, want[1]), (last["sum"], handed)):
        assert relative(got, expected) < 1e-6
    y, state, last = stack.extend(X, stack.init_state(len(X)), shared=shared, per_block=own)
    assert relative(y, want[-1]) < 1e-6
    assert relative(last["sum"], handed) < 1e-6
    assert [int(count[0]) for block in state for count in block.values()] == [X.shape[1]] * depth


@pytest.mark.parametrize("scan", [False, True])
def test_one_block_at_all_depths_is_one_set_of_parameters(scan: bool) -> None:
    block = Block(
        {"mixer": layers.MultiHeadAttention(FEATURES, num_heads=2, rngs=nnx.Rngs(0))},
        features=FEATURES,
        rngs=nnx.Rngs(0),
    )
    stack = Stack([block] * 3, scan=scan)
    assert all(name.startswith("0.") for name in flatten(stack))
    assert relative(jax.jit(lambda x: stack(x)[0])(X), block(block(block(X)))) < 1e-6


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="remat='all': the policies are nothing, dots, block, offload"):
        make(remat="all")
