"""The recurrences that :mod:`benchmarks.mixers_speed` measures: our call of each, and PyTorch code of the same.

The peers are the PyTorch code of flash-linear-attention and, for the mLSTM, of transformers. fla-core's files are
loaded one by one, because importing the package needs Triton.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

BATCH, LENGTH, HEADS, SIZE, STATE = 1, 2048, 8, 64, 16
TOKEN_BY_TOKEN, IN_CHUNKS = 5.0, 1.5
"""How many times as fast as a peer of this form ours is asked to be."""
Arrays = dict[str, np.ndarray]
_SHAPES: dict[str, tuple[int, ...]] = {
    "gate": (HEADS,),
    "write": (HEADS,),
    "input": (HEADS,),
    "forget": (HEADS,),
    "B": (STATE,),
    "C": (STATE,),
    **dict.fromkeys(("x", "fade", "delta"), (HEADS * SIZE,)),
    **dict.fromkeys(("q", "k", "v", "gates", "removed"), (HEADS, SIZE)),
}
"""Of arrays with a row for each token, the shape of a row."""
FIXED: dict[str, tuple[int, ...]] = {"A": (HEADS * SIZE, STATE), "bonus": (HEADS, SIZE)}
"""Shapes of the others."""


def shape_of(name: str, length: int) -> tuple[int, ...]:
    return FIXED.get(name) or (BATCH, length, *_SHAPES[name])


def arrays(names: str, length: int = LENGTH) -> Arrays:
    """Inputs by name: queries and keys of norm 1, decays as an untrained layer has them."""
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for name in names.split():
        x = rng.standard_normal(shape_of(name, length), np.float32)
        if name in ("q", "k", "removed"):
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
        elif name in ("gate", "gates", "fade"):  # logarithms of factors
            x = -np.logaddexp(0, -x - 3)
        elif name == "forget":  # before the sigmoid
            x += 3
        elif name == "write":
            x = 1 / (1 + np.exp(-x))
        elif name == "delta":
            x = np.logaddexp(0, x - 3)
        elif name == "A":
            x = -np.exp(0.3 * x)
        made[name] = x.astype(np.float32)
    return made


class Peer(NamedTuple):
    """A function in PyTorch.

    Attributes:
      module: where it is; of fla, the file of this module is loaded alone.
      function: its name.
      call: calls it with tensors named as our arrays; returns the output in our layout.
      asked: how many times as fast as it ours is asked to be; None for nothing.
    """

    module: str
    function: str
    call: Callable[[Any, dict[str, Any]], Any]
    asked: float | None

    def load(self) -> Callable[..., Any]:
        if not self.module.startswith("fla."):
            importlib.import_module("tests.references.live")  # before what imports torchvision
            return getattr(importlib.import_module(self.module), self.function)
        found = importlib.util.find_spec("fla")
        if found is None or not found.submodule_search_locations:
            raise SystemExit(
                "the peers' code is missing: python -m pip install --no-deps --target=FOLDER fla-core==0.6.0, and "
                "PYTHONPATH=FOLDER"
            )
        path = pathlib.Path(found.submodule_search_locations[0]).joinpath(*self.module.split(".")[1:])
        spec = importlib.util.spec_from_file_location(f"peer_{path.parent.name}", path.with_suffix(".py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, self.function)


class Row(NamedTuple):
    """Arrays by name, our call of them, and the peers."""

    names: str
    ours: Callable[[dict[str, Any]], Any]
    peers: tuple[Peer, ...]


def _op(name: str, **arguments: str) -> Callable[[dict[str, Any]], Any]:
    """A call of our op: ``arguments`` names the array for each keyword."""

    def call(given: dict[str, Any]) -> Any:
        import pallas_kernels

        return getattr(pallas_kernels, name)(**{key: given[array] for key, array in arguments.items()})

    return call


def _time_first(*order: str) -> Callable[[Any, dict[str, Any]], Any]:
    return lambda function, t: _output(function(*(t[name] for name in order)))


def _head_first(*order: str, **options: Any) -> Callable[[Any, dict[str, Any]], Any]:
    def call(function: Any, t: dict[str, Any]) -> Any:
        rows = (t[name] if name in FIXED else t[name].transpose(1, 2).contiguous() for name in order)
        return _output(function(*rows, **options)).transpose(1, 2)

    return call


def _output(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


def _slots(given: dict[str, Any]) -> Any:
    """Gated slot attention as two recurrences: a memory of keys whose slots compete, and one of values."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import linear_attention

    write = -jnp.expm1(given["gates"])
    logits = linear_attention(given["q"], given["k"], write, value_decay=given["gates"])
    return linear_attention(jax.nn.softmax(logits, -1), write, given["v"], decay=given["gates"], scale=1.0)


def _remove_and_write(given: dict[str, Any]) -> Any:
    """RWKV-7's memory as its layer computes it: two steps of the delta rule for each token."""
    import jax.numpy as jnp

    from pallas_kernels import delta_rule

    def pairs(first: Any, second: Any) -> Any:
        return jnp.stack([first, second], axis=2).reshape(first.shape[0], -1, *first.shape[2:])

    k, v, removed = given["k"], given["v"], given["removed"]
    return delta_rule(
        given["q"],
        pairs(removed * given["write"][..., None], k),
        pairs(jnp.zeros_like(v), v),
        jnp.ones((k.shape[0], 2 * k.shape[1], k.shape[2]), k.dtype),
        decay=given["gates"],
        read_key=pairs(removed * jnp.exp(-given["gates"]), jnp.zeros_like(k)),
    )


def _removing(function: Any, t: dict[str, Any]) -> Any:
    alpha, beta = -t["removed"], t["removed"] * t["write"][..., None]
    rows = (t["q"], t["k"], t["v"], alpha, beta, t["gates"])
    return _output(function(*(x.transpose(1, 2) for x in rows))).transpose(1, 2)


def _matrix_memory(given: dict[str, Any]) -> Any:
    from layers.linear_attention.mlstm import matrix_memory
    from layers.tokens import Tokens

    q, k, v = given["q"], given["k"], given["v"]
    return matrix_memory(q, k, v, given["input"], given["forget"], Tokens(), None)[0]


def _householder(given: dict[str, Any]) -> Any:
    """DeltaProduct with two steps a token: the arrays have half as many queries and decays as keys."""
    from pallas_kernels import delta_rule

    return delta_rule(given["q"][:, ::2], given["k"], given["v"], given["write"], decay=given["gate"][:, ::2])


def _forgetting(given: dict[str, Any]) -> Any:
    import jax.numpy as jnp

    from pallas_kernels import attention

    fade = -jnp.cumsum(given["gate"], axis=1)
    return attention(given["q"], given["k"], given["v"], causal=True, bias=jnp.swapaxes(fade, 1, 2)[:, :, None])


def _exclusive(given: dict[str, Any]) -> Any:
    from pallas_kernels import linear_attention

    q, k, v, decay, bonus = (given[name] for name in ("q", "k", "v", "gates", "bonus"))
    return linear_attention(q, k, v, decay=decay, bonus=bonus, exclusive=True, scale=1.0)


def _longhorn(given: dict[str, Any]) -> Any:
    from pallas_kernels import selective_scan

    x, delta, B, C = (given[name] for name in ("x", "delta", "B", "C"))
    return selective_scan(x, delta, None, B, C, transition="implicit")


def _gsa(function: Any, t: dict[str, Any]) -> Any:
    return function(t["q"], t["k"], t["v"], 1 - t["gates"].exp(), t["gates"])[0]


def _products(function: Any, t: dict[str, Any]) -> Any:
    q, gate = t["q"][:, ::2], t["gate"][:, ::2]
    return _output(function(q, t["k"], t["v"], gate, t["write"], SIZE**-0.5, num_householder=2))


def _fla(file: str, function: str, call: Callable[[Any, dict[str, Any]], Any], asked: float | None) -> Peer:
    return Peer(f"fla.ops.{file}", function, call, asked)


def _xlstm(function: str, asked: float) -> Peer:
    call = _head_first("q", "k", "v", "input", "forget")
    return Peer("transformers.models.xlstm.modeling_xlstm", function, call, asked)


_linear, _scalar, _delta = _time_first("q", "k", "v"), _time_first("q", "k", "v", "gate"), ("q", "k", "v", "write")
_by_token, _by_channel = _time_first(*_delta, "gate"), _time_first("q", "k", "v", "gates", "write")
_rwkv6 = _head_first("q", "k", "v", "gates", "bonus", scale=1.0)
ROWS = {
    "linear_attention": Row(
        "q k v",
        _op("linear_attention", q="q", k="k", v="v"),
        (
            _fla("linear_attn.naive", "naive_recurrent_linear_attn", _linear, TOKEN_BY_TOKEN),
            _fla("linear_attn.naive", "naive_chunk_linear_attn", _linear, IN_CHUNKS),
        ),
    ),
    "scalar decay": Row(
        "q k v gate",
        _op("linear_attention", q="q", k="k", v="v", decay="gate"),
        (
            _fla("simple_gla.naive", "naive_recurrent_simple_gla", _scalar, TOKEN_BY_TOKEN),
            _fla("simple_gla.naive", "naive_chunk_simple_gla", _scalar, IN_CHUNKS),
        ),
    ),
    "gated_linear_attention, hgrn2": Row(
        "q k v gates",
        _op("linear_attention", q="q", k="k", v="v", decay="gates"),
        (_fla("gla.naive", "naive_recurrent_gla", _time_first("q", "k", "v", "gates"), TOKEN_BY_TOKEN),),
    ),
    "rwkv6": Row(
        "q k v gates bonus",
        _exclusive,
        (
            _fla("rwkv6.recurrent_naive", "naive_recurrent_rwkv6", _rwkv6, TOKEN_BY_TOKEN),
            _fla("rwkv6.chunk_naive", "naive_chunk_rwkv6", _head_first("q", "k", "v", "gates", "bonus"), IN_CHUNKS),
        ),
    ),
    "mlstm": Row(
        "q k v input forget",
        _matrix_memory,
        (
            _xlstm("mlstm_recurrent_sequence_native", TOKEN_BY_TOKEN),
            _xlstm("mlstm_chunkwise_native_autograd", IN_CHUNKS),
        ),
    ),
    "delta_net": Row(
        "q k v write",
        _op("delta_rule", q="q", k="k", v="v", beta="write"),
        (
            _fla("delta_rule.naive", "delta_rule_recurrence", _head_first(*_delta), TOKEN_BY_TOKEN),
            _fla("delta_rule.naive", "delta_rule_chunkwise", _head_first(*_delta), IN_CHUNKS),
        ),
    ),
    "gated_delta_net": Row(
        "q k v write gate",
        _op("delta_rule", q="q", k="k", v="v", beta="write", decay="gate"),
        (
            _fla("gated_delta_rule.naive", "naive_recurrent_gated_delta_rule", _by_token, TOKEN_BY_TOKEN),
            _fla(
                "gated_delta_rule.naive",
                "naive_chunk_gated_delta_rule",
                _time_first("q", "k", "v", "gate", "write"),
                IN_CHUNKS,
            ),
        ),
    ),
    "gated_delta_product": Row(
        "q k v write gate",
        _householder,
        (_fla("gated_delta_product.naive", "naive_recurrent_gated_delta_product", _products, TOKEN_BY_TOKEN),),
    ),
    "kimi_delta_attention": Row(
        "q k v gates write",
        _op("delta_rule", q="q", k="k", v="v", beta="write", decay="gates"),
        (
            _fla("kda.naive", "naive_recurrent_kda", _by_channel, TOKEN_BY_TOKEN),
            _fla("kda.naive", "naive_chunk_kda", _by_channel, IN_CHUNKS),
        ),
    ),
    "comba": Row(
        "q k v gate write removed",
        _op("delta_rule", q="q", k="k", v="v", beta="write", decay="gate", read_key="removed"),
        (
            _fla(
                "comba.naive",
                "naive_recurrent_comba",
                _time_first("q", "k", "v", "removed", "write", "gate"),
                TOKEN_BY_TOKEN,
            ),
        ),
    ),
    "rwkv7": Row(
        "q k v gates write removed",
        _remove_and_write,
        (
            _fla("generalized_delta_rule.dplr.naive", "dplr_recurrence", _removing, TOKEN_BY_TOKEN),
            _fla("generalized_delta_rule.dplr.naive", "dplr_chunkwise", _removing, IN_CHUNKS),
        ),
    ),
    "hgrn": Row(
        "x fade",
        _op("linear_scan", x="x", decay="fade"),
        (_fla("hgrn.naive", "naive_recurrent_hgrn", _time_first("x", "fade"), TOKEN_BY_TOKEN),),
    ),
    "mamba": Row("x delta A B C", _op("selective_scan", **{name: name for name in ("x", "delta", "A", "B", "C")}), ()),
    "longhorn": Row("x delta B C", _longhorn, ()),
    "gated_slot_attention": Row(
        "q k v gates", _slots, (_fla("gsa.naive", "naive_recurrent_gsa", _gsa, TOKEN_BY_TOKEN),)
    ),
    "forgetting_attention": Row(
        "q k v gate", _forgetting, (_fla("forgetting_attn.naive", "naive_forgetting_attn", _scalar, None),)
    ),
}
"""By what the tables call them. Of forgetting attention's peer, which is no recurrence, nothing is asked."""
