"""Generation with the weights kept in fewer bits, beside float32, in one run on this device.

``python -m benchmarks.quantization [--only=MODEL,...] [--batch=N]`` writes
benchmarks/results/<platform>/quantization.json after each row, and keeps rows that it does not measure. Random weights,
computation in float32, greedy, prompts of 256 tokens. The contestants take turns, so that what slows the machine for a
while slows all of them:

    float32                as zoo.create makes a model
    int8, bfloat16         zoo.quantize(model, ...), on a CPU with a float32 copy
    ..., no copy           zoo.quantize(model, ..., keep_float=False)
    bfloat16 parameters    zoo.create(..., param_dtype="bfloat16"), which leaves to XLA how they are widened

    token    milliseconds of one step of all rows, from runs of all and of half of the new tokens; the least of all
             rounds of each
    prompt   milliseconds until the first new token, the least of all rounds
    bytes    of the parameters, as files hold them
    memory   bytes of the parameters with what is kept beside them
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.decoding import PROMPT, prompts

MODELS = ("transformer_nano", "gpt2")
BATCHES = (1, 16)
CONTESTANTS = ("float32", "int8", "int8, no copy", "bfloat16", "bfloat16, no copy", "bfloat16 parameters")


def made(name: str, contestant: str) -> Any:
    """The model of a contestant."""
    import zoo

    if contestant == "bfloat16 parameters":
        return zoo.create(name, param_dtype="bfloat16")
    model = zoo.create(name)
    format, _, small = contestant.partition(", ")
    return model if format == "float32" else zoo.quantize(model, format, keep_float=False if small else None)


def in_turn(runs: dict[str, Callable[[int], Any]], new: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a token and of the prompt for each of ``runs``, which are given a number of new tokens."""
    counts = (new, new // 2 + 1, 1)
    took: dict[str, dict[int, float]] = {label: {} for label in runs}
    for turn in range(rounds + 1):
        for label, run in runs.items():
            for count in counts:
                start = time.perf_counter()
                run(count)
                spent = time.perf_counter() - start
                if turn:  # the first round compiles
                    took[label][count] = min(spent, took[label].get(count, spent))
    return {
        label: {
            "token": round(1e3 * (times[new] - times[new // 2 + 1]) / (new - new // 2 - 1), 3),
            "prompt": round(1e3 * times[1], 1),
        }
        for label, times in took.items()
    }


def measure(name: str, batch: int, new: int, rounds: int) -> dict[str, Any]:
    """The row of one model and batch."""
    import zoo
    from zoo.quantization import copies, sizes

    models = {contestant: made(name, contestant) for contestant in CONTESTANTS}
    tokens = prompts(batch, models["float32"].config.vocab_size)

    def runner(model: Any) -> Callable[[int], Any]:
        return lambda count: zoo.generate(model, tokens, count, temperature=0, stop=())

    times = in_turn({contestant: runner(model) for contestant, model in models.items()}, new, rounds)
    if noisy := [contestant for contestant, found in times.items() if found["token"] <= 0]:
        raise RuntimeError(
            f"{name}, batch {batch}: half of the tokens took as long as all of {', '.join(noisy)}: the machine is "
            "busy, or --new too small"
        )
    plain = times["float32"]
    return {
        "bytes": {contestant: sizes(model)[0] for contestant, model in models.items()},
        "memory": {contestant: sizes(model)[0] + copies(model) for contestant, model in models.items()},
        "milliseconds": times,
        "times_faster_than_float32": {
            contestant: {what: round(plain[what] / found[what], 2) for what in plain}
            for contestant, found in times.items()
        },
        "new": new,
        "rounds": rounds,
        "versions": {package: importlib.metadata.version(package) for package in ("jax", "flax")},
        "cores": os.cpu_count(),
        "load_average_at_end": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"models, separated by commas, of: {', '.join(MODELS)}")
    parser.add_argument("--batch", type=int, choices=BATCHES, help="this batch only")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.new < 8:
        parser.error(f"--new is at least 8, not {args.new}: times are differences of a half of the tokens")
    names = [name.strip() for name in args.only.split(",") if name.strip()] or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join(MODELS)}")
    import jax

    path = pathlib.Path(__file__).parent / "results" / jax.default_backend() / "quantization.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"prompt": PROMPT, "rows": {}}
    for name in names:
        for batch in [args.batch] if args.batch else BATCHES:
            row = measure(name, batch, args.new, args.rounds)
            report["rows"][f"{name}, batch {batch}"] = row
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=2) + "\n")
            print(name, batch, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
