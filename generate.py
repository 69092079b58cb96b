"""Continues a text: ``python generate.py --workdir=runs/NAME --prompt="def "``, or ``--model=NAME --weights=FILE``."""

from training import sampling

if __name__ == "__main__":
    sampling.main()
