"""The page of speeds, from the files under benchmarks/results/cpu: ``python -m docs.speed`` writes docs/speed.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.vision import families, means
from benchmarks.vision_peers import PEERS
from docs.catalogue import table
from docs.results import HOME
from docs.speed_of_mixers import Report, growth, mixers, number, sparse

RESULTS = HOME / "benchmarks" / "results" / "cpu"
PAGE = HOME / "docs" / "speed.md"
HEAD = """# Speed on a CPU, measured

Written by `python -m docs.speed` from the files under `benchmarks/results/cpu`; not edited by hand. Two cores, float32.
Each row was measured in one run together with its peer, taking turns; times are the least of several runs, in
milliseconds. A ratio above 1 means that ours is faster. Rows of one table may be from different days and older than the
code: compare along a row. Where a figure is missing, the peer did not finish in the time that the script gave it.
Losses stay in the tables.
"""


def _load(report: Report) -> str:
    """The load of the machine and its malloc settings, where the report has them."""
    load = f"; load average at the end {report['load_average_at_end']:.1f}" if "load_average_at_end" in report else ""
    return load + (
        f"; `GLIBC_TUNABLES={report['malloc']}` on both sides" if report.get("malloc", "default") != "default" else ""
    )


def vision(report: Report) -> str:
    """Vision models compared with timm and the authors' code: the families, and what was also compiled by PyTorch."""
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    rates = {
        side: [row[side]["product"] for row in report["milliseconds"].values() if "product" in row.get(side, {})]
        for side in ("ours", "eager")
    }
    product = ""
    if all(rates.values()):
        product = (
            f" A matrix product by itself reached {max(rates['ours']):.0f}e9 operations per second in JAX and "
            f"{max(rates['eager']):.0f}e9 in PyTorch."
        )
    parts = [f"## Vision models\n\n`python -m benchmarks.vision`, {versions}{_load(report)}.{product}\n"]
    if any("family" in row for row in report["milliseconds"].values()):
        parts.append(_families(report))
    rows = []
    for name, row in report["milliseconds"].items():
        if "compile" not in row and "family" in row:
            continue
        for what, label in _PARTS.items():
            times = [row[side].get(what) for side in ("ours", "eager", "compile")]
            ratios = [row.get(f"times_faster_than_{side}", {}).get(what) for side in ("eager", "compile")]
            rows.append([name, label, *map(number, [*times, *ratios])])
    if rows:
        head = ["model", "", "ours, ms", "PyTorch eager, ms", "torch.compile, ms", "times eager", "times torch.compile"]
        parts.append(table(head, rows))
    return "\n".join(parts)


_PARTS = {"forward": "forward pass", "training_step": "training step"}


def _families(report: Report) -> str:
    """The families' rows, their geometric means and the targets that they miss."""
    asked, found = report["asked"], means(report["milliseconds"])
    rows = []
    for name, row in sorted(report["milliseconds"].items(), key=lambda item: (item[1].get("family", ""), item[0])):
        if "family" not in row:
            continue
        times, sides = row.get("times_faster_than_eager", {}), [row.get(side, {}) for side in ("ours", "eager")]
        cells: list[float | None] = []
        for what in _PARTS:
            cells += [*(side.get(what) for side in sides), times.get(what)]
        cells += [*(side.get("memory") for side in sides), row.get("memory_of_eager")]
        missed = [label for what, label in _PARTS.items() if what in times and times[what] < asked[what]["each"]]
        parts = zip(("", "ours ", "PyTorch "), (row, *sides), strict=True)
        stopped = [f"{who}{part['stopped']}" for who, part in parts if "stopped" in part]
        apart = sides[1].get("largest_relative_difference", 0.0)
        said = [*stopped, *([f"missed: {', '.join(missed)}"] if missed else [])]
        said += [f"logits differ by {apart:.1g}"] if apart > 1e-3 else []
        rows.append([row["family"], name, row["peer"], *map(number, cells), "; ".join(said)])
    targets = [
        f"{label} {number(found.get(what)) or 'not measured'} (target {asked[what]['mean']:g}"
        f"{', missed' if found.get(what, math.inf) < asked[what]['mean'] else ''})"
        for what, label in _PARTS.items()
    ]
    each = " and ".join(f"{asked[what]['each']:g} times in the {label}" for what, label in _PARTS.items())
    text = (
        "The smallest published size of each family, beside timm's or the authors' code in PyTorch eager. The target "
        f"of each is at least {each}. Geometric means of the {len(families(report['milliseconds'], 'forward'))} that "
        f"were measured: {' and '.join(targets)}. Memory is what training steps need at most beyond parameters and "
        "images, in MiB: gradients, AdamW's moments and what the backward pass keeps."
    )
    head = ["family", "model", "peer", "forward, ms", "PyTorch", "times", "training step, ms", "PyTorch", "times"]
    head += ["memory, MiB", "PyTorch", "of it", ""]
    left = [name for name in PEERS if f"{name}, batch 8" not in report["milliseconds"]]
    more = f" Not measured yet: {', '.join(left)}." if left else ""
    return f"{text}\n\n{table(head, rows)}\n{_TRIED}{more}\n"


_TRIED = (
    "Most of the time of a ResNet's training step goes into the gradients of 3x3 convolutions with respect to their "
    "kernels: on the large maps of the first stages XLA takes longer for them than for the forward pass. [Tried and "
    "not kept](explained/not_kept.md) has what else was measured."
)


def mamba(report: Report) -> str:
    """Mamba compared with transformers' PyTorch path, and with its matrix products alone."""
    rows = []
    for length, row in report["lengths"].items():
        for what, ours in row["ours_ms"].items():
            theirs = row["transformers_ms"].get(what)
            ratio = row["times_faster"].get(what)
            theirs_shown = number(theirs) if theirs else row["transformers_ms"].get("stopped", "")
            before = ", ".join(map(number, row.get("forward_over_products_before", [])))
            over = (
                number(row["forward_over_products"]) + (f" (earlier runs: {before})" if before else "")
                if what == "forward"
                else ""
            )
            rows.append([length, what.replace("_", " "), number(ours), theirs_shown, number(ratio), over])
    head = ["tokens", "", "ours, ms", "transformers, ms", "times transformers", "over its matrix products alone"]
    return (
        f"## {report['model']}\n\n`python -m benchmarks.mamba`, jax {report['jax']}{_load(report)}.\n\n"
        f"{table(head, rows)}"
    )


def decoding(report: Report) -> str:
    """Decoding compared with transformers, and with a floor of matrix products alone."""
    rows = []
    for name, row in report["rows"].items():
        other, asked = row.get("transformers_ms", {}), row["asked"]
        times = row.get("times_faster", {})
        missed = times.get("token", 0) < asked["times_faster"] and row["over_floor"] > asked["or_over_floor"]
        cells = [row["ours_ms"]["token"], other.get("token"), times.get("token"), row["floor_ms"], row["over_floor"]]
        prompt = [row["ours_ms"]["prompt"], other.get("prompt"), times.get("prompt")]
        named = f"{name}, {row['depth']} blocks" if "depth" in row else name
        rows.append(
            [named, *map(number, cells), other.get("stopped", "missed" if missed else ""), *map(number, prompt)]
        )
    text = (
        f"`python -m benchmarks.decoding`: greedy decoding after a prompt of {report['prompt']} tokens, one token for "
        "every row of the batch in each step. The"
    )
    more = (
        " floor is the model's matrix products alone, one after the other. The target is 3 times the speed of "
        "transformers at batch 1 and 2 times at"
    )
    more += " batch 16, or at most 1.25 times the floor."
    head = ["model", "token, ms", "transformers, ms", "times", "floor, ms", "times the floor", ""]
    head += ["prompt, ms", "transformers, ms", "times"]
    parts = [f"## Decoding\n\n{text}{more}\n\n{table(head, rows)}"]
    if found := report.get("prefill"):
        rows = []
        for name, row in found.items():
            other, ratio = row.get("transformers_ms", {}), row.get("times_faster", {}).get("prompt")
            cells = [row["ours_ms"]["prompt"], other.get("prompt"), ratio]
            missed = "missed" if ratio is not None and ratio < row["asked"]["times_faster"] else ""
            rows.append([name, *map(number, cells), other.get("stopped", missed)])
        text = (
            "With `--prefill`: the first new token after one prompt of 4,096 tokens. The target is 2 times the speed."
        )
        parts.append(f"{text}\n\n{table(['model', 'ms', 'transformers, ms', 'times', ''], rows)}")
    return "\n".join(parts)


def titans(report: Report) -> str:
    """Memories: learning in chunks compared with token by token, the same algorithm."""
    rows = []
    for name, row in report["rows"].items():
        for what in ("forward", "gradient"):
            found = row[what]
            times = map(number, (found["chunked_ms"], found["sequential_ms"], found["times_faster"]))
            rows.append([name, what, *times, f"{found['relative_difference']:.0e}"])
    text = (
        f"`python -m benchmarks.titans`, {report['length']} tokens, jax {report['jax']}{_load(report)}: both forms "
        "are the same algorithm."
    )
    text += (
        " Moneta amplifies rounding errors, so float32 does not determine its weights at this length (see the "
        "benchmark's docstring)."
    )
    return (
        f"## Memories that learn\n\n{text}\n\n"
        f"{table(['memory', '', 'in chunks, ms', 'token by token, ms', 'times', 'relative difference'], rows)}"
    )


def scaling(report: Report) -> str:
    """Time and memory against length, LongNet compared with dense attention."""
    forms = ("longnet", "dense")
    found = {form: {row["length"]: row for row in report[form]["rows"]} for form in forms}
    rows = []
    for length in found["longnet"]:
        cells = [
            (f"{row['seconds']:.3g}", f"{row['temporary_bytes'] / 2**20:,.0f}")
            if (row := found[form].get(length))
            else ("", "")
            for form in forms
        ]
        rows.append([f"{length:,}", *cells[0], *cells[1]])
    slopes = [
        f"{form} {report[form]['slope_of_seconds']} in time and {report[form]['slope_of_memory']} in memory"
        for form in forms
    ]
    text = (
        f"`python -m benchmarks.longnet_scaling`, a forward pass, jax {report['jax']}{_load(report)}. Growth "
        f"exponents: {'; '.join(slopes)}."
    )
    head = ["tokens", "LongNet, s", "LongNet, MiB", "dense, s", "dense, MiB"]
    return f"## One layer from thousands of tokens to a million\n\n{text}\n\n{table(head, rows)}"


def collectives(report: Report) -> str:
    """Bytes that devices send each other."""
    found = report["bytes_sent_by_each_device"]
    lengths = list(next(iter(found.values())))
    rows = [
        [name, *(f"{sum(by[n]['training'].values()) / 2**10:,.0f}" if n in by else "" for n in lengths)]
        for name, by in found.items()
    ]
    idle = ", ".join(f"{share:.0%} at a {name}" for name, share in report["idle_share_of_handing_over"].items())
    text = (
        f"`python -m benchmarks.collectives`: KiB that each of {report['devices']} devices sends in one layer's "
        "training step, as compiled."
    )
    more = (
        "Every row includes the sum of the parameters' gradients. Where a memory is handed from device to device, each "
        f"device is idle for part of the time: {idle}."
    )
    return (
        f"## Sequences split over devices\n\n{text} {more}\n\n"
        f"{table(['layer', *(f'{int(n):,} tokens' for n in lengths)], rows)}"
    )


def startup(report: Report) -> str:
    """Time until a model runs, compared with an earlier commit and the libraries that have the model."""

    def cell(found: Report | None) -> str:
        return f"{found['cpu']:.2f} ({found['wall']:.2f})" if found else ""

    sides = ("ours", "baseline", "peer")
    stages, loaded, alone = [], [], {}
    for name, row in report["rows"].items():
        found = [row.get(side, {}) for side in sides]
        if not any(found[1:]) and "create" in found[0]:
            alone[name] = found[0]
            continue
        for stage in dict.fromkeys(stage for each in found for stage, value in each.items() if isinstance(value, dict)):
            cells = [cell(each.get(stage)) for each in found]
            if name == "loading":
                loaded.append([stage, *cells[:2], *(number(each.get(f"{stage}, peak")) for each in found[:2])])
                continue
            ratios = [number(row.get(f"times_faster_than_{side}", {}).get(stage)) for side in sides[1:]]
            stages.append([name, stage, *cells, *ratios])
        for side, each in zip(("ours", "before", "the peer"), found):
            if "stopped" in each:
                stages.append([name, f"{side}: {each['stopped']}", *[""] * 5])
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    commits = sorted({row["baseline_commit"] for row in report["rows"].values() if "baseline_commit" in row})
    text = f"`python -m benchmarks.startup`, {versions}{_load(report)}. CPU seconds, wall-clock seconds in parentheses."
    more = (
        f'"Before" is commit {", ".join(commits)}; the peer is timm or transformers, eager. Ratios are of CPU seconds.'
    )
    head = ["model", "", "ours", "before", "peer", "times before", "times the peer"]
    parts = [f"## Until a model runs\n\n{text} {more}\n\n{table(head, stages)}"]
    if loaded:
        head = ["a file of ViT-B", "ours", "before", "peak over its parameters", "before"]
        parts.append(f"Peak is the memory in addition to what the process held before.\n\n{table(head, loaded)}")
    if alone:
        parts.append(_of_families(alone, report["rows"].get("maxvit_tiny", {}).get("ours", {})))
    return "\n".join(parts)


MOST_TO_COMPILE = 1.5
"""How many times as long as MaxViT-T's a training step may take to trace and compile."""


def _of_families(rows: Mapping[str, Report], maxvit: Report) -> str:
    """The table of models that are measured alone, one of a family."""

    def until_compiled(row: Report) -> float | None:
        return row["trace"]["cpu"] + row["compile"]["cpu"] if "compile" in row else None

    whole, cells = until_compiled(maxvit), []
    for name, row in rows.items():
        own = until_compiled(row)
        ratio = own / whole if own and whole else None
        missed = "missed" if ratio is not None and ratio > MOST_TO_COMPILE else ""
        seconds = (row.get(stage, {}).get("cpu") for stage in ("create", "trace", "compile", "step"))
        cells.append([name, *map(number, seconds), number(ratio), row.get("stopped", missed)])
    text = (
        "One model of other families, alone: CPU seconds, and those of tracing and compiling over MaxViT-T's, which "
        f"should be at most {MOST_TO_COMPILE:g}."
    )
    return f"{text}\n\n{table(['model', 'create', 'trace', 'compile', 'step', 'over MaxViT-T', ''], cells)}"


def second_run(report: Report) -> str:
    """Until a second run of a config trains."""
    rows = []
    for name, row in report["rows"].items():
        for side, label in (("ours", ""), ("baseline", "before")):
            if side in row:
                found = [row[side][mark] for mark in ("first", "ready", "traced", "trains")]
                cells = [f"{each['wall']:.2f} ({each['cpu']:.2f})" for each in found]
                missed = "missed" if found[-1]["wall"] > report["asked"] else ""
                rows.append([f"configs/{name}.py", label, *cells, missed])
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    text = (
        f"`python -m benchmarks.second_run`, {versions}{_load(report)}. Seconds since `train.py` began, CPU seconds in "
        f"parentheses. The target is {number(report['asked'])} s until it trains."
    )
    head = ["config", "", "first run, trains", "second: ready", "traced", "trains", ""]
    return f"## Until a second run trains\n\n{text}\n\n{table(head, rows)}"


def convolutions(report: Report) -> str:
    """The forms of the convolutions compared with nnx.Conv."""
    rows = []
    for op, sizes in report["rows"].items():
        for size, row in sizes.items():
            forms = [name for name, found in row.items() if isinstance(found, dict)]
            ratio = number(row["times_faster_than_nnx.Conv"])
            rows.append([op, size, row["chosen"], *(_form(row[name]) for name in forms), ratio])
    head = ["op", "taps a side", "chosen", *forms, "times nnx.Conv"]
    text = f"`python -m benchmarks.convolutions`, jax {report['jax']}{_load(report)}: the gradient of one layer,"
    more = "64 channels and a batch of 8, on a grid of 28x28 or a causal sequence of its 784 positions."
    more += " Milliseconds, and CPU seconds of tracing and compiling in parentheses."
    return f"## Depth-wise and short convolutions\n\n{text} {more}\n\n{table(head, rows)}"


def quantization(report: Report) -> str:
    """Weights in fewer bits compared with float32."""
    rows = []
    for name, row in report["rows"].items():
        plain = row["bytes"]["float32"]
        for label, times in row["milliseconds"].items():
            size, faster = row["bytes"][label], row["times_faster_than_float32"][label]
            rate = 1e3 * int(name.rpartition(" ")[2]) / times["token"]
            cells = [faster["token"], times["prompt"], faster["prompt"]]
            held = [f"{size / 1e6:,.1f}", f"{plain / size:.2f}", f"{row['memory'][label] / 1e6:,.1f}"]
            rows.append([name, label, *held, number(rate), *map(number, cells)])
    versions = next(iter(report["rows"].values()))["versions"]
    text = (
        f"`python -m benchmarks.quantization`, jax {versions['jax']}: `zoo.quantize(model, ...)` compared with the "
        f"same model in float32, taking turns; random weights, greedy decoding after a prompt of {report['prompt']} "
        "tokens, computation in float32. On a CPU a float32 copy stays in memory unless `keep_float=False` "
        'is given, here "no copy". The last contestant has `param_dtype="bfloat16"`, which XLA widens as it chooses.'
    )
    head = ["model", "weights", "file, MB", "times smaller", "memory, MB", "tokens per second", "times float32"]
    head += ["prompt, ms", "times float32"]
    return f"## Smaller weights\n\n{text}\n\n{table(head, rows)}"


def rematerialization(report: Report) -> str:
    """The rematerialization policies compared with none."""
    asked = ((0.7, 1.15), (0.4, 1.4))
    rows = []
    for name, row in report["rows"].items():
        size = f"{row['batch']}" + (f" x {row['tokens']}" if row["tokens"] else "")
        for form, found in row["forms"].items():
            cells = [found[part] for part in ("peak", "of_the_peak", "step", "times_the_step")]
            met = [f"{peak}" for peak, time in asked if cells[1] <= peak and cells[3] <= time]
            rows.append([name, size, form, *map(number, cells), ", ".join(met)])
    text = (
        "`python -m benchmarks.rematerialization`: the gradient of a model as made, and with each policy, which on a "
        "CPU needs `scan=True` under jax 0.10. The peak is what the compiled program needs, parameters and gradients "
        "included. The targets are 0.7 of the peak in 1.15 times the time with one policy, and 0.4 in 1.4 times with "
        "another; the last column says which of the two a policy meets."
    )
    head = ["model", "batch", "`remat`", "peak, MiB", "of the peak", "step, ms", "times the step", "meets"]
    return f"## Rematerialization\n\n{text}\n\n{table(head, rows)}"


def input_pipeline(report: Report) -> str:
    """Images per second of the input pipeline, compared with those of a training step."""
    row = report["images_per_second"]
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    text = (
        f"`python -m benchmarks.input_pipeline`, {versions}{_load(report)}: JPEG files from folders of classes, random "
        f"crops of 224 pixels, RandAugment, {report['workers']} workers, and the training step of {report['model']}, "
        f"{report['batch_size']} images a batch. The target is {number(row['asked'])} times as many images as the "
        f"step takes{'' if row['times_the_step'] >= row['asked'] else ': missed'}. Fed by the pipeline, which "
        f"shares the cores with it, the step takes {number(row['fed'])} images per second and "
        f"waits {row['waiting']:.1%} of the time."
    )
    cells = [row["ours"], row["timm"], row["times_timm"], row["step"], row["times_the_step"]]
    head = ["ours, images/s", "timm, images/s", "times timm", "the step, images/s", "times the step"]
    return f"## The input of training\n\n{text}\n\n{table(head, [[*map(number, cells)]])}"


def _form(found: Report) -> str:
    time = number(found.get("run_ms")) or found["stopped"]
    return f"{time} ({found['compile_cpu_s']:.2f})" if "compile_cpu_s" in found else time


SECTIONS: dict[str, Callable[[Report], str]] = {
    "vision": vision,
    "mamba": mamba,
    "decoding": decoding,
    "quantization": quantization,
    "rematerialization": rematerialization,
    "input_pipeline": input_pipeline,
    "mixers_speed": mixers,
    "sparse": sparse,
    "growth": growth,
    "titans": titans,
    "longnet_scaling": scaling,
    "collectives": collectives,
    "convolutions": convolutions,
    "startup": startup,
    "second_run": second_run,
}


def page(folder: Path = RESULTS) -> str:
    """All of the page: a section for each file that is there."""
    found = {name: folder / f"{name}.json" for name in SECTIONS}
    return "\n".join(
        [HEAD, *(SECTIONS[name](json.loads(path.read_text())) for name, path in found.items() if path.exists())]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
