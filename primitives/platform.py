"""The platform that programs are traced for, which may differ from the one that traces them.

It is queried during tracing, so :func:`platform` affects functions traced inside it, not programs compiled earlier.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def current_platform() -> str:
    """The platform that programs are currently traced for: "cpu", "gpu" or "tpu"."""
    name = _platform.get() or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def compute_capability() -> str | None:
    """The compute capability of the GPU that programs run on, such as "9.0"; None without a GPU, or inside
    :func:`platform`.
    """
    return None if _platform.get() else getattr(jax.devices()[0], "compute_capability", None)


@contextlib.contextmanager
def platform(name: str) -> Iterator[None]:
    """Traces programs as if running on ``name``, to compile for a device that is not present."""
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)
