"""The platform that programs are traced for, which need not be the one that traces them.

It is asked while JAX traces, so :func:`platform` acts on functions traced inside it, not on programs compiled earlier.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def current_platform() -> str:
    """The platform that programs traced now are meant for: "cpu", "gpu" or "tpu"."""
    name = _platform.get() or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def compute_capability() -> str | None:
    """Of the GPU that programs traced now run on, as "9.0"; None where there is none, or :func:`platform` only names
    it.
    """
    return None if _platform.get() else getattr(jax.devices()[0], "compute_capability", None)


@contextlib.contextmanager
def platform(name: str) -> Iterator[None]:
    """Chooses as if running on ``name``: for compiling for a device that is not present."""
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)
