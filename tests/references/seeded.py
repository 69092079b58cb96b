"""Weights and inputs that a stated seed and a name determine, the same where outputs are recorded and where they are
compared. NumPy only.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np


def generator(name: str, seed: int) -> np.random.Generator:
    """A stream of its own for each name."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int, *, sharpness: float = 1.0) -> dict[str, np.ndarray]:
    """A state dict in PyTorch's names: scales near 1, biases of 0.3, kernels of standard deviation 0.7 / sqrt(inputs).

    ``sharpness`` multiplies the fused projections of queries, keys and values, which spreads attention scores.
    """
    made = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = np.zeros(shape, np.int64)
            continue
        noise = generator(name, seed).standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            noise = 1 + np.float32(0.2) * np.abs(noise)
        elif name.endswith("weight"):
            gain = 0.7 * sharpness if "qkv" in name else 0.7
            noise = (
                noise * np.float32(gain * np.prod(shape[1:]) ** -0.5) if len(shape) > 1 else 1 + np.float32(0.1) * noise
            )
        else:
            noise = noise * np.float32(0.3)
        made[name] = noise.astype(np.float32)
    return made


def images(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Images (batch, height, width, channels): coarse blobs with noise on them, so that regions differ."""
    rng = generator("images", seed)
    batch, height, width, channels = shape
    coarse = rng.standard_normal((batch, -(-height // 16), -(-width // 16), channels))
    blobs = coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return (1.5 * blobs + 0.5 * rng.standard_normal(shape)).astype(np.float32)
