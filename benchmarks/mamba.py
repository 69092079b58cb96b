"""Mamba on this device: ours against transformers' PyTorch path and against its matrix products alone, in one run.

``python -m benchmarks.mamba`` writes benchmarks/results/<platform>/mamba.json. Lengths that are not measured keep their
rows; a length that is measured again also keeps its earlier ratios to the products. Both sides have the same weights,
float32, batch 1 and as many threads as there are cores. Milliseconds are the least of several runs; ours and the
products are measured before and after theirs, which run in a process of their own, so that running out of memory or
time there costs a row and not the run. Their training step takes minutes (the gradient of each token's slice is an
array of the whole sequence), so it is run once, and its first call is timed; where it does not end within the limit,
only the model with one layer is compared.

    forward                     logits of all tokens
    training_step               mean cross-entropy of the next token, its gradient, AdamW
    training_step_of_one_layer  the same of the embedding, one layer and the head
    decoding_step               one token after ``length`` others
    products                    the matrix products of ``forward`` and nothing else
    others                      of Mamba: its scans with their gates and softplus, and its convolutions with their
                                SiLU, each by themselves
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax
    from flax import nnx

RATE = 1e-4
RUNS = ("forward", "training_step", "training_step_of_one_layer", "decoding_step")


def least(run: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of the quickest of ``repeats`` runs, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def tokens_of(length: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (1, length + 1))


class Ours:
    """The compiled programs of one model at one length."""

    def __init__(self, model: Any, length: int):
        import jax
        import jax.numpy as jnp
        import optax
        from flax import nnx

        graphdef, self.params = nnx.split(model)
        self.merged: Callable[[nnx.State], Any] = lambda params: nnx.merge(graphdef, params)
        self.tokens = jnp.asarray(tokens_of(length, model.config.vocab_size))
        self.optimizer = optax.adamw(RATE)
        self.moments = jax.eval_shape(self.optimizer.init, self.params)
        self.forward = jax.jit(lambda params, tokens: self.merged(params)(tokens))
        self.training_step = jax.jit(self._step, donate_argnums=(0, 1))
        self.decoding_step = jax.jit(lambda params, token, state: self.merged(params).extend(token, state))

    def _step(self, params: nnx.State, moments: Any, tokens: jax.Array) -> tuple[nnx.State, Any, jax.Array]:
        import jax
        import jax.numpy as jnp
        import optax

        def loss(params: nnx.State) -> jax.Array:
            logits = self.merged(params)(tokens[:, :-1])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = self.optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    def time_training(self, repeats: int) -> float:
        import jax
        import jax.numpy as jnp

        carry = [jax.tree.map(jnp.copy, self.params), jax.jit(self.optimizer.init)(self.params)]

        def train() -> None:
            *carry[:], value = self.training_step(*carry, self.tokens)
            jax.block_until_ready(value)

        return least(train, repeats)

    def time_decoding(self, repeats: int) -> float:
        import jax

        inputs = self.tokens[:, :-1]
        _, state = self.decoding_step(self.params, inputs, self.merged(self.params).init_state(1))
        return least(lambda: jax.block_until_ready(self.decoding_step(self.params, inputs[:, :1], state)), 5 * repeats)

    def run_forward(self) -> Any:
        import jax

        return jax.block_until_ready(self.forward(self.params, self.tokens[:, :-1]))

    def training_memory(self) -> int:
        """Bytes that a training step needs in addition to parameters and optimizer moments."""
        analysis: Any = self.training_step.lower(self.params, self.moments, self.tokens).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    def counted(self) -> dict[str, float]:
        """Operations of the forward pass, in 1e9: of matrix products and convolutions, and of everything else (an
        exponential counts as one).
        """
        from primitives import operations

        total = operations.count(self.forward, self.params, self.tokens[:, :-1])
        return {"products": total.matmul_flops / 1e9, "others": (total.flops - total.matmul_flops) / 1e9}


def products(model: Any, length: int) -> Callable[[], Any]:
    """All matrix products of the forward pass, layer after layer, on inputs of the right shapes."""
    import jax

    from layers import flatten

    blocks = [{n: v for n, v in flatten(block.mixer).items() if n.endswith("proj.kernel")} for block in model.blocks]
    table = model.embedding.embedding[...]

    def run(blocks: Any, table: jax.Array, x: jax.Array) -> jax.Array:
        for weights in blocks:
            h = x @ weights["in_proj.kernel"]
            inner = h[..., : weights["out_proj.kernel"].shape[0]]
            if "x_proj.kernel" in weights:
                steps = (inner @ weights["x_proj.kernel"])[..., : weights["dt_proj.kernel"].shape[0]]
                inner = inner + steps @ weights["dt_proj.kernel"]
            x = x + inner @ weights["out_proj.kernel"]
        return x @ table.T

    compiled = jax.jit(run)
    x = jax.random.normal(jax.random.key(0), (1, length, table.shape[1]))
    return lambda: jax.block_until_ready(compiled(blocks, table, x))


def others(model: Any, length: int) -> dict[str, Callable[[], Any]]:
    """Everything in a forward pass of Mamba besides its matrix products, layer after layer as in the model, on inputs
    of the right shapes.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from pallas_kernels import selective_scan
    from primitives.exponential import silu

    mixers = [block.mixer for block in model.blocks]
    if not hasattr(mixers[0], "x_proj"):
        return {}
    channels, state_dim = mixers[0].channels, mixers[0].state_dim
    x, gate = jax.random.normal(jax.random.key(0), (2, 1, length, channels))
    b, c = jax.random.normal(jax.random.key(1), (2, 1, length, state_dim))
    convolutions = [nnx.split(mixer.conv) for mixer in mixers]
    graph, taps = convolutions[0][0], [taps for _, taps in convolutions]
    rates = [(-jnp.exp(mixer.A_log[...]), mixer.D[...], mixer.dt_bias[...]) for mixer in mixers]

    # A layer at a time: in one program the compiler would make a layer's tokens once more for each of the next one's
    # taps.
    @jax.jit
    def scan(a: jax.Array, d: jax.Array, bias: jax.Array) -> jax.Array:
        return selective_scan(x, x, a, b, c, D=d, gate=gate, delta_bias=bias, delta_softplus=True)

    @jax.jit
    def convolve(taps: Any) -> jax.Array:
        return silu(nnx.merge(graph, taps)(x))

    return {
        "selective_scan": lambda: [jax.block_until_ready(scan(*each)) for each in rates],
        "convolution": lambda: [jax.block_until_ready(convolve(each)) for each in taps],
    }


def theirs(path: str, name: str, length: int, repeats: int) -> dict[str, float]:
    """The same for the transformers model with the weights at ``path``; flushes each figure, so that it is kept after a
    crash.
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    import zoo

    torch.set_num_threads(os.cpu_count() or 1)
    c: Any = zoo.variant(name).config
    weights = load_file(path)
    depth = len({weight.split(".")[2] for weight in weights if ".layers." in weight})
    common = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.features,
        "num_hidden_layers": depth,
        "state_size": c.state_dim,
        "tie_word_embeddings": True,
    }
    if name.startswith("mamba2"):
        heads = {"num_heads": c.expand * c.features // c.head_dim, "head_dim": c.head_dim, "n_groups": c.groups}
        model: Any = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**common, **heads))
    else:
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**common))
    model.load_state_dict(weights)
    tokens = torch.from_numpy(tokens_of(length, c.vocab_size))
    row: dict[str, float] = {}

    def note(what: str, milliseconds: float) -> None:
        row[what] = milliseconds
        print(json.dumps(row), flush=True)

    with torch.no_grad():
        note("checksum", float(model(tokens[:, :-1]).logits.double().abs().mean()))
        note("forward", least(lambda: model(tokens[:, :-1]), repeats))
        cache = model(tokens[:, :-1], use_cache=True).cache_params
        note("decoding_step", least(lambda: model(tokens[:, :1], cache_params=cache, use_cache=True), 5 * repeats))
    optimizer = torch.optim.AdamW(model.parameters(), RATE)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens[:, :-1]).logits[0], tokens[0, 1:]).backward()
        optimizer.step()

    start = time.perf_counter()
    train()
    note("training_step", 1e3 * (time.perf_counter() - start))
    return row


def run_theirs(path: str, name: str, length: int, repeats: int, limit: float) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.mamba",
        f"--model={name}",
        f"--lengths={length}",
        f"--repeats={repeats}",
        f"--theirs={path}",
    ]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=limit, check=False)
        out, end = done.stdout, "" if done.returncode == 0 else f"ended with status {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        out, end = expired.stdout or b"", f"not done after {limit:.0f} s"
    lines = [line for line in out.decode().splitlines() if line.startswith("{")]
    row: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if end:
        row["stopped"] = end
    return row


def measure(models: dict[str, Any], name: str, length: int, repeats: int, limit: float) -> dict[str, Any]:
    """The row of one length; ``models`` are the whole model and one of a single layer, by the path of their weights."""
    (path, model), (path_of_one, layer) = models.items()
    mine, one, multiply = Ours(model, length), Ours(layer, length), products(model, length)

    def round_of_ours() -> dict[str, float]:
        # Forward and products in turn: what slows the machine for a while slows both.
        forward, alone = zip(*((least(mine.run_forward, 1), least(multiply, 1)) for _ in range(repeats)))
        return {
            "forward": min(forward),
            "products": min(alone),
            "training_step": mine.time_training(repeats),
            "training_step_of_one_layer": one.time_training(repeats),
            "decoding_step": mine.time_decoding(repeats),
        }

    first = round_of_ours()
    other = run_theirs(path, name, length, repeats, limit)
    other["training_step_of_one_layer"] = run_theirs(path_of_one, name, length, 1, limit).get("training_step")
    ours = {what: min(t, first[what]) for what, t in round_of_ours().items()}
    alone = ours.pop("products")
    checksum = float(np.abs(np.asarray(mine.forward(mine.params, mine.tokens[:, :-1]), np.float64)).mean())
    row: dict[str, Any] = {
        "ours_ms": {what: round(t, 2) for what, t in ours.items()},
        "transformers_ms": {
            what: round(t, 2) if isinstance(t, float) else t for what, t in other.items() if what != "checksum"
        },
        "times_faster": {what: round(other[what] / ours[what], 2) for what in RUNS if other.get(what)},
        "products_ms": round(alone, 2),
        "others_ms": {what: round(least(run, repeats), 2) for what, run in others(model, length).items()},
        "forward_over_products": round(ours["forward"] / alone, 2),
        "forward_tokens_per_second": round(1e3 * length / ours["forward"], 1),
        "training_temporary_mib": round(mine.training_memory() / 2**20, 1),
        "counted_1e9": {what: round(value, 3) for what, value in mine.counted().items()},
    }
    if "checksum" in other:
        row["mean_absolute_logit_relative_difference"] = abs(checksum - other["checksum"]) / other["checksum"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mamba_130m")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for transformers' side of one length")
    parser.add_argument("--output", type=pathlib.Path, help="default benchmarks/results/<platform>/<family>.json")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        theirs(args.theirs, args.model, args.lengths[0], args.repeats)
        return
    import jax

    import zoo

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {
            f"{folder}/whole.safetensors": zoo.create(args.model),
            f"{folder}/layer.safetensors": zoo.create(args.model, depth=1),
        }
        for path, model in models.items():
            zoo.save(model, path, naming="hf")
        for length in args.lengths:
            rows[str(length)] = measure(models, args.model, length, args.repeats, args.limit)
            print(length, json.dumps(rows[str(length)], indent=1), flush=True)
    report: dict[str, Any] = {
        "model": args.model,
        "batch": 1,
        "dtype": "float32",
        "jax": jax.__version__,
        "cores": os.cpu_count(),
        "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
        "load_average_at_end": os.getloadavg()[0],
    }
    output = (
        args.output
        or pathlib.Path(__file__).parent / "results" / jax.default_backend() / f"{zoo.variant(args.model).family}.json"
    )
    earlier = json.loads(output.read_text()) if output.exists() else {}
    before = earlier["lengths"] if earlier.get("model") == args.model else {}
    for length in before.keys() & rows.keys():
        old = before[length]
        rows[length]["forward_over_products_before"] = [
            *old.get("forward_over_products_before", []),
            old["forward_over_products"],
        ]
    report["lengths"] = before | rows
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
