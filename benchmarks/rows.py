"""What the commands that compare mixers row by row share: their options, their files, and how they end."""

from __future__ import annotations

import argparse
import functools
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.worker import Worker
    from training.standings import Results

HOME = pathlib.Path(__file__).resolve().parents[1]
PICTURES = HOME / "docs" / "pictures"
Job = dict[str, Any]
Row = dict[str, Any]


def parser(description: str | None, quick: str, row_seconds: float) -> argparse.ArgumentParser:
    """A parser with the options that all of these commands have.

    Args:
      description: of the command.
      quick: what the quick form is.
      row_seconds: default for the seconds that a row may take.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--seeds", help="default 0,1,2, of the quick form 0")
    made.add_argument("--minutes", type=float, default=float("inf"), help="after which no row is started")
    made.add_argument("--row_seconds", type=float, default=row_seconds, help="after which a row counts as too long")
    made.add_argument("--again", action="store_true", help="also rows that are there already")
    made.add_argument("--output", type=pathlib.Path, help="folder for all files; see above where they go without")
    made.add_argument("--quiet", action="store_true", help="no progress")
    made.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return made


def seeds(given: argparse.Namespace) -> Sequence[int]:
    """The seeds that are asked for.

    Raises:
      ValueError: no whole numbers.
    """
    from training import comparison

    return comparison.numbers(given.seeds, "seeds") if given.seeds else (0,) if given.quick else (0, 1, 2)


def make(
    given: argparse.Namespace,
    module: str,
    name: str,
    jobs: Sequence[Job],
    about: Mapping[str, Any],
    do: Callable[[Job, Worker, Results], Row],
    draw: Callable[[Sequence[Row]], Mapping[str, Figure]],
    explain: Callable[[str], str] = str,
) -> None:
    """Makes the rows that are missing, and all files, and prints a table of each task.

    Args:
      given: the arguments of the command.
      module: the command; with ``--work`` it is the process that makes rows.
      name: of the files.
      jobs: what is asked for.
      about: what the file says of all rows, beside the device and the versions.
      do: makes a row of a job, with the process and the rows that there are.
      draw: the pictures of rows, by what follows ``name`` in the names of their files.
      explain: what is printed of a task.

    Raises:
      ValueError: there was no time for some rows.
    """
    import jax

    from benchmarks.worker import Worker
    from training import standings

    folder = given.output or HOME / "benchmarks" / "results" / jax.default_backend()
    device = {"device": jax.devices()[0].device_kind, "cores": standings.cores(), "python": platform.python_version()}
    known = {"quick": given.quick, "rows_asked_for": len(jobs), **device, "jax": jax.__version__, **about}
    results, worker = standings.Results(folder / f"{name}.json", known, fresh=given.again), Worker([module, "--work"])
    say = (lambda _: None) if given.quiet else functools.partial(print, file=sys.stderr, flush=True)

    def row(job: Job) -> Row:
        made = do(job, worker, results)
        late = made.get("fault") == "no answer in time"
        return {"fault": f"not done after {given.row_seconds:.0f} s"} if late else made

    try:
        rows = results.make(jobs, row, say, time.monotonic() + 60 * given.minutes)
    finally:
        worker.end()
    pictures = save(draw(results.rows), given.output or PICTURES, name, module.rpartition(".")[2])
    say(f"written: {', '.join(map(str, (results.path, results.write_csv(), *pictures)))}")
    for task in dict.fromkeys(row["job"]["task"] for row in rows if "task" in row["job"]):
        print(f"{explain(task)}\n{standings.table(rows, task)}\n")
    if len(rows) < len(jobs):
        raise ValueError(
            f"{len(jobs) - len(rows)} of {len(jobs)} rows were not started: run the same command again to continue"
        )


def save(figures: Mapping[str, Figure], folder: pathlib.Path, name: str, salt: str) -> list[pathlib.Path]:
    """Writes pictures as files that are byte-identical for identical rows."""
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / f"{name}{what}.svg": figure for what, figure in figures.items()}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        for path, figure in paths.items():
            figure.savefig(path, metadata={"Date": None})
    return list(paths)


def serve(do: Callable[[Job], Row]) -> None:
    """Runs the worker process that computes rows."""
    import jax

    from benchmarks import worker
    from zoo.commands import keep_compiled

    keep_compiled()
    worker.serve(do, jax.devices()[0].device_kind)


def run(given: argparse.Namespace, work: Callable[[], None], measure: Callable[[argparse.Namespace], None]) -> None:
    """Runs a command: exits with 0 if every row is there, whatever it says, and otherwise with 1 and a message."""
    if given.work:
        work()
        return
    try:
        measure(given)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished rows are kept, run the same command again to continue")
