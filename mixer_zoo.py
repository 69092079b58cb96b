"""The command line: ``mixer-zoo list "vit_*"``, ``mixer-zoo summary biformer_tiny``, ``mixer-zoo --help``.

It offers the commands of ``python -m zoo``, ``generate`` and ``compare``; train.py trains and eval.py evaluates.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HOME = Path(__file__).resolve().parent


def main() -> None:
    """Runs the command that the arguments name."""
    # Checked before the library is imported: a folder of the user may have the name of one of its packages.
    try:
        from suggestions import installation

        if sys.argv[1:] == ["doctor"]:  # must work where the imports below fail
            return installation.doctor()
        installation.refuse_others(home=_HOME)
        from training import comparison, sampling
        from zoo import commands
    except ImportError as error:
        sys.exit(f"error: {error}; Mixer Zoo is in {_HOME}: mixer-zoo doctor says what is missing or in the way")
    except ValueError as error:
        sys.exit(f"error: {error}")
    more = {"generate": sampling.GENERATE, "compare": comparison.COMPARE}
    commands.main(commands={**commands.COMMANDS, **more}, prog="mixer-zoo")


if __name__ == "__main__":
    main()
