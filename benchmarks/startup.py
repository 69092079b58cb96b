"""What it takes until a model runs: import, creation, loading, tracing, compiling, first step and first token.

``python -m benchmarks.startup`` writes benchmarks/results/<platform>/startup.json after each side of a row, and keeps
rows that it does not measure. A row is a model; each side of it runs in fresh processes without a compilation cache:
this tree; with ``--baseline=COMMIT`` that commit, by the same code in a git worktree of it; and timm or transformers
where they have the model. CPU and wall seconds of

    import        the zoo after ``import jax, flax.nnx`` and ``jax.devices()``; timm or transformers after that of torch
    create        random weights, the first model of the process
    create again  the second
    trace         a gradient step at batch 1: an image, or 512 tokens
    compile       of what was traced
    step          the step's first run; the peer's, which has nothing to compile
    token         the first token after a prompt of 16, with all that is compiled on the way; of language models, in a
                  process of its own

The row "planning" is how long ``zoo.load`` takes to match a file of DINOv2 giant (shapes alone) with the model, with
and without ``naming=``. The row "loading" is a file of ViT-B: reading and copying its bytes, compared with
``zoo.create(weights=)`` and ``zoo.load``, each as the second model of a process of its own; "peak" is the most memory
that the process held beyond what it held before, over the bytes of the parameters. What ``zoo.load`` fills was made,
with random parameters, before.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

HOME = pathlib.Path(__file__).resolve().parents[1]
FIRST = ("maxvit_tiny", "biformer_tiny", "vit_small_patch16_224", "mamba_130m", "titans_mac_170m")
"""Models whose cost is watched; beside them the smallest of each family that has none here."""
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "maxvit_tiny": ("timm", "maxvit_tiny_tf_224", {}),
    "vit_small_patch16_224": ("timm", "vit_small_patch16_224", {}),
    "mamba_130m": ("transformers", "MambaForCausalLM", {"hidden_size": 768, "num_hidden_layers": 24}),
    "bert_tiny": (
        "transformers",
        "BertForMaskedLM",
        {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    ),
}
"""The library, its name of the model, and the options of its configuration."""
STAGES = ("import", "create", "create again", "trace", "compile", "step", "token")
PLANNED, LOADED = "vit_giant_patch14_dinov2", "vit_base_patch16_224"
WAYS = {"planning": ("planning",), "loading": ("bytes", "create(weights=)", "load", "create")}
"""Of rows that are no models: what is measured, each in a process of its own."""
LENGTH, PROMPT = 512, 16


def seconds(call: Callable[[], Any], stage: str) -> Any:
    """What ``call`` returns; prints its seconds at once, so that they outlive a process that is stopped."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    found = {"cpu": round(time.process_time() - cpu, 3), "wall": round(time.perf_counter() - wall, 3)}
    print(json.dumps({stage: found}), flush=True)
    return result


def ours(name: str, token: bool) -> None:
    """Measures a model of the zoo that is on the path: this one or the baseline's, so only what both have is used."""
    import flax.nnx as nnx
    import jax
    import jax.numpy as jnp

    jax.devices()

    def load() -> Any:
        import zoo

        return zoo

    def create() -> Any:
        made = zoo.create(name)
        jax.block_until_ready(nnx.state(made))
        return made

    if token:
        zoo = load()
        if not hasattr(zoo.variant(name).config, "vocab_size"):
            return
        model = create()
        if hasattr(model, "extend"):
            prompt = jnp.arange(PROMPT)[None] % model.config.vocab_size
            seconds(lambda: jax.block_until_ready(zoo.generate(model, prompt, 1)), "token")
        return
    zoo = seconds(load, "import")
    model = seconds(create, "create")
    seconds(create, "create again")
    model.train()
    config = model.config
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    if hasattr(config, "vocab_size"):
        x = jnp.zeros((1, LENGTH), jnp.int32)
    else:
        x = jnp.zeros((1, config.image_size, config.image_size, getattr(config, "in_channels", 3)))

    def loss(params: Any, rest: Any, x: Any) -> Any:
        outputs = jax.tree.leaves(nnx.merge(graphdef, params, rest, copy=True)(x))
        return sum(jnp.mean(jnp.square(y.astype(jnp.float32))) for y in outputs)

    lowered = seconds(lambda: jax.jit(jax.grad(loss)).lower(params, rest, x), "trace")
    compiled = seconds(lowered.compile, "compile")
    seconds(lambda: jax.block_until_ready(compiled(params, rest, x)), "step")


def theirs(name: str, token: bool) -> None:
    """Measures timm's or transformers' model."""
    import jax  # noqa: F401  the module through which timm is imported needs it, and is not to be charged for it
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    library, model_name, options = PEERS[name]
    if library == "transformers":
        import tests.references.live  # noqa: F401  declares what it may ask of torchvision, and is not to be charged

    def load() -> Callable[[], Any]:
        if library == "timm":
            from tests.references.live import timm

            return lambda: timm.create_model(model_name)
        import transformers

        made = getattr(transformers, model_name)
        return lambda: made(made.config_class(**options))

    if token:
        if model_name.endswith("CausalLM"):
            model = load()().eval()
            seconds(lambda: model.generate(torch.arange(PROMPT)[None], max_new_tokens=1, do_sample=False), "token")
        return
    create = seconds(load, "import")
    model = seconds(create, "create")
    seconds(create, "create again")
    model.train()
    x = torch.zeros((1, 3, 224, 224)) if library == "timm" else torch.zeros((1, LENGTH), dtype=torch.long)

    def step() -> None:
        y = model(x)
        (y if library == "timm" else y.logits).square().mean().backward()

    seconds(step, "step")


def planning() -> None:
    """Measures matching a file's names and shapes with a model; nothing is allocated."""
    import numpy as np

    import zoo
    from layers import flatten
    from zoo import weights
    from zoo.registry import abstract

    try:
        from zoo.plan import plan
    except ImportError:
        from zoo.naming import plan  # the baseline's

    def match(naming: str | None) -> Any:
        tensors = weights._tensors(entry, file)[1]
        if hasattr(weights, "_match"):  # the baseline's
            return weights._match(model, entry, tensors, naming, None)
        from zoo.matching import match_file

        return match_file(model, entry, tensors, naming, None, {})

    entry: Any = zoo.variant(PLANNED)
    model: Any = abstract(entry, entry.config)
    model.variant = entry.name
    naming, rules = next(iter(entry.rules.items()))
    lines = plan(rules, {name: tuple(leaf.shape) for name, leaf in flatten(model).items()}, model.config)
    # An array filled with one number.
    file = {
        name: np.broadcast_to(np.float32(0), shape) for line in lines for name, shape in line.released_shapes().items()
    }
    assert match(naming).faults == 0
    seconds(lambda: match(naming), "naming given")
    seconds(lambda: match(None), "naming found")


def peak_memory(reset: bool = False) -> int:
    """The most bytes that the process has held, from now on with ``reset``; 0 where the system does not report them."""
    try:
        if reset:
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:
        return 0


def loading(way: str, path: str) -> None:
    """Measures one way to fill a model, or to copy its bytes, after another model was made and filled."""
    import jax
    import numpy as np
    from flax import nnx

    import zoo

    def ready(model: Any) -> int:
        return sum(array.nbytes for array in jax.tree.leaves(jax.block_until_ready(nnx.state(model))))

    other = zoo.create("vit_nano_patch4_32")
    small = pathlib.Path(path).with_name("small.safetensors")
    zoo.save(other, small)
    zoo.create("vit_nano_patch4_32", weights=small)
    model = zoo.create(LOADED) if way == "load" else None
    calls: dict[str, Callable[[], int]] = {
        "bytes": lambda: np.fromfile(path, np.uint8).copy().nbytes,
        "create(weights=)": lambda: ready(zoo.create(LOADED, weights=path)),
        "load": lambda: ready(zoo.load(model, path)),
        "create": lambda: ready(zoo.create(LOADED)),
    }
    before = peak_memory(reset=True)
    size = seconds(calls[way], way)
    if before and way != "bytes":
        print(json.dumps({f"{way}, peak": round((peak_memory() - before) / size, 2)}), flush=True)


def measured(side: str, name: str, home: pathlib.Path, limit: float, path: str) -> dict[str, Any]:
    """What the processes of one side of a row print within ``limit`` seconds, and the reason if it is incomplete."""
    row: dict[str, Any] = {}
    environment = {**os.environ, "PYTHONPATH": str(home), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    end = time.monotonic() + limit
    for way in WAYS.get(name, ("until the step", "token")):
        # -P: the folder of this file, whose names are those of libraries, stays off the path.
        command = [sys.executable, "-P", str(pathlib.Path(__file__).resolve()), f"--only={name}"]
        command += [f"--measure={side}", f"--way={way}", f"--file={path}"]
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            printed, errors = process.communicate(timeout=max(end - time.monotonic(), 0))
            stopped = errors.strip().splitlines()[-1][:200] if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            printed, errors = process.communicate()
            stopped = f"not done after {limit:.0f} s"
        for line in printed.splitlines():
            if line.startswith("{"):
                row |= json.loads(line)
        if stopped:
            row["stopped"] = stopped
            break
    return row


def smallest_of_each_family(but: Iterable[str]) -> list[str]:
    """For each family without a model in ``but``, the model with the smallest width times depth."""
    import zoo

    def size(name: str) -> int:
        config: Any = zoo.variant(name).config
        numbers = (config.features, getattr(config, "depths", None) or config.depth)
        width, depth = (sum(n) if isinstance(n, tuple) else n for n in numbers)
        return width * depth

    families: dict[str, list[str]] = {}
    for name in zoo.list_models():
        families.setdefault(zoo.variant(name).family, []).append(name)
    seen = {zoo.variant(name).family for name in but}
    return [min(names, key=size) for family, names in sorted(families.items()) if family not in seen]


def ratios(row: dict[str, Any]) -> None:
    """Adds the ratio of the others' CPU seconds to ours for each stage."""
    for side in ("baseline", "peer"):
        found = {}
        for stage, other in row.get(side, {}).items():
            own = row["ours"].get(stage)
            if isinstance(other, dict) and own is not None:
                found[stage] = round(other["cpu"] / max(own["cpu"], 1e-3), 2)
        if found:
            row[f"times_faster_than_{side}"] = found


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[pathlib.Path]:
    """A checkout of a commit that exists while the context is open."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it does not stay where the run is cut short
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder) / "baseline"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", home, commit], cwd=HOME, check=True)
        try:
            yield home
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", home], cwd=HOME, check=True)


def revision(name: str) -> str:
    """The abbreviated hash of a commit."""
    command = ["git", "rev-parse", "--short=7", name]
    return subprocess.run(command, cwd=HOME, check=True, capture_output=True, text=True).stdout.strip()


def version(package: str) -> str:
    """The version of a package, or that it is not installed: sides whose packages are missing are rows that say so."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def run(
    names: list[str], home_of: dict[str, pathlib.Path], commits: dict[str, str], limit: float, output: pathlib.Path
) -> None:
    """Measures row by row and side by side, and writes the report after each."""
    versions = {package: version(package) for package in ("jax", "flax", "torch", "timm", "transformers")}
    report: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"rows": {}}
    report |= {"versions": versions, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{LOADED}.safetensors"
        if "loading" in names:
            import zoo

            zoo.save(zoo.create(LOADED), path)
        for name in names:
            row: dict[str, Any] = dict(commits)
            for side, home in home_of.items():
                if side != "peer" or name in PEERS:
                    row[side] = measured(side, name, home, limit, path)
                    print(name, side, json.dumps(row[side]), flush=True)
                    ratios(row)
                    report["rows"][name] = row
                    report["load_average_at_end"] = os.getloadavg()[0]
                    output.write_text(json.dumps(report, indent=2) + "\n")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = f"{', '.join(FIRST)}, one model of each other family, {', '.join(WAYS)}"
    about = f"rows, commas between; any model may be one; default {rows}"
    parser.add_argument("--only", type=lambda text: text.split(","), help=about)
    parser.add_argument("--baseline", help="a commit of this repository that is measured beside this tree")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one side of one row")
    parser.add_argument("--output", type=pathlib.Path, help="default benchmarks/results/<platform>/startup.json")
    parser.add_argument("--measure", choices=("ours", "baseline", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.measure:
        (name,) = args.only
        if name == "planning":
            planning()
        elif name == "loading":
            loading(args.way, args.file)
        else:
            (theirs if args.measure == "peer" else ours)(name, args.way == "token")
        return
    import jax

    import zoo

    names = args.only or [*FIRST, *smallest_of_each_family(FIRST), *WAYS]
    if unknown := sorted(set(names) - {*zoo.list_models(), *WAYS}):
        parser.error(f"unknown rows {', '.join(unknown)}; there are the models of zoo.list_models(), {', '.join(WAYS)}")
    output = args.output or HOME / "benchmarks" / "results" / jax.default_backend() / "startup.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    commits = {"commit": revision("HEAD")}
    if args.baseline is None:
        run(names, {"ours": HOME, "peer": HOME}, commits, args.limit, output)
        return
    commits["baseline_commit"] = revision(args.baseline)
    with worktree(args.baseline) as folder:
        run(names, {"ours": HOME, "peer": HOME, "baseline": folder}, commits, args.limit, output)


if __name__ == "__main__":
    main()
