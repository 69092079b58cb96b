"""Records wavelet coefficients of PyWavelets: ``python -m tests.references.wavelets`` writes wavelets.npz beside this
file. It needs the package pywavelets; rows follow from a seed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 23
LENGTHS, FEATURES = (37, 24, 9, 3), 3
TAPS, LEVELS = (2, 4, 12), 2


def rows() -> list[np.ndarray]:
    """Rows (length, FEATURES) of several lengths."""
    rng = seeded.generator("rows", SEED)
    return [rng.standard_normal((length, FEATURES)).astype(np.float32) for length in LENGTHS]


def record() -> dict[str, np.ndarray]:
    """All recorded arrays by name: for each filter and row the coefficients of all bands, one after the other."""
    import pywt

    arrays = {"about": np.array(json.dumps({"package": f"pywavelets {pywt.__version__}"}))}
    for taps in TAPS:
        for row, x in zip(LENGTHS, rows(), strict=True):
            bands = pywt.wavedec(x, f"db{taps // 2}", mode="reflect", level=LEVELS, axis=0)
            arrays[f"{taps}/{row}"] = np.concatenate(bands).astype(np.float32)
        arrays[f"{taps}/filter"] = np.array(pywt.Wavelet(f"db{taps // 2}").dec_lo)
    return arrays


if __name__ == "__main__":
    np.savez_compressed(PATH, **record())
    print(f"{PATH}: {PATH.stat().st_size} bytes")
