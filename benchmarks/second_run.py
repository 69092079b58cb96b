"""How long train.py takes until it trains when the same command is run again, with cached programs.

``python -m benchmarks.second_run [--baseline=COMMIT]`` writes benchmarks/results/<platform>/second_run.json after each
config. A config of this repository is started by ``train.py --config=configs/NAME.py`` in fresh processes and working
directories that share a new cache of compiled programs, and is stopped when its step is compiled. Seconds since the
process began, the least of all runs but the first, CPU seconds in parentheses:

    first     the first run, which compiles
    ready     until the model, the data and the working directory are there
    traced    until the step is traced and its memory estimated
    trains    until the step is lowered and its program loaded from the cache: the first step follows

With a baseline, the two commits take turns; the baseline has a git worktree and a cache of its own.
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
from typing import Any

from benchmarks.startup import HOME, revision, version, worktree

CONFIGS = ("vit", "mamba")
MARKS = {"workdir ": "ready", "a step takes": "traced", "compiled in": "trains"}
"""Lines on standard error, and what they are the end of."""
ASKED = 5.0


def started(config: str, home: pathlib.Path, cache: str) -> dict[str, dict[str, float]]:
    """Seconds of one run until each mark, by the clock and of the CPU.

    Raises:
      ValueError: it ended before it trained.
    """
    environment = {**os.environ, "PYTHONPATH": str(home), "JAX_COMPILATION_CACHE_DIR": cache}
    environment.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", f"--config=configs/{config}.py", f"--workdir={folder}/run"]
        since = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        last = ""
        try:
            for last in process.stderr:
                for begin, mark in MARKS.items():
                    if last.startswith(begin):
                        found[mark] = {"wall": round(time.perf_counter() - since, 2), "cpu": cpu_seconds(process.pid)}
                if "trains" in found:
                    return found
        finally:
            process.kill()
            process.wait()
    raise ValueError(f"configs/{config}.py did not train: {last.strip()}")


def cpu_seconds(process: int) -> float:
    """What a process has used of the CPU; 0 where the system does not say."""
    path = pathlib.Path(f"/proc/{process}/stat")
    if not path.exists():
        return 0.0
    fields = path.read_text().rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 2)


def measure(config: str, home_of: dict[str, pathlib.Path], runs: int) -> dict[str, Any]:
    """The row of a config: each side's first run, and the least of ``runs`` more."""
    with tempfile.TemporaryDirectory() as caches:
        row: dict[str, Any] = {
            side: {"first": started(config, home, f"{caches}/{side}")["trains"]} for side, home in home_of.items()
        }
        for _ in range(runs):
            for side, home in home_of.items():
                for mark, took in started(config, home, f"{caches}/{side}").items():
                    row[side][mark] = min(row[side].get(mark, took), took, key=lambda seconds: seconds["wall"])
    return row


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.second_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(CONFIGS), help="configs, commas between"
    )
    parser.add_argument("--baseline", help="a commit of this repository that is measured beside this tree")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args(given)
    if unknown := [name for name in args.only if not (HOME / "configs" / f"{name}.py").is_file()]:
        parser.error(f"there is no configs/{unknown[0]}.py")
    import jax

    output = HOME / "benchmarks" / "results" / jax.default_backend() / "second_run.json"
    report: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"rows": {}}

    def run(home_of: dict[str, pathlib.Path], commits: dict[str, str]) -> None:
        for config in args.only:
            report["rows"][config] = {**commits, **measure(config, home_of, args.runs)}
            versions = {package: version(package) for package in ("jax", "flax")}
            load = round(os.getloadavg()[0], 1)
            report.update(versions=versions, asked=ASKED, cores=os.cpu_count(), load_average_at_end=load)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=2) + "\n")
            print(config, json.dumps(report["rows"][config]), flush=True)

    if args.baseline is None:
        run({"ours": HOME}, {})
        return
    with worktree(args.baseline) as folder:
        run({"ours": HOME, "baseline": folder}, {"baseline_commit": revision(args.baseline)})


if __name__ == "__main__":
    main()
