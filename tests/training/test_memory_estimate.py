"""The estimate of a step's memory: small programs by hand, and every family of models against its compiler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from layers.state import flatten
from primitives.differentiation import differentiable
from primitives.memory import temporaries
from tests.training import toy
from tests.zoo.families import inputs, least, make
from training import memory, schedule
from training import optimizer as optimizers
from training.step import Skeleton, initial_state, make_step

KIB = 1024
SQUARE = jax.ShapeDtypeStruct((16, 16), jnp.float32)  # 1 KiB


@pytest.mark.parametrize(
    ("program", "kib"),
    [
        (lambda a, b: a @ b, 1),
        (lambda a, b: jnp.tanh(a) * 2 + b, 0),  # fused into whatever reads it
        (lambda a, b: a @ b @ b @ b @ b, 2),  # one product and the next
        (lambda a, b: (a @ b) @ (b @ a), 3),  # two products, which live until the third is made
        (lambda a, b: jax.lax.scan(lambda c, x: (c, c @ x @ x), a, jnp.stack([b] * 4))[1], 8 + 3),
         # operands, results, and a slice and two products
        (lambda a, b: jax.jit(lambda a: a @ a)(a) @ b, 2),
        (lambda a, b: differentiable()(lambda a: a @ a @ a)(b), 2),
    ],
)  # fmt: skip
def test_by_hand(program: Any, kib: int) -> None:
    assert temporaries(jax.make_jaxpr(program)(SQUARE, SQUARE)) == kib * KIB


def test_a_gradient_keeps_what_it_needs_and_remat_does_not() -> None:
    def loss(x: jax.Array, w: jax.Array, remat: bool) -> jax.Array:
        layer = lambda x: jnp.tanh(jnp.tanh(x @ w) @ w)  # noqa: E731
        for _ in range(8):
            x = (jax.checkpoint(layer) if remat else layer)(x)
        return jnp.sum(x)

    kept, made_again = (
        temporaries(jax.make_jaxpr(jax.grad(lambda x, w, remat=remat: loss(x, w, remat), 1))(SQUARE, SQUARE))
        for remat in (False, True)
    )
    assert kept >= 16 * KIB
    assert made_again < 0.75 * kept


def test_what_to_change_is_said() -> None:
    config = {"batch_size": 64, "accumulate": 1, "remat": "nothing"}
    assert memory.report(3 << 20, 1 << 30, config) == "a step takes about 3 MiB of memory, of 1.0 GiB"
    line = memory.report(9 << 30, 8 << 30, config)
    assert "9.0 GiB of memory, and there are 8.0 GiB" in line
    assert all(
        field in line
        for field in (
            "--config.batch_size below 64",
            "--config.accumulate above 1",
            "--config.remat=dots (slower, keeps less) or block",
            "smaller model",
        )
    )
    assert "--config.remat=block" in memory.report(9 << 30, 8 << 30, {**config, "remat": "dots"})
    assert "remat" not in memory.report(9 << 30, 8 << 30, {**config, "remat": "block"})
    assert memory.available() > 1 << 28


class FirstClass:
    """A loss of any model's logits."""

    def loss(self, model: Any, batch: Any, rngs: jax.Array) -> tuple[jax.Array, Any]:
        losses = -jax.nn.log_softmax(model(batch["x"]).astype(jnp.float32))[..., 0]
        return losses.mean(), {"loss": (losses.sum(), jnp.float32(losses.size))}


# One of each kind of program: what a family adds to one of these is proved to be right elsewhere, and this is an
# estimate. What users' compiler optimizes beyond that of the tests comes after memory was assigned, but for a part in
# 10,000 of it.
KINDS = ("maxvit", "biformer", "transformer", "mamba", "titans", "routing_transformer")


@pytest.mark.full
@pytest.mark.parametrize("family", KINDS)
def test_estimate_and_compiler_agree_within_a_factor_of_two(family: str) -> None:
    model = make(family, **least(family))
    optimizer = optimizers.create(model, flatten(model, nnx.Param), toy.config().optimizer)
    rates = schedule.create("cosine", optimizer.peak, 10, 1, 0.0)
    losses = {"commitment": 0.1} if family == "routing_transformer" else {}
    task: Any = FirstClass()
    step = make_step(
        Skeleton(model), task, optimizer, rates, seed=0, accumulate=1, ema=0.0, aux_losses=losses, sticky=True
    )
    arguments = initial_state(model, optimizer, 0.0), {"x": jnp.asarray(inputs(family, 32, 16))[None]}
    traced = jax.jit(step, donate_argnums=0).trace(*arguments)
    said = traced.lower().compile().memory_analysis()
    real = said.argument_size_in_bytes + said.temp_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    assert 0.5 < memory.needed(traced.jaxpr, arguments, 1) / real < 2
