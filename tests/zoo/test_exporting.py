"""Exported models run with JAX alone, for any batch, and what can't be exported is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from tests.tiers import tiered
from tests.zoo.families import BACKBONES, PARTS, inputs, least, make, run, shape_of
from zoo import commands

pytest.importorskip("flatbuffers")
# It must import nothing of this library.
READER = """
import sys
import jax, numpy as np
from pathlib import Path
exported = jax.export.deserialize(bytearray(Path("model.stablehlo").read_bytes()))
np.save("out.npy", exported.call(np.load("in.npy")))
print(sorted({name.split(".")[0] for name in sys.modules} & {"zoo", "layers", "pallas_kernels", "flax"}))
"""


def test_a_file_runs_without_the_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, for any batch and three platforms."""
    options = {"depth": 1, "features": 16, "num_heads": 2}
    given = [f"--option={name}={value}" for name, value in options.items()]
    commands.main(["export", str(tmp_path / "model.stablehlo"), "--model=vit_nano_patch4_32", *given])
    assert "float32[batch,32,32,3] to float32[batch,1000], for cpu, cuda, tpu" in capsys.readouterr().out
    x = inputs("vit", batch=5)
    np.save(tmp_path / "in.npy", x)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", READER], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    want = run(zoo.create("vit_nano_patch4_32", **options), x)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", tiered(PARTS, lambda family: family == "biformer"))
def test_every_family_exports_for_any_batch_and_every_platform(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each backbone; of the others what may not be said of any batch shows when they are traced."""
    if family not in BACKBONES.values():
        monkeypatch.setattr(jax.export, "export", lambda program, platforms: program.trace)
        traced = zoo.export(make(family, **least(family)), input_shape=shape_of(inputs(family))[1:])
        assert str(traced.out_info.shape[0]) == "batch"
        return
    exported = zoo.export(make(family, **least(family)), input_shape=shape_of(inputs(family))[1:])
    assert str(exported.in_avals[0].shape[0]) == "batch"
    assert exported.platforms == ("cpu", "cuda", "tpu")


class Calls(nnx.Module):
    """Asks Python."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


class Counts(nnx.Module):
    """Needs the size of the batch."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.zeros(int(x.shape[0])) + x.sum()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Calls(), {}, "pure_callback .*calls something outside StableHLO"),
        (Counts(), {}, "can't be exported for any batch: give batch_size="),
        (Counts(), {"form": "stablehl"}, "unknown form 'stablehl': did you mean 'stablehlo'"),
        (Counts(), {"batch_size": 0}, "batch_size must be at least 1"),
        (Counts(), {"platforms": ["cpu", "tpx"]}, "'tpx' is no platform: .*cpu, cuda, tpu, rocm"),
        (Counts(), {"platforms": []}, "platforms is empty"),
    ],
)
def test_what_can_not_be_exported_is_named(model: nnx.Module, options: dict, message: str) -> None:
    with pytest.raises(zoo.ExportError, match=message):
        zoo.export(model, input_shape=(3, 4), **options)


def test_an_input_that_the_model_does_not_take_is_no_matter_of_the_batch() -> None:
    with pytest.raises(ValueError, match="the model takes images") as refusal:
        zoo.export(make("vit"), input_shape=(5,))
    assert "batch_size=" not in str(refusal.value)


def test_weights_beyond_what_a_file_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.exporting.LIMIT", 1000)
    with pytest.raises(zoo.ExportError, match=r"the weights take .*, and a file holds 2 GiB"):
        zoo.export(make("vit"))


@pytest.mark.full
def test_weights_count_as_a_file_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    float_bytes = zoo.summary(zoo.create("vit_nano_patch4_32"), show=False).weight_bytes
    monkeypatch.setattr("zoo.exporting.LIMIT", float_bytes // 2)
    zoo.export(zoo.quantize(zoo.create("vit_nano_patch4_32"), keep_float=True), batch_size=1)
    with pytest.raises(zoo.ExportError, match="a file holds 2 GiB"):
        zoo.export(zoo.create("vit_nano_patch4_32"), batch_size=1)
