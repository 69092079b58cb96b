"""What a run records and prints: a progress bar, metrics.jsonl, TensorBoard events, environment.json and a table at the
end.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tqdm import tqdm

from training.workdir import environment

with contextlib.ExitStack() as _stack:
    # tensorboardX imports torch where it is installed, although it never gets a tensor here; that takes seconds.
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        _stack.callback(sys.modules.pop, "torch")
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

LINES_APART = 30.0
"""Seconds between progress lines where there is no terminal."""


class Log:
    """Writes the records of one run; silent in all processes but the first.

    Opening it drops the records after ``step``: those steps are about to be repeated.

    Args:
      directory: the working directory, which must exist.
      config: the plain config.
      step: where the run starts or resumes.
      total: steps in the whole run.

    Raises:
      OSError: a record can't be written.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], step: int, total: int) -> None:
        self._leads = jax.process_index() == 0
        self._bar = tqdm(
            total=total, initial=step, unit="step", disable=None if self._leads else True, dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]",
        )  # fmt: skip
        self._total, self._reported = total, -math.inf
        self._begun, self._since = step, time.monotonic()
        if self._leads:
            path = directory / "metrics.jsonl"
            _drop_after(path, step)
            self._file = path.open("a")
            (directory / "tensorboard").mkdir(exist_ok=True)
            # Written synchronously: tensorboardX's own writer has a thread, in which a full disk would go unnoticed.
            self._events = EventsWriter(str(directory / "tensorboard" / "events"))
            self._events.write_event(
                Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
            )
            (directory / "environment.json").write_text(json.dumps(environment(config), indent=2) + "\n")

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._leads:
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():  # the first error is reported
                self._file.close()
                self._events.close()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Records the figures of ``split`` at ``step``; figures that are not finite are null in metrics.jsonl.

        Raises:
          OSError: the record can't be written.
        """
        if not self._leads:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        try:
            self._file.write(json.dumps({"step": step, "split": split, **clean}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._events.write_event(
                    Event(wall_time=time.time(), step=step, summary=scalar(f"{split}/{name}", value))
                )
            self._events.flush()
        except OSError as error:
            raise OSError(
                f"can't write {self._file.name}: {error.strerror or error}. Free space, then run the same command to "
                "continue"
            ) from error

    def progress(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Moves the bar to ``step``; ``values`` are shown next to it. Without a terminal, a line is printed every
        :data:`LINES_APART` seconds.
        """
        shown = "".join(f", {name} {number(value)}" for name, value in (values or {}).items())
        if self._bar.disable:
            now = time.monotonic()
            if shown and now - self._reported > LINES_APART:
                self._reported = now
                left = (now - self._since) / max(step - self._begun, 1) * (self._total - step)
                self.say(f"step {step:,} of {self._total:,}, {duration(left)} left{shown}")
            return
        if shown:
            self._bar.set_postfix_str(shown.removeprefix(", "), refresh=False)
        self._bar.update(step - self._bar.n)

    def unpause(self) -> None:
        """Excludes the time since the last step (compilation) from the estimate of the time left."""
        self._bar.unpause()
        self._since = time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._leads:
            self._bar.write(text, file=sys.stderr)


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # a line cut short when the run was killed
            continue
    path.write_text("".join(kept))


def peak_memory() -> float:
    """Peak memory in MiB: of the fullest device where devices report it, else of this process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(peaks):
        return max(peaks) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def number(value: float) -> str:
    """Formats a figure for the output of a run: four significant digits, from 1,000 on whole with thousands
    separators.
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:#.4g}".rstrip(".")


def duration(seconds: float) -> str:
    """Formats a time in seconds for the output of a run: "5.2 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def table(rows: list[tuple[str, str]]) -> str:
    """Formats rows of two cells as aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
