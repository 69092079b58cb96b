"""Making models of the zoo: as fast, as small and as lazily as promised, with the names that checkpoints had before."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import zoo
from layers import Linear, Mixer, Module, Tokens, create_mixer
from layers.initializers import Draw
from layers.making import Unfinished, named
from layers.state import flatten
from tests.compilation import program
from tests.tiers import tiered
from tests.zoo.families import FAMILIES, make, options, smallest, tiny
from zoo import matching, weights
from zoo.registry import abstract, configure, variant

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BEFORE = json.loads((HERE / "names_before_0_2.json").read_text())
"""The names, shapes and dtypes of one variant of each family as commit 07b107a made it: what its checkpoints hold."""


def python(code: str, *arguments: str) -> dict[str, Any]:
    """What a fresh process prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", BEFORE)
def test_checkpoints_made_before_hold_the_same_names(name: str) -> None:
    leaves = flatten(abstract(variant(name), variant(name).config))
    lines = sorted(f"{leaf} {list(array.shape)} {array.dtype}" for leaf, array in leaves.items())
    assert BEFORE[name] == {"leaves": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def test_a_run_made_before_loads(tmp_path: Path) -> None:
    """A run of three steps, trained and saved by commit 07b107a."""
    with zipfile.ZipFile(HERE / "run_before_0_2.zip") as archive:
        archive.extractall(tmp_path)
    options = {"features": 8, "depth": 1, "vocab_size": 2}
    model = zoo.create("mamba_nano", weights=tmp_path, **options)
    recorded = json.loads((HERE / "run_before_0_2.json").read_text())
    leaves = flatten(model)
    assert leaves.keys() == recorded.keys()
    for name, array in leaves.items():
        array = np.asarray(array, np.float64)
        np.testing.assert_allclose([np.sum(array), np.sum(np.square(array))], recorded[name], rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_drawn_by_name(family: str) -> None:
    """No parameter of a model is drawn with a key, of which each shape would be a program to compile; tables are the
    host's.
    """
    entry = variant(smallest(family))
    config = configure(entry, options(family))
    drawn: list[Any] = []

    def build(rngs: nnx.Rngs) -> nnx.Module:
        model = entry.build(config, rngs=rngs)
        drawn.extend(
            variable.get_value()
            for variable in named(model).values()
            if isinstance(variable, nnx.Param | nnx.BatchStat)
        )
        return model

    Unfinished(build, nnx.Rngs(0))
    assert drawn
    assert all(isinstance(value, Draw | np.ndarray) for value in drawn)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_compiles(family: str, caplog: pytest.LogCaptureFixture) -> None:
    features = tiny(family).config.features
    with jax.log_compiles(), caplog.at_level("WARNING"):
        make(family, features=24 if isinstance(features, int) else (*features[:-1], 24))
    assert "ompil" not in caplog.text


def test_loading_draws_only_what_the_file_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    source = make("vit")
    arrays = {name: np.asarray(array) for name, array in flatten(source).items()}
    drawn: list[str] = []
    numbers = Draw.numbers
    monkeypatch.setattr(
        Draw, "numbers", lambda self, seed, name, *index: (drawn.append(name), numbers(self, seed, name, *index))[1]
    )
    model = make("vit", weights=arrays)
    assert drawn == []
    for name, array in flatten(model).items():
        np.testing.assert_array_equal(array, arrays[name])
    with warnings.catch_warnings(record=True):
        make("vit", weights=arrays, num_classes=7)
    assert sorted(drawn) == ["head.bias", "head.kernel"]


def test_loaded_arrays_are_the_models_own() -> None:
    """JAX takes over aligned arrays on a CPU without a copy: a dictionary's stay the caller's."""
    arrays = {name: np.asarray(array).copy() for name, array in flatten(make("vit")).items()}
    model = make("vit", weights=arrays)
    before = np.asarray(model.head.kernel[...]).copy()
    for array in arrays.values():
        array[...] = 7
    np.testing.assert_array_equal(model.head.kernel[...], before)


MEMORY = """
import json, resource, sys
import jax, numpy as np, flax.nnx as nnx
import zoo
from layers import parameter_count
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
name, options, file = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
small = zoo.create("bert_tiny", vocab_size=64, features=32, depth=1, num_heads=2)
if file:
    zoo.save(small, file + ".small.safetensors", naming="zoo")
    zoo.create("bert_tiny", weights=file + ".small.safetensors", vocab_size=64, features=32, depth=1, num_heads=2)
before = peak()
model = zoo.create(name, **options, **({"weights": file} if file else {}))
jax.block_until_ready(nnx.state(model))
print(json.dumps({"peak": peak() - before, "parameters": 4 * parameter_count(model)}))
"""


@pytest.mark.parametrize("loaded", tiered([False, True], bool), ids=["drawn", "loaded"])
def test_peak_memory_is_that_of_the_parameters(loaded: bool, tmp_path: Path) -> None:
    """160 MB of parameters, a third of it one embedding, in a process of its own."""
    options = {"vocab_size": 30_000, "features": 512, "depth": 8, "num_heads": 8}
    file = tmp_path / "a.safetensors"
    if loaded:
        shapes = flatten(zoo.creation.create_abstract("bert_tiny", **options))
        save_file({name: np.ones(leaf.shape, np.float32) for name, leaf in shapes.items()}, file)
    measured = python(MEMORY, "bert_tiny", json.dumps(options), str(file) if loaded else "")
    assert measured["parameters"] > 150e6
    assert measured["peak"] < 1.2 * measured["parameters"]


LATE = (
    "jax.experimental.pallas",
    "jax.experimental.mosaic",
    "orbax",
    "tensorflow_datasets",
    "huggingface_hub",
    "matplotlib",
    "torch",
    "transformers",
    "PIL",
)


def test_what_an_import_leaves_out() -> None:
    """Frameworks of kernels, of data, of checkpoints and of files are imported when they are used: not to list models,
    sum them up, or run one here.
    """
    measured = python(
        f"""
import json, sys, time
start = time.process_time()
import jax, flax.nnx
given = time.process_time()
import zoo
ours, theirs = time.process_time() - given, given - start
zoo.list_models()
zoo.summary("vit_nano_patch4_32", show=False)
model = zoo.create("vit_nano_patch4_32", depth=1)
jax.jit(lambda x: model(x))(jax.numpy.zeros((1, 32, 32, 3)))
late = [name for name in {LATE!r} if name in sys.modules]
print(json.dumps({{"ours": ours, "theirs": theirs, "names": dir(zoo), "late": late}}))
"""
    )
    assert measured["late"] == []
    assert set(zoo.__all__) <= set(measured["names"])
    assert measured["ours"] < measured["theirs"]  # three fifths of what JAX and Flax take, however busy the machine is


def test_a_mixer_of_the_users_own_may_be_of_any_modules() -> None:
    """Modules of Flax draw with keys, and a parameter may be computed with while the model is made."""

    class Mine(Mixer):
        supports_causal = True

        def __init__(self, features: int, *, causal: bool = False, rngs: nnx.Rngs, **_: Any):
            self.plain = nnx.Linear(features, features, rngs=rngs)
            self.ours = Linear(features, features, rngs=rngs)
            self.doubled = nnx.Param(2 * self.ours.kernel[...])
            self.ours.kernel[0] = 0

        def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
            return self.ours(self.plain(x))

    model = zoo.create("vit_nano_patch4_32", depth=2, mixer=Mine)
    again = zoo.create("vit_nano_patch4_32", depth=2, mixer=Mine)
    for name, array in flatten(model).items():
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(array, flatten(again)[name])
        if name.endswith("doubled"):
            ours = flatten(model)[name.replace("doubled", "ours.kernel")]
            np.testing.assert_array_equal(array[1:], 2 * ours[1:])
            assert not np.any(ours[0])
    kernels = [np.asarray(model.blocks[i].mixer.plain.kernel[...]) for i in range(2)]
    assert not np.array_equal(*kernels)
    assert program(model)(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 1000)


def test_a_parameter_that_two_names_share_is_refused() -> None:
    shared: list[Linear] = []

    def tied(features: int, **hints: Any) -> Module:
        mixer: Any = create_mixer("attention", features, num_heads=2, **hints)
        shared.append(mixer.out)
        mixer.out = shared[0]
        return mixer

    with pytest.raises(
        ValueError, match=r"blocks\.0\.mixer\.out\.kernel and blocks\.1\.mixer\.out\.kernel are one parameter"
    ):
        zoo.create("vit_nano_patch4_32", depth=2, mixer=tied)


@pytest.mark.parametrize(
    "change",
    [lambda names: names, lambda names: {f"model.{name}": array for name, array in names.items()}],
    ids=["plain", "prefixed"],
)
def test_the_naming_is_found_by_names_alone(
    change: Callable[[dict[str, Any]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One naming is planned and compared, whatever the architecture has: not all with all prefixes."""
    model = make("bert")
    planned: list[Any] = []
    plan = matching.plan
    monkeypatch.setattr(matching, "plan", lambda rules, *rest: (planned.append(rules), plan(rules, *rest))[1])
    zoo.load(model, change(weights.export(model)))
    assert len(planned) <= 2  # the export's is one
