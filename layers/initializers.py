"""Initialisers, each made once.

Flax keeps a layer's initialiser as part of its static structure, and two calls of
``nnx.initializers.normal(0.02)`` are two different functions: layers made with them would look
different to scan. These factories return the same function for the same argument.
"""

from __future__ import annotations

import functools

from flax import nnx

truncated_normal = functools.cache(nnx.initializers.truncated_normal)
normal = functools.cache(nnx.initializers.normal)
uniform = functools.cache(nnx.initializers.uniform)
constant = functools.cache(nnx.initializers.constant)
variance_scaling = functools.cache(nnx.initializers.variance_scaling)
zeros = nnx.initializers.zeros
ones = nnx.initializers.ones
