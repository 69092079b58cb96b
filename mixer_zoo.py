"""The command line: ``mixer-zoo list "vit_*"``, ``mixer-zoo summary biformer_tiny``, ``mixer-zoo --help``.

It has the commands of ``python -m zoo``, ``generate`` and ``compare``; train.py and eval.py train and evaluate.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HOME = Path(__file__).resolve().parent


def main() -> None:
    """Runs the command that the arguments name."""
    # Before anything of the library is used: a folder of the user's may have one of its names.
    try:
        from suggestions import installation

        if sys.argv[1:] == ["doctor"]:  # which also says why what follows can't be imported
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
