"""The memories of Titans and Miras: both forms of learning, the papers' recurrence by ``jax.grad``, mixers that are
points of the framework, long runs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import MEMORIES, Memory, NeuralMemory
from layers.memory.choices import (
    KL,
    Bounded,
    DotProduct,
    Elastic,
    GradientDescent,
    Huber,
    Lp,
    Lq,
    MLPMemory,
    Retention,
    Robust,
    Sigmoid,
)
from layers.memory.learning import MemoryInputs, parallel
from layers.memory.sequential import sequential
from pallas_kernels import delta_rule, linear_attention
from tests.compilation import OPTIMIZED
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

BATCH, HEADS, LENGTH, SIZE = 2, 2, 13, 4
PLAIN = GradientDescent(momentum=False, clip=None)
LINEAR = Memory(MLPMemory(1), algorithm=PLAIN)


def tokens_of(memory: Memory, dtype: Any = np.float64, length: int = LENGTH, scale: float = 1.0) -> MemoryInputs:
    """Random tokens; keys and queries of norm ``scale``."""
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, BATCH, HEADS, length, SIZE))
    step, keep, momentum, threshold = rng.uniform(0.05, 0.95, (4, BATCH, HEADS, length))
    unit = lambda x: scale * x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    tokens = MemoryInputs(
        query=unit(query),
        key=unit(key),
        value=scale * value,
        step=step,
        log_keep=np.log(keep) if memory.retention.forget else None,
        log_momentum=np.log(momentum) if memory.algorithm.momentum else None,
        threshold=threshold if memory.bias.thresholded else None,
    )
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tokens)


def weights_of(memory: Memory, dtype: Any = np.float64) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(1)
    return tuple(
        jnp.asarray(memory.retention.initial_scale(shape) * rng.standard_normal((HEADS, *shape)), dtype)
        for shape in memory.structure.shapes(SIZE)
    )


def run(form: Any, memory: Memory, tokens: MemoryInputs, chunk: int) -> jax.Array:
    weights = weights_of(memory, tokens.step.dtype)
    return jax.jit(lambda weights, tokens: form(memory, weights, tokens, chunk))(weights, tokens)


FORMS = {
    **MEMORIES,
    "linear": LINEAR,
    "deep": Memory(MLPMemory(3, 1, "gelu", residual=True)),
    "elastic": Memory(MLPMemory(1), Robust(), Elastic(), GradientDescent()),
    "bounded": Memory(MLPMemory(1), Huber("coordinate"), Bounded(every_token=True)),
    "sigmoid": Memory(MLPMemory(2), Huber("mixture"), Sigmoid(forget=False), PLAIN),
    "kl": Memory(MLPMemory(2), Lp(1.5), KL(every_token=True)),
}


@pytest.mark.parametrize(
    ("name", "chunk"),
    tiered(
        [("titans", 1), ("memora", 1), *[(name, 5) for name in FORMS]], lambda case: case[0] in ("titans", "memora")
    ),
)
def test_chunks_equal_the_sequential_form(name: str, chunk: int) -> None:
    """13 tokens, of which the second row has 9: no multiple of anything, and with padding that holds NaN."""
    with jax.enable_x64(True):
        tokens = dataclasses.replace(tokens_of(FORMS[name]), mask=jnp.arange(LENGTH) < jnp.asarray([[LENGTH], [9]]))
        got, want = (np.asarray(run(form, FORMS[name], tokens, chunk)) for form in (parallel, sequential))
    assert relative(got[0], want[0]) < 1e-12
    assert relative(got[1, :, :9], want[1, :, :9]) < 1e-12


def test_chunks_equal_the_sequential_form_in_float32() -> None:
    """For tokens as the layer makes them; those of other memories one at a time in test_mixers.py."""
    layer = NeuralMemory(16, num_heads=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 75, 16)), jnp.float32)
    assert layer.conv is not None
    tokens = layer.tokens(x, layer.conv(layer.project(x)), None)
    got, want = (
        jax.jit(lambda w, t, form=form: form(layer.memory, w, t, 16))(layer.initial_weights(x.dtype), tokens)
        for form in (parallel, sequential)
    )
    assert relative(got, want) < 1e-4


def test_gradients_equal_those_of_the_sequential_form() -> None:
    memory = Memory()
    with jax.enable_x64(True):
        weight = np.random.default_rng(2).standard_normal((BATCH, HEADS, LENGTH, SIZE))

        def gradient(form: Any) -> Any:
            loss = lambda weights, tokens: jnp.sum(weight * form(memory, weights, tokens, 5))  # noqa: E731
            return jax.jit(jax.grad(loss, argnums=(0, 1)))(weights_of(memory), tokens_of(memory))

        got, want = jax.tree.leaves(gradient(parallel)), jax.tree.leaves(gradient(sequential))
    assert len(got) > 5
    assert all(relative(a, b) < 1e-10 for a, b in zip(got, want, strict=True))


def formula(layer: NeuralMemory, x: np.ndarray, chunk: int) -> np.ndarray:
    """y of one row x (length, features), written from Titans' equations 8 to 15 with ``jax.grad``, in float64.

    The loss is the paper's |M(k) - v|^2, whose factor 2 the layer has in its step: theta here is half of the layer's.
    The tokens of a chunk share a step.
    """
    weights = {name: np.asarray(value, np.float64) for name, value in layers.flatten(layer).items()}
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    silu = lambda z: z * sigmoid(z)  # noqa: E731
    norm = lambda z: z / np.sqrt(np.sum(z**2, -1, keepdims=True) + 1e-6)  # noqa: E731

    def read(place: int, name: str) -> np.ndarray:
        y = x @ weights[f"{name}.kernel"]
        width = y.shape[1]
        kernel = weights["conv.kernel"][:, 0, place * width : (place + 1) * width]
        before = np.concatenate([np.zeros((len(kernel) - 1, width)), y])
        return silu(sum(before[i : i + len(x)] * tap for i, tap in enumerate(kernel))).reshape(len(x), layer.heads, -1)

    q, k, v = norm(read(0, "query")), norm(read(1, "key")), read(2, "value")
    theta, eta, keep = (
        sigmoid(x @ weights[f"{name}.kernel"] + weights[f"{name}.bias"]) for name in ("step", "momentum", "keep")
    )
    theta = theta / chunk
    depth = len(layer.initial)

    def memory(matrices: list[jax.Array], x: jax.Array) -> jax.Array:
        for i, matrix in enumerate(matrices):
            x = (x if i == 0 else x / (1 + jnp.exp(-x))) @ matrix
        return x

    surprise_of = jax.jit(jax.grad(lambda matrices, k, v: jnp.sum((memory(matrices, k) - v) ** 2)))
    out = np.zeros(q.shape)
    for h in range(layer.heads):
        matrices = [weights[f"initial.{i}"][h] for i in range(depth)]
        surprise: Any = [0 * m for m in matrices]
        for t in range(len(x)):
            start = matrices if t % chunk == 0 else start  # noqa: F821
            gradients = surprise_of(start, k[t, h], v[t, h])
            surprise = [eta[t, h] * s - theta[t, h] / 2 * np.asarray(g) for s, g in zip(surprise, gradients)]
            matrices = [keep[t, h] * m + s for m, s in zip(matrices, surprise)]
            out[t, h] = memory(matrices, q[t, h])
    gated = out * silu(x @ weights["gate.kernel"]).reshape(out.shape)
    gated = gated / np.sqrt(np.mean(gated**2, -1, keepdims=True) + 1e-5)
    return (gated.reshape(len(x), -1) * weights["norm.scale"]) @ weights["out.kernel"]


@pytest.mark.parametrize(("depth", "chunk"), tiered([(1, 1), (3, 1), (2, 4)], lambda case: case == (2, 4)))
def test_the_layer_is_the_paper(depth: int, chunk: int) -> None:
    memory = Memory(MLPMemory(depth), algorithm=GradientDescent(clip=None))
    with jax.enable_x64(True):
        layer = NeuralMemory(6, num_heads=2, memory=memory, chunk=chunk, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        rng = np.random.default_rng(0)
        # Gates well inside (0, 1) and different at every token.
        layers.assign(
            layer,
            {
                n: jnp.asarray(w / (1 + 2 * n.endswith("bias")) + 0.5 * rng.standard_normal(w.shape))
                for n, w in layers.flatten(layer).items()
            },
        )
        x = rng.standard_normal((1, 11, 6))
        got = np.asarray(nnx.jit(lambda m, x: m(x))(layer, jnp.asarray(x)))[0]
        assert relative(got, formula(layer, x[0], chunk)) < 1e-10


def along_length(tokens: MemoryInputs, **fields: jax.Array) -> dict[str, jax.Array]:
    """Queries, keys and values as the ops have them: (batch, length, heads, size)."""
    return {
        name: jnp.swapaxes(x, 1, 2)
        for name, x in {"q": tokens.query, "k": tokens.key, "v": tokens.value, **fields}.items()
    }


def start_of(memory: Memory) -> jax.Array:
    return jnp.broadcast_to(weights_of(memory)[0], (BATCH, HEADS, SIZE, SIZE))


def test_linear_memory_is_the_gated_delta_rule_under_another_name() -> None:
    """One token a chunk. Titans takes its gradient where the memory has not decayed yet: beta = theta / alpha, v' =
    alpha v.
    """
    with jax.enable_x64(True):
        tokens = tokens_of(LINEAR)
        assert tokens.log_keep is not None
        alpha = jnp.exp(tokens.log_keep)
        rule = along_length(tokens, v=alpha[..., None] * tokens.value, beta=tokens.step / alpha, decay=tokens.log_keep)
        want = delta_rule(**rule, scale=1.0, initial_state=start_of(LINEAR))
        assert relative(jnp.swapaxes(run(parallel, LINEAR, tokens, 1), 1, 2), want) < 1e-12
        # Under their own names the two are different, and so are longer chunks.
        plain = delta_rule(
            **along_length(tokens, beta=tokens.step, decay=tokens.log_keep), scale=1.0, initial_state=start_of(LINEAR)
        )
        assert relative(plain, want) > 1e-2
        assert relative(jnp.swapaxes(run(parallel, LINEAR, tokens, 2), 1, 2), want) > 1e-2


def test_linear_memory_that_keeps_all_is_the_delta_rule() -> None:
    memory = dataclasses.replace(LINEAR, retention=Retention(forget=False))
    with jax.enable_x64(True):
        tokens = tokens_of(memory)
        want = delta_rule(**along_length(tokens, beta=tokens.step), scale=1.0, initial_state=start_of(memory))
        assert relative(jnp.swapaxes(run(parallel, memory, tokens, 1), 1, 2), want) < 1e-12


@pytest.mark.parametrize("forget", [False, True], ids=["linear attention", "gated linear attention"])
@pytest.mark.parametrize("chunk", [1, 5])
def test_the_dot_product_bias_is_linear_attention(forget: bool, chunk: int) -> None:
    """Its gradient does not depend on the weights: for any chunk. A kept share a token is the decay of Mamba-2 and
    gated linear attention.
    """
    memory = Memory(MLPMemory(1), DotProduct(), Retention(forget=forget), PLAIN)
    with jax.enable_x64(True):
        tokens = tokens_of(memory)
        decay = {} if tokens.log_keep is None else {"decay": tokens.log_keep}
        arguments = along_length(tokens, k=tokens.step[..., None] * tokens.key, **decay)
        want = linear_attention(**arguments, scale=1.0, initial_state=start_of(memory))
        assert relative(jnp.swapaxes(run(parallel, memory, tokens, chunk), 1, 2), want) < 1e-12


@pytest.mark.parametrize(
    "memory",
    [
        Memory(bias=Lp(2.0)),
        Memory(bias=Robust(0.0)),
        Memory(retention=Lq(q=2.0, every_token=True)),
        Memory(retention=Elastic(threshold=0.0)),
        Memory(retention=Bounded(bound=1e7, every_token=True)),
    ],
    ids=["lp", "robust", "lq", "elastic", "bounded"],
)
def test_the_choices_meet_at_titans_memory(memory: Memory) -> None:
    with jax.enable_x64(True):
        assert (
            relative(run(parallel, memory, tokens_of(memory), 4), run(parallel, Memory(), tokens_of(Memory()), 4))
            < 1e-10
        )


@pytest.mark.parametrize("kind", ["coordinate", "norm", "mixture"])
def test_huber_is_l2_below_its_threshold_and_bounded_above(kind: str) -> None:
    with jax.enable_x64(True):
        output, value = jnp.asarray([0.3, -0.2, 0.1]), jnp.asarray([0.1, 0.1, 0.1])
        np.testing.assert_array_equal(Huber(kind)(output, value, jnp.asarray([2.0])), output - value)
        assert np.abs(Huber(kind)(1e6 * output, value, jnp.asarray([2.0]))).max() <= 2


def loss_of(bias: Any, error: np.ndarray) -> float:
    """The attentional biases as the papers write them."""
    if isinstance(bias, Lp):
        return float(np.sum((error**2 + bias.epsilon) ** (bias.p / 2)) / bias.p)
    if isinstance(bias, Robust):
        return float(np.sum(error**2) / 2 + bias.radius * np.sqrt(np.sum(error**2) + 1e-6))
    size = np.abs(error) if bias.kind == "coordinate" else np.linalg.norm(error)
    return float(np.sum(np.where(size <= 0.5, size**2 / 2, 0.5 * (size - 0.25))))


@pytest.mark.parametrize("bias", [Lp(3.0), Lp(1.5), Robust(0.3), Huber("coordinate"), Huber("norm")], ids=str)
def test_a_bias_is_the_derivative_of_its_loss(bias: Any) -> None:
    with jax.enable_x64(True):
        for error in (np.asarray([0.9, -0.4, 0.2]), np.asarray([0.2, -0.1, 0.3])):
            got = np.asarray(bias(jnp.asarray(error), jnp.zeros(3), jnp.asarray([0.5])))
            want = [(loss_of(bias, error + d) - loss_of(bias, error - d)) / 2e-5 for d in 1e-5 * np.eye(3)]
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_one_gradient_is_clipped() -> None:
    """From a token with a huge value the linear memory moves by step times clip, in the gradient's own direction."""
    memory = Memory(
        MLPMemory(1), retention=Retention(forget=False), algorithm=GradientDescent(momentum=False, clip=2.0)
    )
    with jax.enable_x64(True):
        tokens = tokens_of(memory, length=1, scale=1.0)
        tokens = dataclasses.replace(tokens, value=1e6 * tokens.value, query=tokens.key)
        weights = weights_of(memory)
        moved = parallel(memory, weights, tokens, 1) - tokens.query @ weights[0]
        want = 2 * tokens.step[..., None] * tokens.value / jnp.linalg.norm(tokens.value, axis=-1, keepdims=True)
        assert relative(moved, want) < 1e-5


@pytest.mark.parametrize("name", tiered([*MEMORIES, "elastic"], lambda name: name == "titans"))
def test_extreme_tokens_leave_it_finite(name: str) -> None:
    """Keys all alike, steps near 1, values of 1e4, nothing forgotten or all: forward and gradient, in float32."""
    memory = FORMS[name]
    loss = lambda weights, tokens: jnp.mean(parallel(memory, weights, tokens, 8) ** 2)  # noqa: E731
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for log_keep in (0.0, -1e3):
        tokens = tokens_of(memory, np.float32, 40, scale=1.0)
        tokens = dataclasses.replace(
            tokens, key=jnp.ones_like(tokens.key) / 2, value=1e4 * tokens.value, step=jnp.full_like(tokens.step, 0.999)
        )
        tokens = dataclasses.replace(
            tokens, log_keep=None if tokens.log_keep is None else jnp.full_like(tokens.log_keep, log_keep)
        )
        value, gradient = run(weights_of(memory, np.float32), tokens)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.full
@pytest.mark.parametrize("name", MEMORIES)
def test_thirty_thousand_tokens_of_decoding(name: str) -> None:
    """One at a time, some of them huge: the memory's weights stay bounded from the first thousand to the last."""
    layer = NeuralMemory(4, num_heads=1, memory=name, chunk=8, conv_size=None, rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)

    @functools.partial(jax.jit, compiler_options=OPTIMIZED)
    def decode(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixer = nnx.merge(graph, params)

        def step(state: Any, i: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            x = jax.random.normal(jax.random.fold_in(key, i), (1, 1, 4)) * jnp.where(i % 97 == 0, 1e6, 1.0)
            y, state = mixer.extend(x, state)
            return state, (
                jnp.max(jnp.abs(y)),
                jnp.max(jnp.stack([jnp.max(jnp.abs(w)) for w in jax.tree.leaves(state.memory)])),
            )

        return jax.lax.scan(step, mixer.init_state(1), jnp.arange(30_000))[1]

    outputs, weights = (np.asarray(x) for x in decode(params, jax.random.key(0)))
    assert np.isfinite(outputs).all()
    assert np.isfinite(weights).all()
    assert weights[1000:].max() < 10 * weights[:1000].max()


def test_a_state_can_be_donated() -> None:
    layer = NeuralMemory(4, num_heads=1, rngs=nnx.Rngs(0))
    extend = jax.jit(lambda x, state: layer.extend(x, state)[1], donate_argnums=1)
    state = layer.init_state(1)
    for _ in range(2):
        state = extend(jnp.ones((1, 1, 4)), state)
    assert int(state.length[0]) == 2


def test_memory_of_training_is_linear_in_length() -> None:
    memory, size = Memory(), 32
    shapes = memory.structure.shapes(size)

    def temporary(length: int) -> int:
        """Bytes of the gradient of one head, for a length that is no multiple of the chunk."""
        long, flat = (
            jax.ShapeDtypeStruct((1, 1, length, size), jnp.float32),
            jax.ShapeDtypeStruct((1, 1, length), jnp.float32),
        )
        tokens = MemoryInputs(query=long, key=long, value=long, step=flat, log_keep=flat, log_momentum=flat)
        weights = tuple(jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes)
        gradient = jax.jit(
            jax.grad(lambda weights, tokens: jnp.sum(parallel(memory, weights, tokens, 16) ** 2), argnums=(0, 1))
        )
        return gradient.lower(weights, tokens).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(1003), temporary(4003)
    assert long < 4.1 * short
    # Weights and surprise are kept between chunks, not between tokens.
    assert long < 4003 * 2 * sum(m * n for m, n in shapes) * 4 / 4


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown memory 'titan': did you mean 'titans'"):
        NeuralMemory(8, num_heads=2, memory="titan", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        NeuralMemory(8, num_heads=2, chunk=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="6 features can't be split over 4 heads"):
        NeuralMemory(6, num_heads=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="depth and expansion must be at least 1; got 0 and 2"):
        MLPMemory(0)
    with pytest.raises(ValueError, match='kind is "coordinate", "norm" or "mixture"'):
        Huber("abs")
