"""Every benchmark answers ``--help`` at once: nothing is measured, and JAX is not even imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[2]
COMMANDS = sorted(
    ".".join(path.relative_to(HOME).with_suffix("").parts)
    for path in (HOME / "benchmarks").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
ASK_FOR_HELP = """
import contextlib, io, json, runpy, sys

found = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_module(name, run_name="__main__")
            code = "none: it ran"
        except SystemExit as ended:
            code = ended.code
    found[name] = [code, printed.getvalue()[:6], "jax" in sys.modules]
print(json.dumps(found))
"""


def test_help_measures_nothing() -> None:
    """In one process, so that a module that imports JAX is the first with it in the list."""
    command = [sys.executable, "-c", ASK_FOR_HELP, *COMMANDS]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {name: [0, "usage:", False] for name in COMMANDS}
    assert len(COMMANDS) > 20
