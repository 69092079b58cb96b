"""Records a Block-Recurrent Transformer with feedback: ``python -m tests.references.block_feedback CLONE`` writes an
.npz beside this file.

CLONE is a checkout of meliad as :mod:`tests.references.block_recurrent` asks for. A stack of three layers, the middle
one recurrent, reads four windows from the start of a document: logits, and the gradients of the embedding and of the
first layer's queries to the state. The values of the other layers' self attention are zero: theirs has a window of
zeros before the first, ours has none. Only numbers are kept.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import block_recurrent, seeded
from tests.references.block_recurrent import BATCH, FEATURES, HEADS, HIDDEN, LENGTH, SEED, SIZE, STATES, WINDOW

PATH = Path(__file__).with_suffix(".npz")
DEPTH, RECURRENT, VOCABULARY = 3, 1, 13
GRADIENTS = {
    "embed/embedding": "embedding.embedding",
    "transformer0/tbase/_kvq/queries2_layer/kernel": "blocks.0.feedback.query.kernel",
}
"""Of which parameters gradients are recorded: their names and ours."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the parameters, by the authors' names."""
    layer = block_recurrent.shapes("fixed", "skip")
    made = {"embed/embedding": (VOCABULARY, FEATURES), "final_layernorm/scale": (FEATURES,)}
    for i in range(DEPTH):
        own = {name: shape for name, shape in layer.items() if i == RECURRENT or not name.startswith("recurrent")}
        made |= {f"transformer{i}/{name}": shape for name, shape in own.items()}
    return made


def weights() -> dict[str, np.ndarray]:
    """By the authors' names."""
    made = {}
    for name, shape in shapes().items():
        noise = seeded.generator(name, SEED).standard_normal(shape).astype(np.float32)
        if "attention_scale" in name:
            noise = 3 + noise
        elif name.endswith("scale"):
            noise = 1 + np.float32(0.1) * noise
        elif name.endswith("kernel"):
            noise *= np.float32(shape[0] ** -0.5)
        if name.endswith("values_layer/kernel") and not name.startswith(f"transformer{RECURRENT}/"):
            noise = np.zeros_like(noise)
        made[name] = noise
    return made


def ours() -> dict[str, np.ndarray]:
    """The same by our names."""
    theirs = weights()
    made = {"embedding.embedding": theirs["embed/embedding"], "norm.scale": theirs["final_layernorm/scale"]}
    for i in range(DEPTH):
        prefix = f"transformer{i}/"
        layer = {name.removeprefix(prefix): a for name, a in theirs.items() if name.startswith(prefix)}
        own = block_recurrent.ours(layer)
        if i != RECURRENT:
            out = own.pop("mixer.out.kernel")
            own["mixer.out.kernel"], own["feedback.out.kernel"] = np.split(out, 2)
            own["feedback.query.kernel"] = own.pop("mixer.state_query.kernel")
            own["feedback.scale"], own["mixer.logit_scale"] = own.pop("mixer.state_scale"), own.pop("mixer.scale")
        made |= {f"blocks.{i}.{name}": a for name, a in own.items()}
    return made


def tokens() -> np.ndarray:
    """(batch, length) int32."""
    return seeded.generator("tokens", SEED).integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


def load() -> dict[str, np.ndarray]:
    """The recorded arrays: "logits", and gradients of the sum of their sines by the authors' names."""
    with np.load(PATH) as file:
        return dict(file)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    sys.path.insert(0, str(clone))
    block_recurrent.stand_in()
    import jax
    import jax.numpy as jnp
    from flax import traverse_util
    from transformer import decoder_stack, nn_components, transformer_base, transformer_layer

    mlp = functools.partial(nn_components.MLP, use_bias=False)
    bare = functools.partial(mlp, num_layers=1, num_hidden_units=0, hidden_activation=None)
    deep = functools.partial(mlp, num_layers=2, num_hidden_units=HIDDEN, hidden_activation="relu")
    base = transformer_base.TransformerBase
    transformer_base.TransformerBase = functools.partial(base, attn_mlp_factory=bare, ffn_factory=deep)
    layer = functools.partial(
        transformer_layer.TransformerLayer, num_heads=HEADS, head_size=SIZE, window_length=WINDOW,
        relative_position_type="t5", recurrent_num_states=STATES, recurrent_gate_type="bias",
        recurrent_single_gate=False, recurrent_skip_ffn=True,
    )  # fmt: skip
    task = decoder_stack.TransformerTaskConfig(sequence_length=LENGTH, batch_size=BATCH, vocab_size=VOCABULARY)
    stack = decoder_stack.DecoderStack(
        mode="test", task_config=task, num_layers=DEPTH, embedding_size=FEATURES, layer_factory=layer,
        dstack_window_length=WINDOW, recurrent_layer_indices=(RECURRENT,), feedback_recurrence=True,
    )  # fmt: skip
    given = jnp.asarray(tokens()), jnp.asarray(tokens()), jnp.ones((BATCH,), bool)
    found = stack.init(jax.random.key(0), *given)
    known = {"/".join(path): value.shape for path, value in traverse_util.flatten_dict(found["params"]).items()}
    assert known == shapes(), known.items() ^ shapes().items()
    params = {tuple(name.split("/")): jnp.asarray(a) for name, a in weights().items()}

    def logits(params: Any) -> Any:
        tree = traverse_util.unflatten_dict(params)
        made, _ = stack.apply({"params": tree, "state": found["state"]}, *given, mutable=["state"])
        return made[0] * VOCABULARY**0.5

    gradient = jax.grad(lambda params: jnp.sum(jnp.sin(logits(params))))(params)
    made = {name: gradient[tuple(name.split("/"))] for name in GRADIENTS}
    return {name: np.asarray(a) for name, a in (made | {"logits": logits(params)}).items()}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))
