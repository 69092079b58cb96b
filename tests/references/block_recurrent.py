"""Records outputs of meliad's recurrent layer: ``python -m tests.references.block_recurrent CLONE`` writes an .npz
beside this file.

CLONE is a checkout of github.com/google-research/meliad (Apache-2.0), commit e8af054, whose transformer/ folder runs on
a CPU once gin, which only fills in options, and the external memory are stood in for. A whole layer reads four windows
from the start of a document: outputs, the last state, and the gradient of the input. Only numbers are kept: weights and
inputs follow from a seed.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, BATCH, FEATURES, HEADS, SIZE, HIDDEN, WINDOW, STATES, LENGTH = 3, 2, 12, 2, 5, 20, 6, 4, 24
# The gate and the cell, by our names.
CASES = [(gate, cell) for gate in ("fixed", "lstm") for cell in ("skip", "dual", "single")]


def shapes(gate: str, cell: str) -> dict[str, tuple[int, ...]]:
    """Of the layer's parameters, by the authors' names."""
    inner = HEADS * SIZE

    def base(gated: bool) -> dict[str, tuple[int, ...]]:
        made: dict[str, tuple[int, ...]] = {"_kvq/attention_scale": (HEADS,), "attention_scale2": (HEADS,)}
        made |= {f"_kvq/{name}_layer/kernel": (FEATURES, inner) for name in ("keys", "values", "queries", "queries2")}
        made["_kvq/pre_attn_layernorm/scale"] = (FEATURES,)
        form = cell if gated else "dual"
        if form != "single":
            made["post_attn_mlp/output_layer/kernel"] = (2 * inner, FEATURES)
        if form != "skip":
            made["ffn/hidden0/kernel"] = (2 * inner if form == "single" else FEATURES, HIDDEN)
            made["ffn/output_layer/kernel"] = (HIDDEN, FEATURES)
        if form == "dual":
            made["pre_ffn_layernorm/scale"] = (FEATURES,)
        if gated:
            made["_kvq/position_embeddings"] = (STATES, FEATURES)
            inputs = {"post_attn_mlp": 2 * inner, "ffn": HIDDEN}
            for part, size in inputs.items():
                if f"{part}/output_layer/kernel" not in made:
                    continue
                if gate == "fixed":
                    made[f"{part}/gate_bias"] = (FEATURES,)
                else:
                    made |= {f"{part}/{name}_gate/kernel": (size, FEATURES) for name in ("input", "forget")}
                    made |= {f"{part}/{name}_gate/bias": (FEATURES,) for name in ("input", "forget")}
        return made

    made = {f"tbase/{name}": shape for name, shape in base(False).items()}
    made |= {f"recurrent_tbase/{name}": shape for name, shape in base(True).items()}
    return made | {"recurrent_initial_state": (STATES, FEATURES), "relative_positions/rel_embedding": (HEADS, 32)}


def weights(gate: str, cell: str) -> dict[str, np.ndarray]:
    """By the authors' names: scales near 3, which spread the scores of unit vectors, the rest by size."""
    made = {}
    for name, shape in shapes(gate, cell).items():
        noise = seeded.generator(name, SEED).standard_normal(shape).astype(np.float32)
        if "attention_scale" in name:
            noise = 3 + noise
        elif name.endswith("scale"):
            noise = 1 + np.float32(0.1) * noise
        elif name.endswith("kernel"):
            noise *= np.float32(shape[0] ** -0.5)
        made[name] = noise
    return made


def ours(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same by the names of a block of our mixer and an MLP."""
    names = {
        "tbase/_kvq/queries_layer": "mixer.query", "tbase/_kvq/queries2_layer": "mixer.state_query",
        "tbase/_kvq/keys_layer": "mixer.key", "tbase/_kvq/values_layer": "mixer.value",
        "tbase/_kvq/attention_scale": "mixer.scale", "tbase/attention_scale2": "mixer.state_scale",
        "tbase/_kvq/pre_attn_layernorm": "mixer_norm", "tbase/pre_ffn_layernorm": "channel_norm",
        "tbase/post_attn_mlp/output_layer": "mixer.out", "tbase/ffn/hidden0": "channel.up",
        "tbase/ffn/output_layer": "channel.down", "recurrent_initial_state": "mixer.initial",
        "recurrent_tbase/_kvq/position_embeddings": "mixer.place",
        "recurrent_tbase/_kvq/queries_layer": "mixer.own_query",
        "recurrent_tbase/_kvq/queries2_layer": "mixer.token_query", "recurrent_tbase/_kvq/keys_layer": "mixer.own_key",
        "recurrent_tbase/_kvq/values_layer": "mixer.own_value",
        "recurrent_tbase/_kvq/attention_scale": "mixer.own_scale",
        "recurrent_tbase/attention_scale2": "mixer.token_scale",
        "recurrent_tbase/_kvq/pre_attn_layernorm": "mixer.norm",
        "recurrent_tbase/pre_ffn_layernorm": "mixer.channel_norm",
        "recurrent_tbase/post_attn_mlp/output_layer": "mixer.project", "recurrent_tbase/ffn/hidden0": "mixer.up",
        "recurrent_tbase/ffn/output_layer": "mixer.down", "recurrent_tbase/post_attn_mlp/gate_bias": "mixer.gate.bias",
        "recurrent_tbase/ffn/gate_bias": "mixer.channel_gate.bias",
    }  # fmt: skip
    for part, gate in {"post_attn_mlp": "gate", "ffn": "channel_gate"}.items():
        names[f"recurrent_tbase/{part}/input_gate"] = f"mixer.{gate}.take"
        names[f"recurrent_tbase/{part}/forget_gate"] = f"mixer.{gate}.forget"
    made = {}
    for name, value in theirs.items():
        layer, _, part = name.rpartition("/")
        if name == "relative_positions/rel_embedding":
            made["mixer.relative.table"] = value.T
        elif name in names:
            made[names[name]] = value
        else:
            made[f"{names[layer]}.{part}"] = value
    return made


def inputs() -> np.ndarray:
    """(batch, length, features)."""
    return seeded.generator("x", SEED).standard_normal((BATCH, LENGTH, FEATURES)).astype(np.float32)


def load() -> dict[str, np.ndarray]:
    """The recorded arrays: "GATE_CELL/output", "/states" and "/gradient", of the sum of sines of the output."""
    with np.load(PATH) as file:
        return dict(file)


def stand_in() -> None:
    """Modules that the layer imports and does not use."""
    import jax

    gin: Any = types.ModuleType("gin")
    gin.REQUIRED, gin.configurable = None, lambda made: made
    sys.modules["gin"] = gin
    memory: Any = types.ModuleType("transformer.memory_factory")
    memory.MemoryManager = object
    sys.modules["transformer.memory_factory"] = memory
    jax.random.KeyArray = jax.Array  # type: ignore[attr-defined]


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    sys.path.insert(0, str(clone))
    stand_in()
    import jax
    import jax.numpy as jnp
    from flax import traverse_util
    from transformer import nn_components, transformer_base, transformer_layer

    mlp = functools.partial(nn_components.MLP, use_bias=False)
    bare = functools.partial(mlp, num_layers=1, num_hidden_units=0, hidden_activation=None)
    deep = functools.partial(mlp, num_layers=2, num_hidden_units=HIDDEN, hidden_activation="relu")
    base = transformer_base.TransformerBase
    transformer_base.TransformerBase = functools.partial(base, attn_mlp_factory=bare, ffn_factory=deep)
    made = {}
    for gate, cell in CASES:
        layer = transformer_layer.TransformerLayer(
            mode="test", batch_size=BATCH, embedding_size=FEATURES, recurrent_attention=True, num_heads=HEADS,
            head_size=SIZE, window_length=WINDOW, relative_position_type="t5", recurrent_num_states=STATES,
            recurrent_gate_type={"fixed": "bias", "lstm": "lstm"}[gate], recurrent_single_gate=cell == "single",
            recurrent_skip_ffn=cell == "skip",
        )  # fmt: skip
        fresh = jnp.ones((BATCH,), bool)

        def run(layer: Any, x: Any) -> Any:
            y, _, window, _, _ = layer(x, fresh, window_state=layer.load_window_state(fresh))  # noqa: B023
            return y, window[1]

        x = jnp.asarray(inputs())
        found = layer.init(jax.random.key(0), x, method=run)
        given = weights(gate, cell)
        known = {"/".join(path): value.shape for path, value in traverse_util.flatten_dict(found["params"]).items()}
        assert known == shapes(gate, cell), known.items() ^ shapes(gate, cell).items()
        params = traverse_util.unflatten_dict({tuple(name.split("/")): a for name, a in given.items()})

        def of(x: Any) -> Any:
            return layer.apply({"params": params, "state": found["state"]}, x, method=run)  # noqa: B023

        y, states = of(x)
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(of(x)[0])))(x)
        name = f"{gate}_{cell}"
        made |= {f"{name}/output": y, f"{name}/states": states, f"{name}/gradient": gradient}
    return {name: np.asarray(a) for name, a in made.items()}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
