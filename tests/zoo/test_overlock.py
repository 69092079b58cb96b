"""OverLoCK in training, its two forms, and what is said of files of the other form."""

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
import zoo
from layers import AuxLogits, Block, Branch, collecting, flatten
from layers.depthwise import DepthwiseConv
from layers.mlp import ConvMLP
from tests.compilation import program
from tests.layers.mixer_cases import FEATURES, MixerCase, relative
from tests.references import overlock, recording, seeded
from tests.references.comparing import ours_and_gradient
from tests.zoo.families import make, run
from tests.zoo.recorded_models import OVERLOCK
from zoo.registry import abstract, variant
from zoo.weights import export

SIZE: dict[str, Any] = {**OVERLOCK, "drop_path": 0.0}


def test_sizes_without_the_overviews_classifier() -> None:
    """Those that are published, of the form for deployment."""
    counts = recording.Recording(overlock).about["counts_without_head"]
    for name in ("xt", "xt_reparam"):
        entry = variant(f"overlock_{name}")
        model = abstract(entry, dataclasses.replace(entry.config, overview_head=False))
        assert sum(leaf.size for leaf in flatten(model, nnx.Param).values()) == counts[name]


@pytest.mark.full
def test_training_matches_the_authors() -> None:
    """With batch statistics in all branches of the large kernels, and the overview's logits."""
    recorded = recording.Recording(overlock)
    model: Any = zoo.create("overlock_xt", weights=recorded.weights("train"), **SIZE)
    model.train()
    graphdef, state = nnx.split(model)

    @jax.jit
    def outputs(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        with collecting(AuxLogits) as sown:
            model = nnx.merge(graphdef, state)
            logits = model(x)
        return logits, sown.named(model)["overview"]

    theirs = recorded.arrays("training")
    main, overview = outputs(state, recorded.images("train"))
    assert relative(main, theirs["main"]) < 1e-4
    assert relative(overview, theirs["aux"]) < 1e-4


def _given(module: Any, weights: dict[str, np.ndarray], names: dict[str, str]) -> None:
    """Gives the parts of a module the weights of the authors' parts."""
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for ours, theirs in names.items():
        part = functools.reduce(getattr, ours.split("."), module)
        if isinstance(part, nnx.Variable):
            part.set_value(jnp.asarray(weights[theirs]))
            continue
        for leaf, released in leaves.items():
            variable = getattr(part, leaf, None)
            if variable is not None:
                value = weights.get(f"{theirs}.{released}")
                if value is None:
                    value = weights[f"{theirs}.{'gamma' if leaf == 'scale' else 'beta'}"]
                if leaf == "kernel":
                    value = value.transpose(2, 3, 1, 0)
                variable.set_value(jnp.asarray(value.reshape(variable.shape)))


def test_in_bfloat16_means_of_large_regions_keep_their_differences() -> None:
    """The kernels' keys: means of 16 tokens differ by a fortieth of their size, batch norm makes that 1."""
    x = jnp.asarray(10 + np.random.default_rng(0).standard_normal((1, 28, 28, FEATURES)), jnp.bfloat16)
    case = MixerCase("context_mixing", "plain", causal=False)
    kernels = program(case.make(dtype=jnp.bfloat16), "_kernels")(x, None)
    wanted = program(case.make(), "_kernels")(x.astype(jnp.float32), None)
    assert relative(kernels[1], wanted[1]) < 0.03  # 0.1 to 0.4 with means in bfloat16


@pytest.mark.full
def test_the_mixer_alone_matches_the_authors_block(record_property: Any) -> None:
    """contmix.py, whose context is the map itself; on a map that is narrower than the kernel."""
    recorded = recording.Recording(overlock)
    features = overlock.MAP[-1]
    rngs = nnx.Rngs(0)
    mixer = layers.create_mixer("context_mixing", features, num_heads=1, rngs=rngs)
    first, second = (Branch(DepthwiseConv(features, 3, rngs=rngs), norm=None) for _ in range(2))
    channel = ConvMLP(features, 2 * features, residual=True, response=True, rngs=rngs)
    branches = {"position": first, "mixer": mixer, "second_position": second, "channel": channel}
    block = Block(branches, features=features, rngs=rngs)
    normed = {
        "query": "weight_query.0",
        "key": "weight_key.1",
        "value": "weight_value.0",
        "mixed": "fusion_proj.0",
        "gate": "gate.0",
    }
    names = {f"mixer.{ours}.conv": theirs for ours, theirs in normed.items()}
    names |= {f"mixer.{ours}.norm": f"{theirs[:-1]}{int(theirs[-1]) + 1}" for ours, theirs in normed.items()}
    for branch in mixer.local.branches:
        names[f"mixer.local.branches.{branch}.conv"] = f"lepe.0.dil_conv_k{branch}"
        names[f"mixer.local.branches.{branch}.norm"] = f"lepe.0.dil_bn_k{branch}"
    names |= {
        "position": "dwconv1",
        "mixer_norm": "norm1",
        "mixer.kernels": "weight_proj",
        "mixer.local.large.conv": "lepe.0.lk_origin",
        "mixer.local.large.norm": "lepe.0.origin_bn",
        "mixer.local_norm": "lepe.1",
        "mixer.excite.squeeze": "se_layer.proj.1",
        "mixer.excite.excite": "se_layer.proj.3",
        "mixer.out_norm": "proj.0",
        "mixer.out": "proj.1",
        "mixer.small_bias": "rpb1",
        "mixer.large_bias": "rpb2",
        "second_position": "dwconv2",
        "channel_norm": "norm2",
        "channel.up": "mlp.0",
        "channel.depthwise": "mlp.2",
        "channel.response": "mlp.3",
        "channel.down": "mlp.4",
    }
    _given(block, recorded.weights("block"), names)
    block.eval()
    (out,), gradient = ours_and_gradient(lambda x: [block(x)], seeded.images(overlock.MAP, overlock.SEED))
    theirs = recorded.arrays("block")
    difference = max(relative(out, theirs["out"]), relative(gradient, theirs["gradient"]))
    about = {"reference": recorded.named(), "kind": "recorded", "architecture": "context_mixing (block)"}
    record_property("parity", {**about, "mapped": len(recorded.weights("block")), "difference": difference})
    assert difference < 1e-5


@pytest.mark.full
def test_the_form_for_deployment_computes_the_same() -> None:
    """Only large kernels are merged, as in the authors' files."""
    options: dict[str, Any] = {"overview_head": True}
    model: Any = make("overlock", **options)
    rng = np.random.default_rng(0)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.BatchStat | nnx.Param) and variable.ndim == 1:
            variable.set_value(jnp.asarray(rng.uniform(0.5, 1.5, variable.shape), variable.dtype))
    model.eval()
    x = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    before, train_file = run(model, x), export(model, naming="overlock")
    merged = zoo.reparameterize(model, only=layers.LargeKernelConvolution)
    assert relative(run(merged, x), before) < 1e-5
    deploy_file = export(merged, naming="overlock")
    assert any(name.endswith("lk_origin.bias") for name in deploy_file)
    assert not any("dil_" in name or "origin_bn" in name for name in deploy_file)
    deployed = make("overlock", merged=True, weights=deploy_file, **options)
    assert relative(run(deployed, x), before) < 1e-5
    with pytest.raises(zoo.WeightsError, match=r"the form for deployment, with merged kernels.*merged=True"):
        make("overlock", weights=deploy_file, **options)
    with pytest.raises(zoo.WeightsError, match=r"the form for training, whose kernels have branches.*reparameterize"):
        make("overlock", merged=True, weights=train_file, **options)


def test_the_overview_is_part_of_the_head() -> None:
    model: Any = make("overlock", overview_head=True)
    model.reset_head(3)
    assert model.overview_head.head.out_features == 3
    model.reset_head(0)
    assert model.overview_head is None
    assert not any("head" in name for name in flatten(model))


@pytest.mark.parametrize("sizes", [{"depths": (1,)}, {"focus_depths": (1,)}])
def test_a_focus_net_has_two_stages(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least two numbers, focus_depths= two"):
        make("overlock", **sizes)
