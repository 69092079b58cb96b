"""LSG models: LSG Attention: Extrapolation of pretrained Transformers to long sequences (Condevaux and Harispe, 2022,
arXiv:2210.15497): BERT and RoBERTa that read 4096 tokens.

    x = norm([globals; word + position + type]);  N x [x = norm(x + LSGAttention(x));  x = norm(x + MLP(x))]

Learned global tokens, one by default, are prepended to the sequence; the other tokens attend to a local window, to
sparse tokens and to the global ones. At the end the global tokens are removed, and the first token's output is replaced
by that of the first global token. :func:`convert_to_lsg` converts a trained BERT or RoBERTa into such a model; further
training is optional.

Released: lsg-bert-base-uncased-4096 and lsg-base-4096 (from RoBERTa), converted and not trained further.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.extra_tokens import ExtraTokens
from layers.initializers import normal
from layers.mixer import MixerSpec, Place
from layers.sparse.lsg import KINDS, Sparsity
from layers.state import assign, flatten
from layers.tokens import Tokens
from zoo.backbones.encoder import Encoder, EncoderConfig
from zoo.creation import create
from zoo.language import bert, roberta
from zoo.naming import Naming
from zoo.registry import Release, one_of, register_family, variant


@dataclasses.dataclass(frozen=True)
class LSGConfig(EncoderConfig):
    """Hyper-parameters of an LSG model.

    Attributes:
      num_global: global tokens, the first rows of a table of ``global_rows``.
      block, sparse_block, factor, sparsity: as in :class:`layers.LSGAttention`.
      mask_first: whether the first token is masked, because the first global token stands for it.
      pool_global: whether the first token's output is that of the first global token.
    """

    max_length: int = 4096
    num_global: int = 1
    global_rows: int = 512
    block: int = 128
    sparse_block: int = 128
    factor: int = 2
    sparsity: Sparsity = "norm"
    mask_first: bool = False
    pool_global: bool = True


class LSG(Encoder):
    """An LSG model; names as in :class:`Encoder`, and ``global_tokens`` (global_rows, features)."""

    stem = (*Encoder.stem, "global_tokens")  # type: ignore[assignment]
    undecayed = (*Encoder.undecayed, "global_tokens")
    config: LSGConfig

    def __init__(self, config: LSGConfig, *, rngs: nnx.Rngs):
        """As :class:`Encoder`.

        Raises:
          ValueError: no global token, or more than the table has rows.
        """
        if not 1 <= config.num_global <= config.global_rows:
            raise ValueError(f"num_global={config.num_global} is not between 1 and global_rows={config.global_rows}")
        super().__init__(config, rngs=rngs)
        width = config.embedding_features or config.features
        draw = normal(0.02)(rngs.params(), (config.global_rows, width), config.param_dtype)
        self.global_tokens = nnx.Param(draw)
        self.extra = ExtraTokens(config.num_global)

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        own = {name: getattr(c, name) for name in ("num_global", "block", "sparse_block", "factor", "sparsity")}
        return {"name": "lsg_attention", **own}

    def enter(self, x: jax.Array, known: Tokens) -> tuple[jax.Array, Tokens]:
        """Prepends the global tokens."""
        if self.config.mask_first:
            real = jnp.ones(x.shape[:2], bool) if known.mask is None else known.mask
            known = known.replace(mask=real.at[:, 0].set(False))
        # The norm, dropout and projection of the embeddings act on each token separately.
        first = self.global_tokens[: self.config.num_global]
        first = first if self.embedding_norm is None else self.embedding_norm(first)
        first = first if self.dropout is None else self.dropout(first)
        return self.extra.put(x, first if self.projection is None else self.projection(first), known)

    def leave(self, x: jax.Array) -> jax.Array:
        """Removes the global tokens; with ``pool_global`` the first token's output becomes that of the first global
        one.
        """
        others, taken = self.extra.take(x)
        return others.at[:, 0].set(taken[:, 0]) if self.config.pool_global else others


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {"lsg_bert_base_4096": {"mask_first": True}},
    "roberta": {"lsg_roberta_base_4096": {**roberta.COMMON, "max_length": 4096}},
}


def _names(naming: Naming) -> Naming:
    rule = (f"{naming.prefix}embeddings.global_embeddings.weight", "global_tokens")
    return dataclasses.replace(naming, rules=[rule, *naming.rules])


RULES: dict[str, dict[str, Naming]] = {
    "bert": {"transformers": _names(bert.names("bert.")), "bare": _names(bert.names(""))},
    "roberta": {
        "transformers": _names(roberta.names("roberta.")),
        "bare": _names(roberta.names("", pooler="pooler.dense")),
    },
}
_KINDS = {kind: kind for kind in KINDS if kind != "first"} | {"bos_pooling": "first"}


def _sparsity(config: Mapping[str, Any]) -> Any:
    # An empty sparsity type means no sparse tokens.
    return one_of({"sparsity_type": config.get("sparsity_type", "norm") or "none"}, "sparsity_type", _KINDS)


DESCRIBED: dict[str, Any] = {
    **bert.DESCRIBED,
    "num_global": lambda config: config.get("num_global_tokens"),
    "block": lambda config: config.get("block_size"),
    "sparse_block": lambda config: config.get("sparse_block_size"),
    "factor": lambda config: config.get("sparsity_factor"),
    "sparsity": _sparsity,
    "mask_first": lambda config: config.get("mask_first_token"),
    "pool_global": lambda config: config.get("pool_with_global"),
}

RELEASES: dict[str, dict[str, dict[str, Release]]] = {
    "bert": {"lsg_bert_base_4096": {"ccdv": Release("hf://ccdv/lsg-bert-base-uncased-4096", 0, "unstated")}},
    "roberta": {"lsg_roberta_base_4096": {"ccdv": Release("hf://ccdv/lsg-base-4096", 0, "unstated")}},
}

# Those of BertForMaskedLM and RobertaForMaskedLM with 4096 positions, and of 512 global tokens.
PARAMETERS = {"lsg_bert_base_4096": 112_660_026, "lsg_roberta_base_4096": 127_843_161}

for _base, _variants in VARIANTS.items():
    register_family(
        "lsg",
        LSG,
        LSGConfig,
        _variants,
        parameters=PARAMETERS,
        rules=RULES[_base],
        releases=RELEASES[_base],
        described=DESCRIBED,
        paper=(117,),
    )


def convert_to_lsg(
    model: Encoder, *, first: int, mask: int, max_length: int = 4096, stride: int = 64, **options: Any
) -> LSG:
    """Converts a trained BERT or RoBERTa to an LSG model that reads up to ``max_length`` tokens.

    The position table is repeated. A global token is initialized to the sum of a word embedding (that of ``first`` for
    the first global token, that of ``mask`` for the others), of position embeddings ``stride`` apart and, for BERT, of
    the first type embedding. All other weights are copied.

    Args:
      model: made by ``zoo.create``; it is not modified.
      first: the id of the token that begins a text (``[CLS]`` or ``<s>``).
      mask: the id of the mask token.
      max_length: the longest sequence, in tokens, that the new model reads.
      stride: distance between the positions that initialize successive global tokens: 0, 64, 128, ..., then 1, 65, ...
      **options: hyper-parameters of :class:`LSGConfig`.

    Raises:
      ValueError: the model is no BERT or RoBERTa or has another mixer, it has fewer positions than ``global_rows``, or
        ``stride`` does not fit them.
    """
    name = getattr(model, "variant", None)
    base = None if name is None else variant(name).family
    if base not in VARIANTS or model.config.mixer is not None or model.config.pattern is not None:
        raise ValueError(
            f"convert_to_lsg takes a BERT or RoBERTa with its own attention, as zoo.create makes them; got "
            f"{type(model).__name__} {name or ''}"
        )
    given = {field.name: getattr(model.config, field.name) for field in dataclasses.fields(EncoderConfig)}
    given |= {"max_length": max_length, "mask_first": False, **options}
    made: Any = create(next(iter(VARIANTS[base])), **{n: v for n, v in given.items() if v is not None})
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(model).items()}
    words, offset = arrays["embedding.embedding"], model.config.position_offset
    table = arrays["position"]
    rows = table[offset:]
    many = np.concatenate([rows] * -(-max_length // len(rows)))[:max_length]
    arrays["position"] = np.concatenate([table[:offset], many])
    globals_ = _spread(rows, made.config.global_rows, stride) + np.where(
        np.arange(made.config.global_rows)[:, None] == 0, words[first], words[mask]
    )
    if base == "bert" and "types.embedding" in arrays:
        globals_ = globals_ + arrays["types.embedding"][0]
    assign(made, {**arrays, "global_tokens": jnp.asarray(globals_)})
    return made


def _spread(rows: np.ndarray, count: int, stride: int) -> np.ndarray:
    """``count`` of the positions ``rows`` (positions, features): those ``stride`` apart, then those that follow them.

    Raises:
      ValueError: ``stride`` does not fit the numbers of rows and of global tokens.
    """
    step = len(rows) // count
    if not step or stride % step or count % (stride // step):
        raise ValueError(
            f"{count} global tokens can't be initialized from positions {stride} apart of {len(rows)}: give another "
            f"global_rows= or stride="
        )
    chosen = rows[: count * step : step]
    return chosen.reshape(-1, stride // step, rows.shape[1]).swapaxes(0, 1).reshape(count, -1)
