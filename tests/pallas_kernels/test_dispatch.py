"""The choice among implementations, on a toy op that is not in the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import attention
from pallas_kernels.call import Call
from pallas_kernels.dispatch import OPS, Implementation, Op, Refused, platform, recording, use


@dataclasses.dataclass(frozen=True, eq=False)
class ToyCall(Call):
    axes: ClassVar = {"x": "b"}
    results = ("b",)

    x: jax.Array


def too_long(call: ToyCall) -> str | None:
    return f"length {call.x.shape[0]} is over 4" if call.x.shape[0] > 4 else None


def adding(number: int) -> Callable[[ToyCall], tuple[jax.Array]]:
    return lambda call: (call.x + number,)


@pytest.fixture
def op() -> Iterator[Op]:
    yield Op(
        "toy",
        (
            Implementation("mosaic_tpu", adding(1), platforms=("tpu",)),
            Implementation("short", adding(2), objection=too_long),
            Implementation("xla", adding(3)),
            Implementation("reference", adding(4)),
        ),
    )
    del OPS["toy"]


def value(op: Op, length: int = 1, implementation: str | None = None) -> float:
    return float(op(ToyCall(jnp.zeros(length)), implementation)[0][0])


def test_first_that_serves_is_picked(op: Op) -> None:
    with platform("cpu"):
        assert value(op, 4) == 2
        assert value(op, 5) == 3
    with platform("tpu"):
        assert value(op, 5) == 1


def test_platform_names_of_gpus_are_one(op: Op) -> None:
    with platform("cuda"), pytest.raises(Refused, match="runs on tpu, this is gpu"):
        value(op, implementation="mosaic_tpu")


def test_explicit_name_runs_or_raises_its_reason(op: Op) -> None:
    assert value(op, implementation="xla") == 3
    assert value(op, implementation="reference") == 4
    with pytest.raises(Refused, match=r"short: length 5 is over 4") as refused:
        value(op, 5, "short")
    assert refused.value.reasons == (("short", "length 5 is over 4"),)
    with platform("cpu"), pytest.raises(ValueError, match="mosaic_tpu: runs on tpu, this is cpu"):
        value(op, implementation="mosaic_tpu")


def test_unknown_name_lists_the_known(op: Op) -> None:
    with pytest.raises(ValueError, match="no implementation 'mosaic'; it has: mosaic_tpu, short, xla, reference"):
        value(op, implementation="mosaic")


def test_nothing_serves() -> None:
    try:
        only = Op(
            "toy", (Implementation("short", adding(0), objection=too_long), Implementation("reference", adding(0)))
        )
        with pytest.raises(Refused, match="short: length 5 is over 4"):
            only(ToyCall(jnp.zeros(5)))
    finally:
        del OPS["toy"]


def test_use_names_all_or_one_and_ends_with_its_context(op: Op) -> None:
    with use("reference"):
        assert value(op) == 4
        with use(toy="xla"):
            assert value(op) == 3
        assert value(op) == 4
        assert value(op, implementation="short") == 2, "the call's own name wins"
    with use(other="reference"):
        assert value(op) == 2
    assert value(op) == 2


def test_recording_tells_the_choice_and_why(op: Op) -> None:
    with platform("cpu"), recording() as record:
        value(op, 5)
        value(op, implementation="reference")
    assert [c.implementation for c in record] == ["xla", "reference"]
    assert str(record[0]) == "toy: xla; not short: length 5 is over 4", "what runs elsewhere is no news"
    value(op)
    assert len(record) == 2, "recording ended with its context"


def test_choice_is_made_at_trace_time(op: Op) -> None:
    compiled = jax.jit(lambda x: op(ToyCall(x))[0])
    with use("xla"):
        assert float(compiled(jnp.zeros(1))[0]) == 3
    with recording() as record:
        assert float(compiled(jnp.zeros(1))[0]) == 3
    assert record == []


def test_a_name_is_taken_once(op: Op) -> None:
    with pytest.raises(ValueError, match="defined twice"):
        Op("toy", ())


def test_attention_goes_through_dispatch() -> None:
    x = jnp.ones((1, 3, 1, 2))
    with use("reference"), recording() as record:
        attention(x, x, x)
    assert [str(c) for c in record] == ["attention: reference"]
