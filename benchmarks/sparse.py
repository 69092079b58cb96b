"""Sparse attention on this device: encoders beside transformers with the same weights, and growth with length.

``python -m benchmarks.sparse [--only=ROW,...]`` writes benchmarks/results/<platform>/sparse.json after each row, and
keeps rows that it does not measure. Float32.

    models   two blocks of the published size, 8 texts of 512 tokens and one of 4,096: milliseconds of the forward pass
             to the features of all tokens, and of the gradient of their mean square in all parameters, beside the
             class of transformers (asked: twice as fast at 4,096 tokens). Outputs are compared first.
    mixers   one layer of 256 features and four heads on one row of 4k to 32k tokens: the exponents with which time and
             temporary memory of the gradient grow (asked: at most 1.1)

LSG, Combiner and native sparse attention have no peer: no package has code of them that runs with today's versions on
a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

SHAPES = ((8, 512), (1, 4096))
DEPTH = 2
TWICE = 2.0
LENGTHS = (4096, 8192, 16384, 32768)
LINEAR = 1.1
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Peer:
    """A class of transformers, the options of its configuration, whether ours takes roles, and the texts' shapes."""

    kind: str
    options: Mapping[str, Any]
    roles: bool = False
    shapes: tuple[tuple[int, int], ...] = SHAPES


MODELS = {
    "longformer_base_4096": Peer(
        "LongformerModel",
        {"vocab_size": 50265, "max_position_embeddings": 4098, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
            "attention_window": [512] * DEPTH, "pad_token_id": 1},
        roles=True,
    ),
    "bigbird_roberta_base": Peer(
        "BigBirdModel", {"vocab_size": 50358, "attention_type": "block_sparse"},
        shapes=SHAPES[1:],  # of 512 tokens, and from then on, transformers' attends to all
    ),
}  # fmt: skip
MIXERS = ("longformer_attention", "bigbird", "lsg_attention", "combiner_attention", "native_sparse_attention")


def compare(name: str) -> dict[str, Any]:
    """The row of a model."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import zoo
    from benchmarks.decoding import peers
    from benchmarks.mixers_speed import check, take_turns

    torch, transformers = peers()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    peer = MODELS[name]
    cls: Any = getattr(transformers, peer.kind)
    theirs = cls(cls.config_class(**{**peer.options, "num_hidden_layers": DEPTH})).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours: Any = zoo.create(name, weights=folder, depth=DEPTH, output="pooled")
    ours.eval()
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    def forward(params: Any, tokens: Any) -> Any:
        model = nnx.merge(graphdef, params, rest, copy=True)
        more = {"roles": jnp.zeros(tokens.shape, jnp.int32)} if peer.roles else {}  # no token is global
        return model.features(tokens, [DEPTH - 1], **more)[0]

    def loss(params: Any, tokens: Any) -> Any:
        return jnp.mean(jnp.square(forward(params, tokens)))

    programs = {"forward": jax.jit(forward), "gradient": jax.jit(jax.grad(loss))}
    row: dict[str, Any] = {}
    for batch, length in peer.shapes:
        tokens = np.random.default_rng(0).integers(5, ours.config.vocab_size, (batch, length))

        def of_theirs(what: str, tokens: Any = tokens) -> Any:
            with torch.set_grad_enabled(what == "gradient"):
                out = theirs(torch.from_numpy(tokens)).last_hidden_state
            if what == "gradient":
                theirs.zero_grad()
                out.square().mean().backward()
            return out

        check(name, np.asarray(programs["forward"](params, tokens)), of_theirs("forward").numpy())
        for what, program in programs.items():
            times = take_turns(
                {
                    "ours": lambda program=program, tokens=tokens: jax.block_until_ready(program(params, tokens)),
                    "transformers": lambda what=what, of_theirs=of_theirs: of_theirs(what),
                }
            )
            row[f"{batch} x {length}, {what}"] = {
                "ms": times, "times": round(times["transformers"] / times["ours"], 2),
                "asked": TWICE if length == SHAPES[-1][1] else None,
            }  # fmt: skip
    return row


def growth(name: str) -> dict[str, Any]:
    """The row of a mixer."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from benchmarks.counted import layer
    from benchmarks.mixers import program
    from benchmarks.mixers_speed import slope
    from layers.making import make

    took, memory = [], []
    for length in LENGTHS:
        build, shape = layer(name, length)
        function, variables = program(make(build, nnx.Rngs(0)), "training")
        x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
        compiled = jax.jit(function).lower(*variables, x).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*variables, x))
            times.append(1e3 * (time.perf_counter() - start))
        took.append(min(times))
    return {
        "lengths": LENGTHS,
        "ms": [round(t, 1) for t in took],
        "mib": [round(m / 2**20, 1) for m in memory],
        "time_exponent": round(slope(LENGTHS, took), 2),
        "memory_exponent": round(slope(LENGTHS, memory), 2),
        "asked": LINEAR,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"rows, separated by commas, of: {', '.join([*MODELS, *MIXERS])}")
    args = parser.parse_args()
    names = [name.strip() for name in args.only.split(",") if name.strip()] or [*MODELS, *MIXERS]
    if unknown := [name for name in names if name not in (*MODELS, *MIXERS)]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join([*MODELS, *MIXERS])}")
    import jax

    path = pathlib.Path(__file__).parent / "results" / jax.default_backend() / "sparse.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"models": {}, "mixers": {}}
    for name in names:
        row = compare(name) if name in MODELS else growth(name)
        packages = ("jax", "flax", *(("torch", "transformers") if name in MODELS else ()))
        row |= {
            "versions": {package: importlib.metadata.version(package) for package in packages},
            "cores": os.cpu_count(),
            "load_average_at_end": round(os.getloadavg()[0], 1),
        }
        report["models" if name in MODELS else "mixers"][name] = row
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
