"""Mixers on sequences split over devices: equal to one device, outputs and gradients; dilated attention sends only what its long segments keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

import layers
from pallas_kernels import dispatch
from tests.layers.sequence_run import CASES, FEATURES, LENGTH, ROWS

ROOT = Path(__file__).resolve().parents[2]
# One process makes what all of these tests read.
pytestmark = pytest.mark.xdist_group("mixers on split sequences")


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-m", "tests.layers.sequence_run"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_one_device(lines: dict[str, dict[str, Any]], case: str) -> None:
    for name, difference in lines[case]["differences"].items():
        assert difference < 1e-5, name


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("dilated")])
def test_dilated_attention_sends_what_it_keeps(lines: dict[str, dict[str, Any]], case: str) -> None:
    """Rates 2 and 4 go beyond a device: never more than half of the keys of its rows, which two devices share."""
    assert 0 < lines[case]["largest_gathered"] <= (ROWS // 2) * LENGTH * FEATURES // 2


@pytest.mark.parametrize(
    ("mixer", "options", "shape", "expected"),
    [
        ("attention", {"num_heads": 4}, (2, 16, 8), {"all_to_all", "xla"}),
        ("windowed", {"window": 4, "inner": {"name": "attention", "num_heads": 4}}, (2, 8, 8, 8), {"xla"}),
        ("dilated_attention", {"num_heads": 4, "segments": (4,), "rates": (1,)}, (2, 16, 8), {"xla"}),
        ("bilevel_routing", {"num_heads": 4, "regions": 2, "topk": 2}, (2, 8, 8, 8), {"xla"}),
    ],
)
def test_pieces_do_not_trade_heads(mixer: str, options: dict[str, Any], shape: tuple[int, ...], expected: set[str]) -> None:
    """Attention inside windows, segments and regions is on its own device or the compiler's to move; heads are traded for whole sequences."""
    mesh = AbstractMesh((4,), ("sequence",), axis_types=(AxisType.Auto,))
    made = layers.create_mixer(mixer, features=8, rngs=nnx.Rngs(0), **options)
    graph, params = nnx.split(made)
    with jax.sharding.use_abstract_mesh(mesh), dispatch.recording() as choices:
        jax.eval_shape(lambda params, x: nnx.merge(graph, params)(x), params, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert {choice.implementation for choice in choices} == expected
