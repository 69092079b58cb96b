"""Decoding on this device, token by token, compared with transformers with the same weights and with a floor, in one
run.

``python -m benchmarks.decoding [--only=MODEL,...]`` writes benchmarks/results/<platform>/decoding.json after each row,
and keeps rows that it does not measure. Greedy decoding, float32, as many threads as there are cores, at batch sizes of
1 and 16:

    token    milliseconds of one step of all rows, from the time of the second half of the new tokens, so that neither
             the prompt nor compilation is included; the least of several runs
    prompt   milliseconds until the first new token, the least of several runs that end with it; the prompt of an
             encoder-decoder is its source
    floor    the model's matrix products alone, each applied to the result of the one before, for as many steps in one
             loop. It reads every weight once per token; states and cached keys, which a model also reads, are left out

``--prefill`` measures something else: milliseconds until the first new token after one prompt of 4,096 tokens, of
models without a shorter limit ("prefill" in the file). The target is 2 times the speed of the peer.

The target is 3 times the speed of the peer at batch 1 and 2 times at batch 16, or at most 1.25 times the floor. The
transformers model is created with random weights and saved; ours loads that folder, and the tokens that both generate
are compared. Where transformers does not have a model, or needs an accelerator for it, only the floor is compared.
Transformers runs in a process of its own: a crash there, or more than ``--limit`` seconds, is recorded in the row.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PROMPT, LONG = 256, 4096
LONG_PROMPTS = ("mamba_130m", "mamba2_130m", "qwen2.5_0.5b", "gla_340m")
"""Models that are measured after a prompt of ``LONG`` tokens, which should be ``TWICE`` as fast as the peer."""
TWICE = 2.0
BATCHES = {1: 3.0, 16: 2.0}
"""Batch sizes, and the target speed of each in multiples of the peer's."""
NEAR = 1.25
"""The multiple of the floor that also meets the target."""
_COMMON = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
# For each of our models, by name, the class in transformers and the options of its configuration.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba_130m": ("MambaForCausalLM", {"hidden_size": 768, "num_hidden_layers": 24}),
    "mamba2_130m": (
        "Mamba2ForCausalLM",
        {
            "hidden_size": 768,
            "num_hidden_layers": 24,
            "num_heads": 24,
            "head_dim": 64,
            "n_groups": 1,
            "state_size": 128,
            "vocab_size": 50288,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", {}),
    "pythia_160m": (
        "GPTNeoXForCausalLM",
        {
            "vocab_size": 50304,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
    ),
    "qwen2.5_0.5b": (
        "Qwen2ForCausalLM",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "t5_small": ("T5ForConditionalGeneration", {"pad_token_id": 0, "decoder_start_token_id": 0}),
}
ALONE: dict[str, dict[str, int]] = {
    "gla_340m": {},
    "rwkv7_0.1b": {},
    "retnet_1.3b": {"depth": 6},
    "hgrn_1.3b": {"depth": 6},
    "hgrn2_1.3b": {"depth": 6},
    "kda_1.3b": {"depth": 6},
    "xlstm_7b": {"depth": 3},
}
"""Models that are compared with the floor only, some with fewer blocks."""


def prompts(batch: int, vocab_size: int, length: int = PROMPT) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (batch, length))


def peers() -> tuple[Any, Any]:
    """The modules of PyTorch and transformers."""
    from tests.references.live import torch  # declares what transformers may ask of torchvision

    return torch, importlib.import_module("transformers")


def two_times(generate: Callable[[int], Any], new: int, repeats: int) -> dict[str, float]:
    """Milliseconds per token and of the prompt, from runs that generate all, half, and one of the ``new`` tokens; with
    ``new`` = 1 of the prompt alone.
    """
    took: dict[int, float] = {}
    for count in sorted({new, new // 2 + 1, 1}, reverse=True):
        generate(count)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            generate(count)
            times.append(time.perf_counter() - start)
        took[count] = 1e3 * min(times)
    if new == 1:
        return {"prompt": round(took[1], 1)}
    token = (took[new] - took[new // 2 + 1]) / (new - new // 2 - 1)
    return {"token": round(token, 3), "prompt": round(took[1], 1)}


def floor(model: Any, batch: int, steps: int, repeats: int) -> float:
    """Milliseconds of the matrix products of one step; for an encoder-decoder those of its decoder step."""
    import jax
    import jax.numpy as jnp

    from layers import flatten

    tied = model.head is None
    weights = []
    for name, parameter in flatten(model).items():
        table = name.endswith("embedding.embedding")
        once = name.startswith("encoder.") or ".cross.key." in name or ".cross.value." in name
        if once or parameter.ndim != 2 or "position" in name or (table and not tied):
            continue
        if not (table or name.endswith("kernel")):
            continue
        weights.append(jnp.asarray(parameter).T if table else jnp.asarray(parameter))

    @jax.jit
    def run(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        def step(_: int, x: jax.Array) -> jax.Array:
            for weight in weights:
                rows = weight.shape[0]
                x = jnp.tile(x, (1, -(-rows // x.shape[1])))[:, :rows] @ weight
                x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + 1e-6)
            return x[:, :width]

        return jax.lax.fori_loop(0, steps, step, x)

    width = min(weight.shape[1] for weight in weights)
    x = jax.random.normal(jax.random.key(0), (batch, width))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run(weights, x))
        times.append(time.perf_counter() - start)
    return round(1e3 * min(times[1:]) / steps, 3)


def ours(model: Any, batch: int, new: int, repeats: int, length: int = PROMPT) -> tuple[dict[str, float], np.ndarray]:
    """Times of our model, and the tokens of the last run."""
    import zoo

    tokens = prompts(batch, model.config.vocab_size, length)
    made: list[np.ndarray] = []

    def generate(count: int) -> None:
        given = {"source": tokens} if "source" in model.inputs else {"prompt": tokens}
        made[:] = [zoo.generate(model, **given, max_new_tokens=count, temperature=0, stop=()).tokens]

    times = two_times(generate, new, repeats)
    return times, made[0]


def theirs(folder: str, batch: int, new: int, repeats: int, length: int) -> None:
    """Prints times and tokens of the transformers model in ``folder``."""
    torch, transformers = peers()
    torch.set_num_threads(os.cpu_count() or 1)
    reads_source = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = transformers.AutoModelForSeq2SeqLM if reads_source else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.from_numpy(prompts(batch, model.config.vocab_size, length))
    made: list[Any] = []

    def generate(count: int) -> None:
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
        )
        made[:] = [out[:, 1 if reads_source else length :].tolist()]

    print(json.dumps({**two_times(generate, new, repeats), "tokens": made[0]}))


def run_theirs(folder: str, batch: int, new: int, repeats: int, limit: float, length: int = PROMPT) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.decoding", f"--theirs={folder}", f"--batch={batch}"]
    command += [f"--new={new}", f"--repeats={repeats}", f"--length={length}"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"stopped": f"not done after {limit:.0f} s"}
    if done.returncode:
        return {"stopped": f"ended with status {done.returncode}"}
    return json.loads(done.stdout.decode().splitlines()[-1])


def made(name: str, folder: str) -> Any:
    """Our model: with the weights of transformers', which is written to ``folder``, where there is one."""
    import zoo

    if name not in PEERS:
        return zoo.create(name, **ALONE.get(name, {}))
    kind, options = PEERS[name]
    cls: Any = getattr(peers()[1], kind)
    cls(cls.config_class(**{**_COMMON, **options})).save_pretrained(folder)
    return zoo.create(name, weights=folder)


def beside(row: dict[str, Any], times: dict[str, float], tokens: np.ndarray, other: dict[str, Any]) -> None:
    """Adds to a row what transformers took, and how it compares."""
    generated = other.pop("tokens", None)
    if generated is not None:
        row["equal_tokens"] = round(float(np.mean(np.asarray(generated)[:, : tokens.shape[1]] == tokens)), 3)
        row["times_faster"] = {what: round(other[what] / times[what], 2) for what in times}
    row["transformers_ms"] = other


def prefill(name: str, repeats: int, limit: float) -> dict[str, Any]:
    """The row of one model that reads ``LONG`` tokens."""
    with tempfile.TemporaryDirectory() as folder:
        model = made(name, folder)
        times, tokens = ours(model, 1, 1, repeats, LONG)
        row: dict[str, Any] = {"ours_ms": times, "asked": {"times_faster": TWICE}}
        if name in PEERS:
            beside(row, times, tokens, run_theirs(folder, 1, 1, repeats, limit, LONG))
    return row


def measure(name: str, batch: int, new: int, repeats: int, limit: float) -> dict[str, Any]:
    """The row of one model and batch size."""
    with tempfile.TemporaryDirectory() as folder:
        model = made(name, folder)
        # Taking turns, so that a temporary slowdown of the machine affects all of them.
        lowest = floor(model, batch, new // 4, repeats)
        times, tokens = ours(model, batch, new, repeats)
        row: dict[str, Any] = {"ours_ms": times, **ALONE.get(name, {})}
        if name in PEERS:
            beside(row, times, tokens, run_theirs(folder, batch, new, repeats, limit))
        row["floor_ms"] = min(lowest, floor(model, batch, new // 4, repeats))
    row["over_floor"] = round(times["token"] / row["floor_ms"], 2)
    row["tokens_per_second"] = round(1e3 * batch / times["token"], 1)
    row["asked"] = {"times_faster": BATCHES[batch], "or_over_floor": NEAR}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"models, separated by commas, of: {', '.join([*PEERS, *ALONE])}")
    parser.add_argument("--new", type=int, default=256, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for transformers' side of one row")
    parser.add_argument("--batch", type=int, choices=list(BATCHES), help="this batch only")
    parser.add_argument("--prefill", action="store_true", help=f"after a prompt of {LONG} tokens, the first new one")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=PROMPT, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.new < 8 and not args.theirs:
        parser.error(f"--new is at least 8, not {args.new}: times are measured on half of the tokens")
    if args.theirs:
        theirs(args.theirs, args.batch, args.new, args.repeats, args.length)
        return
    known = LONG_PROMPTS if args.prefill else (*PEERS, *ALONE)
    names = [name.strip() for name in args.only.split(",") if name.strip()] or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join(known)}")
    import jax

    path = pathlib.Path(__file__).parent / "results" / jax.default_backend() / "decoding.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"prompt": PROMPT, "rows": {}}

    def keep(part: str, row_name: str, row: dict[str, Any]) -> None:
        row["versions"] = {package: importlib.metadata.version(package) for package in ("jax", "torch", "transformers")}
        row |= {"cores": os.cpu_count(), "load_average_at_end": round(os.getloadavg()[0], 1)}
        report.setdefault(part, {})[row_name] = row
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(row_name, json.dumps(row), flush=True)

    for name in names:
        if args.prefill:
            keep("prefill", name, prefill(name, args.repeats, args.limit))
            continue
        for batch in [args.batch] if args.batch else BATCHES:
            row = measure(name, batch, args.new, args.repeats, args.limit)
            keep("rows", f"{name}, batch {batch}", row | {"new": args.new})


if __name__ == "__main__":
    main()
