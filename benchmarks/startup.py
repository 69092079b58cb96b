"""What it takes until a model runs: import, creation, tracing, compiling, first step and first token, in CPU and wall seconds.

``python -m benchmarks.startup`` writes benchmarks/results/<platform>/startup.json after each row; rows of this commit that are there are
not measured again (``--again``). Each side of a row is a fresh process without a compilation cache: this tree; with ``--baseline=COMMIT``
that commit's, by the same code in a worktree of it; and timm or transformers where they have the model.

    import       of the zoo after ``import jax, flax.nnx``; of timm or transformers after ``import torch``
    create       random weights, the first model of the process
    create_again the second
    trace        a gradient step at batch 1: an image, or 512 tokens
    compile      of what was traced
    step         the step's first run; the peer's, which has nothing to compile
    token        the first token after a prompt of 16, everything compiled on the way; of language models, in a process of its own
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

HOME = pathlib.Path(__file__).resolve().parents[1]
FIRST = ("maxvit_tiny", "biformer_tiny", "vit_small_patch16_224", "mamba_130m", "titans_mac_170m")
"""Models whose cost is watched; beside them the smallest of each family that has none here."""
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "maxvit_tiny": ("timm", "maxvit_tiny_tf_224", {}),
    "vit_small_patch16_224": ("timm", "vit_small_patch16_224", {}),
    "mamba_130m": ("transformers", "Mamba", {"hidden_size": 768, "num_hidden_layers": 24}),
    "bert_tiny": ("transformers", "Bert", {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}),
}
"""The library, its name of the model, and the options of its configuration."""
STAGES = ("import", "create", "create_again", "trace", "compile", "step", "token")
LENGTH, PROMPT = 512, 16
Seconds = dict[str, float]


class Clock:
    """Seconds of the stages that are run in turn."""

    def __init__(self, stages: Iterable[str]):
        self.stages, self.seconds = tuple(stages), dict[str, Seconds]()

    def last(self, *stages: str) -> bool:
        """Whether nothing after these stages is wanted."""
        return not set(self.stages) & set(STAGES[STAGES.index(stages[-1]) + 1 :])

    def run(self, stage: str, call: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = call()
        if stage in self.stages:
            self.seconds[stage] = {"cpu": round(time.process_time() - cpu, 3), "wall": round(time.perf_counter() - wall, 3)}
        return result


def ours(name: str, clock: Clock) -> None:
    """Measures a model of the zoo that is on the path: this one, or the baseline's, so that only what both have is used."""
    import flax.nnx as nnx
    import jax
    import jax.numpy as jnp

    def load() -> Any:
        import zoo

        return zoo

    def create() -> Any:
        made = zoo.create(name)
        jax.block_until_ready(nnx.state(made))
        return made

    zoo = clock.run("import", load)
    if clock.last("import"):
        return
    if "token" in clock.stages:
        model = create()
        if hasattr(model, "extend"):
            prompt = jnp.arange(PROMPT)[None] % model.config.vocab_size
            clock.run("token", lambda: jax.block_until_ready(zoo.generate(model, prompt, 1)))
        return
    model = clock.run("create", create)
    if "create_again" in clock.stages:
        clock.run("create_again", create)
    if clock.last("create", "create_again"):
        return
    model.train()
    config = model.config
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    tokens = hasattr(config, "vocab_size")
    x = jnp.zeros((1, LENGTH), jnp.int32) if tokens else jnp.zeros((1, config.image_size, config.image_size, getattr(config, "in_channels", 3)))

    def loss(params: Any, rest: Any, x: Any) -> Any:
        outputs = jax.tree.leaves(nnx.merge(graphdef, params, rest, copy=True)(x))
        return sum(jnp.mean(jnp.square(y.astype(jnp.float32))) for y in outputs)

    lowered = clock.run("trace", lambda: jax.jit(jax.grad(loss)).lower(params, rest, x))
    compiled = clock.run("compile", lowered.compile)
    clock.run("step", lambda: jax.block_until_ready(compiled(params, rest, x)))


def theirs(name: str, clock: Clock) -> None:
    """Measures timm's or transformers' model."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    library, model_name, options = PEERS[name]

    def load() -> Callable[[], Any]:
        if library == "timm":
            from tests.references.live import timm

            return lambda: timm.create_model(model_name)
        import transformers

        kind = "CausalLM" if model_name == "Mamba" else "MaskedLM"
        made, config = (getattr(transformers, f"{model_name}{suffix}") for suffix in (f"For{kind}", "Config"))
        return lambda: made(config(**options))

    create = clock.run("import", load)
    if clock.last("import"):
        return
    if "token" in clock.stages:
        model = create().eval()
        if hasattr(model, "generate") and library == "transformers" and model.can_generate():
            prompt = torch.arange(PROMPT)[None]
            clock.run("token", lambda: model.generate(prompt, max_new_tokens=1, do_sample=False))
        return
    model = clock.run("create", create)
    if "create_again" in clock.stages:
        clock.run("create_again", create)
    if clock.last("create", "create_again"):
        return
    model.train()
    x = torch.zeros((1, 3, 224, 224)) if library == "timm" else torch.zeros((1, LENGTH), dtype=torch.long)

    def step() -> None:
        y = model(x)
        (y if library == "timm" else y.logits).square().mean().backward()

    clock.run("step", step)


def measured(side: str, name: str, stages: list[str], home: pathlib.Path, limit: float) -> dict[str, Any]:
    """The seconds of each stage, from processes of their own; why one has none."""
    row: dict[str, Any] = {}
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"} | {"PYTHONPATH": str(home)}
    together, apart = [stage for stage in stages if stage != "token"], [stage for stage in stages if stage == "token"]
    for wanted in filter(None, (together, apart)):
        # -P: the folder of this file, whose names are those of libraries, stays off the path.
        command = [sys.executable, "-P", str(pathlib.Path(__file__).resolve()), f"--measure={side}", f"--models={name}", f"--stages={','.join(wanted)}"]
        try:
            done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=limit, check=False)
            end = done.stderr.strip().splitlines()[-1][:200] if done.returncode else ""
            row.update(json.loads(done.stdout.splitlines()[-1]) if not end else {})
        except subprocess.TimeoutExpired:
            end = f"not done after {limit:.0f} s"
        if end:
            row["stopped"] = end
    return row


def smallest_of_each_family(but: Iterable[str]) -> list[str]:
    """The model of least width times depth of each family that ``but`` has none of."""
    import zoo

    def size(name: str) -> int:
        config: Any = zoo.variant(name).config
        width, depth = ((sum(n) if isinstance(n, tuple) else n) for n in (config.features, getattr(config, "depths", None) or config.depth))
        return width * depth

    families: dict[str, list[str]] = {}
    for name in zoo.list_models():
        families.setdefault(zoo.variant(name).family, []).append(name)
    seen = {zoo.variant(name).family for name in but}
    return [min(names, key=size) for family, names in sorted(families.items()) if family not in seen]


def ratios(row: dict[str, Any]) -> None:
    """Adds how many times the CPU seconds of each stage the others take."""
    for side in ("baseline", "peer"):
        both = [stage for stage in STAGES if {"cpu"} <= row.get(side, {}).get(stage, {}).keys() & row["ours"].get(stage, {}).keys()]
        if both:
            row[f"times_faster_than_{side}"] = {stage: round(row[side][stage]["cpu"] / max(row["ours"][stage]["cpu"], 1e-3), 2) for stage in both}


@dataclasses.dataclass
class Worktree:
    """A checkout of a commit, for as long as the context is open."""

    commit: str
    folder: str = ""

    def __enter__(self) -> pathlib.Path:
        self.folder = tempfile.mkdtemp()
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", self.folder, self.commit], cwd=HOME, check=True)
        return pathlib.Path(self.folder)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["git", "worktree", "remove", "--force", self.folder], cwd=HOME, check=True)


def revision(name: str) -> str:
    return subprocess.run(["git", "rev-parse", "--short=7", name], cwd=HOME, check=True, capture_output=True, text=True).stdout.strip()


def run(args: argparse.Namespace, home_of: dict[str, pathlib.Path], report: dict[str, Any]) -> None:
    """Measures row by row, and writes the report after each."""
    for name in args.models:
        old = report["rows"].get(name, {})
        row: dict[str, Any] = old if old.get("commit") == report["commit"] and not args.again else {"commit": report["commit"]}
        for side, home in home_of.items():
            if side == "peer" and name not in PEERS:
                continue
            missing = [stage for stage in args.stages if stage not in row.get(side, {})]
            tried = row.get(f"{side}_tried", [])
            missing = [stage for stage in missing if stage not in tried]
            if missing:
                row[side] = {**row.get(side, {}), **measured(side, name, missing, home, args.limit)}
                row[f"{side}_tried"] = sorted({*tried, *missing}, key=STAGES.index)
                print(name, side, json.dumps(row[side]), flush=True)
        ratios(row)
        report["rows"][name] = row
        report["load_average_at_end"] = os.getloadavg()[0]
        args.output.write_text(json.dumps(report, indent=2) + "\n")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), help=f"default {', '.join(FIRST)}, and one of each other family")
    parser.add_argument("--stages", type=lambda text: text.split(","), default=list(STAGES), help=f"default {','.join(STAGES)}")
    parser.add_argument("--baseline", default="", help="a commit of this repository that is measured beside this tree")
    parser.add_argument("--again", action="store_true", help="measure rows that are there")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one side of one row")
    parser.add_argument("--output", type=pathlib.Path, help="default benchmarks/results/<platform>/startup.json")
    parser.add_argument("--measure", choices=("ours", "baseline", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    unknown = sorted(set(args.stages) - set(STAGES))
    if unknown:
        parser.error(f"unknown stages {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if args.measure:
        clock = Clock(args.stages)
        (theirs if args.measure == "peer" else ours)(args.models[0], clock)
        print(json.dumps(clock.seconds))
        return
    import importlib.metadata

    import jax

    args.models = args.models or [*FIRST, *smallest_of_each_family(FIRST)]
    args.output = args.output or HOME / "benchmarks" / "results" / jax.default_backend() / "startup.json"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    versions = {package: importlib.metadata.version(package) for package in ("jax", "flax", "torch", "timm", "transformers")}
    report: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {"rows": {}}
    report |= {"versions": versions, "cores": os.cpu_count(), "commit": revision("HEAD")}
    if not args.baseline:
        run(args, {"ours": HOME, "peer": HOME}, report)
        return
    report["baseline"] = revision(args.baseline)
    with Worktree(args.baseline) as folder:
        run(args, {"ours": HOME, "baseline": folder, "peer": HOME}, report)


if __name__ == "__main__":
    main()
