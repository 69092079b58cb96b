"""Processes with more devices than this machine has.

One process of eight devices does what all tests of a run ask of it: ``python -m tests.devices`` reads a request a
line, calls the function that it names, and answers with what that returns, as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests import costs

ROOT = Path(__file__).resolve().parents[1]


def environment(devices: int) -> dict[str, str]:
    """Of a process that has so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


class EightDevices:
    """The process, started when it is first asked for something."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.seconds = 0.0

    def __call__(self, function: str, *arguments: Any, **options: Any) -> Any:
        """What ``function``, as "module:name", returns there."""
        if self.process is None:
            self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
            command = [sys.executable, "-m", "tests.devices"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment(8), text=True, **pipes)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([function, arguments, options]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(
                f"the process of eight devices ended with {self.process.wait()}: {self.errors.read()[-2000:]}"
            )
        answer = json.loads(line)
        self.seconds += answer["seconds"]
        costs.elsewhere += answer["seconds"]
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()
            self.errors.close()
            costs.elsewhere -= self.seconds  # of a process that has been waited for they are counted as its own


def main() -> None:
    answers, counted = sys.stdout, 0.0
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            function, arguments, options = json.loads(line)
            module, _, name = function.partition(":")
            try:
                answer = {"value": getattr(importlib.import_module(module), name)(*arguments, **options)}
            except Exception:
                answer = {"error": traceback.format_exc()}
            now = costs.cpu_seconds()
            print(json.dumps({**answer, "seconds": now - counted}), file=answers, flush=True)
            counted = now


if __name__ == "__main__":
    main()
