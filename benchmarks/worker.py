"""Worker processes for the rows of a benchmark: one that hangs, breaks or runs out of memory costs its row only.

Jobs and rows are JSON objects, one per line, on standard input and output.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Job = dict[str, Any]


def serve(do: Callable[[Job], dict[str, Any]], ready: str) -> None:
    """The worker's side: does the jobs from standard input; exits after a fault.

    Args:
      do: computes the row of a job.
      ready: announced once the worker has started, such as the kind of its device.
    """
    print(json.dumps({"ready": ready}), flush=True)
    for line in sys.stdin:
        try:
            row = do(json.loads(line))
        except Exception as fault:  # what does not run is a finding, and no reason to lose the others
            print(json.dumps({"fault": f"{type(fault).__name__}: {str(fault)[:2000]}"}), flush=True)
            return  # what broke may have broken the device's context
        print(json.dumps(row), flush=True)


class Worker:
    """A process that does jobs; it is replaced if it hangs or exits.

    Args:
      module: run with its arguments as the worker; it calls :func:`serve`.
      environment: variables in addition to those of this process.
    """

    def __init__(self, module: Sequence[str], environment: Mapping[str, str] | None = None):
        self.command = [sys.executable, "-m", *module]
        self.environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[str] | None = None

    def run(self, job: Job, seconds: float) -> dict[str, Any]:
        """The job's row; with a "fault" if it takes longer than ``seconds`` or the process exits."""
        end = time.monotonic() + seconds
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=self.environment,
            )
            self._lines: queue.Queue[str | None] = queue.Queue()
            self._noise: list[str] = []
            threading.Thread(target=self._read, args=(self.process, self._lines), daemon=True).start()
            threading.Thread(target=self._listen, args=(self.process, self._noise), daemon=True).start()
            started = self._answer(end)
            if "ready" not in started:
                return started
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        row = self._answer(end)
        if "fault" in row:
            self.end()
        return row

    def end(self) -> None:
        """Ends the process; the next job starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answer(self, end: float) -> dict[str, Any]:
        while True:
            try:
                line = self._lines.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                self.end()
                return {"fault": "no answer in time"}
            if line is None:
                code = self.process.wait() if self.process else None
                self.end()
                return {"fault": f"the process ended with status {code}: {''.join(self._noise)[-1500:]}"}
            if line.startswith("{"):
                return dict(json.loads(line))

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    @staticmethod
    def _listen(process: subprocess.Popen[str], noise: list[str]) -> None:
        assert process.stderr is not None
        noise.extend(process.stderr)
