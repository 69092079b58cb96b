"""Initializers: initial values of parameters, drawn by JAX for a stand-alone layer and on the host for a model.

An initializer has JAX's interface, ``init(key, shape, dtype)``, and draws with that key. While a model is being made
(:mod:`layers.making`) it draws nothing yet and returns a :class:`Draw`: compiling an XLA program for each shape would
make models slow to construct, and weights that are loaded from a file need not be drawn at all.

Initializers compare by value: Flax keeps them in a layer's static structure, which scan compares between layers.
"""

from __future__ import annotations

import contextvars
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers import portable

Shape = tuple[int, ...]
Index = tuple[slice, ...]


class Making(Protocol):
    """A model under construction, as far as initializers need to know."""

    def here(self) -> bool:
        """True in the model's own code, False inside a function that JAX is transforming."""
        ...


making: contextvars.ContextVar[Making | None] = contextvars.ContextVar("making", default=None)


class Initializer:
    """``init(key, shape, dtype)``.

    A subclass implements the same distribution twice: in JAX with a key, and on the host from a stream of random words.

    Attributes:
      whole: whether the numbers depend on each other, so that a part can't be drawn alone.
    """

    whole: ClassVar[bool] = False

    def __call__(self, key: Any, shape: Shape, dtype: Any = jnp.float32, **options: Any) -> Any:
        """The parameter: an array, or a :class:`Draw` of it while a model is being made. ``key`` is unused where
        nothing is random.
        """
        model = making.get()
        if model is not None and model.here():
            return Draw(self, tuple(shape), np.dtype(dtype), key)
        return self.by_jax(key, tuple(shape), dtype, **options)

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        """Draws with a JAX key."""
        raise NotImplementedError

    def fill(self, stream: int, out: np.ndarray, shape: Shape, start: int) -> None:
        """Writes the entries of a flattened parameter of ``shape``, from index ``start`` on, into ``out`` (numbers,);
        if ``whole``, ``out`` takes all of them.
        """
        raise NotImplementedError

    def stream_name(self, name: str) -> str:
        """The name of the random stream of the parameter ``name``; parameters of a module that are drawn together share
        the module's name.
        """
        return name


@dataclasses.dataclass(eq=False)
class Draw:
    """A parameter that is not drawn yet: it is drawn, by its name, when the model is complete.

    Code that needs the values before that, such as a custom module of the user, gets them drawn by JAX with the key;
    these values are then kept.
    """

    initializer: Initializer
    shape: Shape
    dtype: np.dtype
    key: Any
    sharding: Any = None
    early: jax.Array | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def numbers(self, seed: bytes, name: str, index: Index | None = None) -> np.ndarray:
        """The part ``index`` (default all) of the parameter ``name`` of the model ``seed``, aligned so that JAX on a
        CPU need not copy it.
        """
        stream = portable.stream(seed, self.initializer.stream_name(name), repr(self.shape))
        index = tuple(
            slice(*s.indices(n)) for s, n in zip(index or (slice(None),) * self.ndim, self.shape, strict=True)
        )
        wanted = tuple(s.stop - s.start for s in index)
        out = aligned(wanted, self.dtype)
        if not out.size:
            return out
        if self.initializer.whole and wanted != self.shape:
            whole = np.empty(self.shape, self.dtype)
            self.initializer.fill(stream, whole.reshape(-1), self.shape, 0)
            out[...] = whole[index]
            return out
        # The last axis that is sliced, with the axes after it, is contiguous in the flattened parameter.
        outer = max((axis for axis in range(self.ndim) if wanted[axis] != self.shape[axis]), default=0)
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(self.ndim)]
        first = sum(s.start * stride for s, stride in zip(index, strides, strict=True))
        runs = out.reshape(-1, math.prod(wanted[outer:]))
        for run, place in zip(runs, np.ndindex(*wanted[:outer]), strict=True):
            self.initializer.fill(
                stream, run, self.shape, first + sum(n * stride for n, stride in zip(place, strides, strict=False))
            )
        return out

    def __jax_array__(self) -> jax.Array:
        if self.early is None:
            self.early = self.initializer.by_jax(self.key, self.shape, self.dtype)
        return self.early

    def __setitem__(self, index: Any, value: Any) -> None:
        self.early = jnp.asarray(self).at[index].set(value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.__jax_array__(), dtype)


def _of_the_array(name: str) -> Callable[..., Any]:
    return lambda draw, *others: getattr(draw.__jax_array__(), name)(*others)


for _name in (
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "matmul",
    "rmatmul",
    "pow",
    "neg",
    "getitem",
):
    setattr(Draw, f"__{_name}__", _of_the_array(f"__{_name}__"))
for _name in ("astype", "reshape"):
    setattr(Draw, _name, _of_the_array(_name))


def aligned(shape: Shape, dtype: Any) -> np.ndarray:
    """An uninitialized array whose memory is aligned to 64 bytes, so that JAX on a CPU can use it without a copy."""
    dtype, size = np.dtype(dtype), math.prod(shape)
    memory = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * dtype.itemsize].view(dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """One value everywhere, or an array, given as nested tuples, that is broadcast to the shape."""

    value: Any

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        return nnx.initializers.constant(self.value if np.ndim(self.value) == 0 else np.asarray(self.value))(
            key, shape, dtype, **options
        )

    def fill(self, stream: int, out: np.ndarray, shape: Shape, start: int) -> None:
        if np.ndim(self.value) == 0:
            out[...] = self.value
        else:
            out[...] = np.broadcast_to(np.asarray(self.value), shape).reshape(-1)[start : start + out.size]


class Independent(Initializer):
    """Independent numbers, each drawn from one random word."""

    def shaping(self, shape: Shape) -> portable.Fill:
        """The function from random words to the numbers of a parameter of ``shape``."""
        raise NotImplementedError

    def fill(self, stream: int, out: np.ndarray, shape: Shape, start: int) -> None:
        portable.draw(stream, self.shaping(shape), out, start)


def _scaled(distribution: portable.Fill, scale: float) -> portable.Fill:
    def fill(bits: np.ndarray) -> np.ndarray:
        numbers = distribution(bits)
        numbers *= np.float32(scale)
        return numbers

    return fill


def _spread(low: float, high: float) -> portable.Fill:
    def fill(bits: np.ndarray) -> np.ndarray:
        numbers = portable.uniform(bits)
        numbers *= np.float32(high - low)
        numbers += np.float32(low)
        return numbers

    return fill


@dataclasses.dataclass(frozen=True)
class Normal(Independent):
    """Normal with mean 0."""

    std: float

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        return nnx.initializers.normal(self.std)(key, shape, dtype, **options)

    def shaping(self, shape: Shape) -> portable.Fill:
        return _scaled(portable.normal, self.std)


@dataclasses.dataclass(frozen=True)
class TruncatedNormal(Independent):
    """Normal with mean 0, truncated at 2 ``std``; ``std`` is the standard deviation before truncation."""

    std: float

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        return nnx.initializers.truncated_normal(self.std)(key, shape, dtype, **options)

    def shaping(self, shape: Shape) -> portable.Fill:
        return _scaled(portable.truncated_normal, self.std)


@dataclasses.dataclass(frozen=True)
class Uniform(Independent):
    """Uniform in [low, high)."""

    low: float
    high: float

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, self.low, self.high, **options)

    def shaping(self, shape: Shape) -> portable.Fill:
        return _spread(self.low, self.high)


Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["normal", "truncated_normal", "uniform"]


@dataclasses.dataclass(frozen=True)
class VarianceScaling(Independent):
    """Mean 0 and variance ``scale`` / fan (He et al., 2015, section 2.2): the last axis is outputs, the one before it
    inputs, the others are kernel positions.

    Raises:
      ValueError: an unknown mode or distribution.
    """

    scale: float
    mode: Mode
    distribution: Distribution

    def __post_init__(self) -> None:
        for option, known in (
            ("mode", ("fan_in", "fan_out", "fan_avg")),
            ("distribution", ("normal", "truncated_normal", "uniform")),
        ):
            if getattr(self, option) not in known:
                raise ValueError(
                    f"variance_scaling: {option} is one of {', '.join(known)}; got {getattr(self, option)!r}"
                )

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        return nnx.initializers.variance_scaling(self.scale, self.mode, self.distribution)(key, shape, dtype, **options)

    def shaping(self, shape: Shape) -> portable.Fill:
        taps = math.prod(shape[:-2])
        fans = {"fan_in": taps * shape[-2], "fan_out": taps * shape[-1], "fan_avg": taps * (shape[-2] + shape[-1]) / 2}
        std = math.sqrt(self.scale / fans[self.mode])
        if self.distribution == "uniform":
            return _spread(-math.sqrt(3) * std, math.sqrt(3) * std)
        if self.distribution == "normal":
            return _scaled(portable.normal, std)
        return _scaled(portable.truncated_normal, std / 0.87962566103423978)  # the standard deviation after truncation


@dataclasses.dataclass(frozen=True)
class Transformed(Independent):
    """A function of independent numbers u: "log" or "exp" of u; "inverse_softplus_exp", the x with softplus(x) = e^u;
    or "inverse_softplus_rate", the x with e^(-2 softplus(x)) = u.
    """

    function: Literal["log", "exp", "inverse_softplus_exp", "inverse_softplus_rate"]
    numbers: Independent

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        x = self.numbers.by_jax(key, shape, jnp.float32, **options)
        if self.function in ("log", "exp"):
            return getattr(jnp, self.function)(x).astype(dtype)
        y = jnp.exp(x) if self.function == "inverse_softplus_exp" else -jnp.log(x) / 2
        return inverse_softplus(y).astype(dtype)

    def shaping(self, shape: Shape) -> portable.Fill:
        draw = self.numbers.shaping(shape)
        if self.function in ("log", "exp"):
            function = getattr(portable, self.function)
            return lambda bits: function(draw(bits))

        def fill(bits: np.ndarray) -> np.ndarray:
            x = draw(bits)
            y = portable.exp(x) if self.function == "inverse_softplus_exp" else -portable.log(x) / 2
            return y + portable.log(1 - portable.exp(-y))

        return fill


def inverse_softplus(y: jax.Array) -> jax.Array:
    """x with softplus(x) = y > 0."""
    return y + jnp.log(-jnp.expm1(-y))


@dataclasses.dataclass(frozen=True)
class SharedColumns(Initializer):
    """A kernel (inputs, outputs) in which some output columns start as copies of others, and some start at zero.

    Attributes:
      kernel: initializer of the kernel.
      same: (from, to, count): the ``count`` columns from ``to`` on are copies of those from ``from`` on.
      zeros: (first, count): outputs that start at zero.
    """

    kernel: Initializer
    same: tuple[int, int, int]
    zeros: tuple[int, int] = (0, 0)
    whole: ClassVar[bool] = True

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        kernel = self.kernel.by_jax(key, shape, dtype, **options)
        source, target, count = self.same
        kernel = kernel.at[:, target : target + count].set(kernel[:, source : source + count])
        return kernel.at[:, self.zeros[0] : sum(self.zeros)].set(0)

    def fill(self, stream: int, out: np.ndarray, shape: Shape, start: int) -> None:
        self.kernel.fill(stream, out, shape, start)
        kernel, (source, target, count) = out.reshape(shape), self.same
        kernel[:, target : target + count] = kernel[:, source : source + count]
        kernel[:, self.zeros[0] : sum(self.zeros)] = 0


@dataclasses.dataclass(frozen=True)
class OnSphere(Initializer):
    """Vectors along the last axis with mean 0 and variance 1, uniformly distributed among such vectors: normalized
    normal samples.
    """

    epsilon: float = 1e-6
    whole: ClassVar[bool] = True

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        x = jax.random.normal(key, shape, dtype, **options)
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.epsilon)

    def fill(self, stream: int, out: np.ndarray, shape: Shape, start: int) -> None:
        x = np.empty(shape, np.float32)
        portable.draw(stream, portable.normal, x)
        x = x.astype(np.float64)
        # Sums along the first axis are taken row by row, in the same order on every platform.
        x = np.moveaxis(x, -1, 0).copy()
        x -= np.add.reduce(x, axis=0) / len(x)
        x /= np.sqrt(np.add.reduce(x * x, axis=0) / len(x) + self.epsilon)
        out.reshape(shape)[...] = np.moveaxis(x, 0, -1)


@dataclasses.dataclass(frozen=True)
class Orthogonal(Initializer):
    """Orthonormal rows or columns, whichever are fewer, times ``scale``, uniformly distributed (Saxe et al., 2014,
    arXiv:1312.6120); leading axes count as inputs.
    """

    scale: float = 1.0
    whole: ClassVar[bool] = True

    def by_jax(self, key: Any, shape: Shape, dtype: Any, **options: Any) -> jax.Array:
        return nnx.initializers.orthogonal(self.scale)(key, shape, dtype, **options)

    def fill(self, stream: int, out: np.ndarray, shape: Shape, start: int) -> None:
        rows, columns = out.size // shape[-1], shape[-1]
        numbers = np.empty((max(rows, columns), min(rows, columns)), np.float32)
        portable.draw(stream, portable.normal, numbers)
        # Gram-Schmidt, applied twice to each vector, with sums in the same order on every platform: LAPACK's order
        # differs.
        basis = numbers.astype(np.float64)
        for n in range(basis.shape[1]):
            for _ in range(2):
                before, vector = basis[:, :n], basis[:, n]
                parts = np.add.reduce(before * vector[:, None], axis=0)
                basis[:, n] -= np.add.reduce((before * parts).T.copy(), axis=0)
            basis[:, n] /= np.sqrt(np.add.reduce((basis[:, n] * basis[:, n])[:, None], axis=0))
        out.reshape(rows, columns)[...] = self.scale * (basis if rows >= columns else basis.T)


def uniform(scale: float) -> Uniform:
    """Uniform in [0, scale)."""
    return Uniform(0.0, scale)


constant, normal, truncated_normal, variance_scaling, orthogonal = (
    Constant,
    Normal,
    TruncatedNormal,
    VarianceScaling,
    Orthogonal,
)
zeros, ones = Constant(0.0), Constant(1.0)
lecun_normal = VarianceScaling(1.0, "fan_in", "truncated_normal")
"""The default kernel initializer of ``nnx.Linear``."""

INITIALIZERS: dict[str, Initializer] = {
    "zeros": zeros,
    "ones": ones,
    "normal": Normal(0.02),
    "truncated_normal": TruncatedNormal(0.02),
    "orthogonal": Orthogonal(),
    "lecun_normal": lecun_normal,
    "he_normal": VarianceScaling(2.0, "fan_in", "truncated_normal"),
    "glorot_uniform": VarianceScaling(1.0, "fan_avg", "uniform"),
}

InitializerSpec = str | Callable[..., Any]
"""A name in :data:`INITIALIZERS`, or a callable ``(key, shape, dtype) -> array``."""


def create_initializer(spec: InitializerSpec) -> Callable[..., Any]:
    """The initializer of a name; a callable is returned unchanged.

    Raises:
      ValueError: an unknown name, or neither a name nor a callable.
    """
    if callable(spec):
        return spec
    if not isinstance(spec, str) or spec not in INITIALIZERS:
        raise ValueError(
            f"unknown initializer {spec!r}; known: {', '.join(INITIALIZERS)}, or a callable (key, shape, dtype) -> "
            f"array"
        )
    return INITIALIZERS[spec]
