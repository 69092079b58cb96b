"""Long Range Arena: what mixers learn of long sequences in one encoder with equal parameters and budget, and at what
speed and memory.

    python -m benchmarks.long_range_arena [--task=listops,...] [--mixers=MIXER,...] [--protocol=small|paper] [--quick]

    small    listops      up to 96 tokens, depth 4
             pixels       digits of 8 x 8 pixels
             pathfinder   12 x 12 pixels, paths of 3 dashes; only if named
    paper    listops, text, image, pathfinder, path_x, with the authors' models and recipes: configs/long_range_arena.py

The small protocol is two blocks of 64 features on sequences of some 100 tokens, for machines without an accelerator: a
run takes minutes of one core. In so few steps no mixer learns its Pathfinder, so that part is left out unless
``--task=pathfinder`` names it. The MLP is as wide as gives the model the number of parameters of the one with
plain attention (:mod:`training.comparison`), in the paper's protocol too, whose authors allow a tenth more.
``--path=DIR`` is the data folder for a part of the paper's protocol that is not generated. Generated images of
Pathfinder are kept in ~/.cache/mixer_zoo.

Every row is written at once to benchmarks/results/<platform>/long_range_arena.json (``_paper``, ``_quick``): accuracy
on the test split, the curve, parameters, operations, steps a second, and peak memory, of the device or else of a
process of its own for each row. The same command continues where it was cut short; a mixer that fails gets a row that
says so. At the end come a CSV file and a picture, docs/pictures/long_range_arena.svg, and ``python -m
docs.long_range_arena`` writes the page.

``--quick``: four mixers and few steps, five minutes on two cores; it shows that everything runs, and what a step costs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import rows as shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK: Mapping[str, Any] = {
    "mixers": ("attention", "linear_attention", "nystrom_attention", "fourier_mixing"),
    "steps": {"listops": 60, "pixels": 60, "pathfinder": 40},
}
DEFAULT = (
    "attention", "nystrom_attention", "synthesizer_attention", "linear_attention", "performer", "cosformer",
    "flow_attention", "fourier_mixing", "s4d", "mamba2", "gated_delta_net", "hgrn2",
)  # fmt: skip
"""Mixers that are compared where none are named."""


def work() -> None:
    """The process that makes rows."""
    from training import comparison

    def do(job: shared.Job) -> shared.Row:
        row = comparison.run(job)
        return {**row, "steps_per_second": round(1 / row["step_seconds"], 3)} if "step_seconds" in row else row

    shared.serve(do)


def _arguments() -> argparse.ArgumentParser:
    parser = shared.parser(__doc__, "the small protocol in five minutes on two cores", float("inf"))
    parser.add_argument(
        "--task", help="parts, separated by commas; default all that need no data of the user's, less small Pathfinder"
    )
    parser.add_argument("--mixers", help=f"separated by commas; default {','.join(DEFAULT)}")
    parser.add_argument("--protocol", choices=("small", "paper"), default="small")
    parser.add_argument("--steps", type=int, help="of every run; default those of the part")
    parser.add_argument("--path", help="a folder of data, for one part of the paper's")
    return parser


def name_of(given: argparse.Namespace) -> str:
    """The name of the files."""
    return "long_range_arena" + ("_paper" if given.protocol == "paper" else "_quick" if given.quick else "")


def wanted(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The jobs that are asked for.

    Raises:
      ValueError: an unknown name, near ones given, or options that do not go together.
    """
    from suggestions import unknown
    from training import comparison
    from training.problems import LONG_RANGE, LONG_RANGE_PAPER

    if given.quick and given.protocol == "paper":
        raise ValueError("--quick is a form of the small protocol")
    if given.steps is not None and given.steps < 1:
        raise ValueError(f"--steps={given.steps}: at least 1")
    parts = (
        {name.removeprefix("paper_"): name for name in LONG_RANGE_PAPER}
        if given.protocol == "paper"
        else {name: name for name in LONG_RANGE}
    )
    left_out = ("text", "image") if given.protocol == "paper" else () if given.quick else ("pathfinder",)
    tasks = given.task.split(",") if given.task else [part for part in parts if part not in left_out]
    for task in tasks:
        if task not in parts:
            raise ValueError(unknown(f"part of the {given.protocol} protocol", task, parts))
    if given.path and (given.protocol != "paper" or len(tasks) != 1):
        raise ValueError("--path=DIR is for one part of --protocol=paper, named with --task=")
    mixers = given.mixers.split(",") if given.mixers else QUICK["mixers"] if given.quick else DEFAULT
    comparison.check(mixers)
    jobs = []
    for seed in shared.seeds(given):
        for task in tasks:
            steps = given.steps or (QUICK["steps"][task] if given.quick else None)
            jobs += comparison.jobs(mixers, [parts[task]], [seed], steps)
    return [{**job, **({"path": given.path} if given.path else {})} for job in jobs]


def measure(given: argparse.Namespace) -> None:
    """Makes the rows that are missing, and all files.

    Raises:
      ValueError: an unknown name, near ones given, or rows that there was no time for.
    """
    from training import comparison

    def do(job: shared.Job, worker: Any, results: Any) -> shared.Row:
        try:
            return worker.run(job, min(given.row_seconds, 1e9))
        finally:
            worker.end()  # the peak of a process is that of all its rows

    shared.make(
        given, "benchmarks.long_range_arena", name_of(given), wanted(given), {"protocol": given.protocol}, do, draw,
        lambda task: f"{task}: {comparison.problem(task).about}",
    )  # fmt: skip


def draw(rows: Sequence[shared.Row]) -> dict[str, Figure]:
    """The picture: a panel for each part, and accuracy over its standing."""
    from training import standings

    return {"": standings.draw(rows, list(dict.fromkeys(row["job"]["task"] for row in rows)))}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    shared.run(_arguments().parse_args(arguments), work, measure)


if __name__ == "__main__":
    main()
