"""Landmark transformers: Landmark Attention, Random-Access Infinite Context Length for Transformers (Mohtashami and
Jaggi, NeurIPS 2023, arXiv:2305.16300).

    x = the embedded words, with a landmark after every l - 1 of them
    N x [x = x + LandmarkAttention(LayerNorm(x));  x = x + W_2 gelu(W_1 LayerNorm(x))]
    logits = E LayerNorm(x without the landmarks)

The decoder of the authors' language models: every block of words ends in a landmark token that represents it
(:mod:`layers.attention.landmark`); rotary positions, which count landmarks too; no biases; a tied head. The model
inserts and removes the landmarks itself: they appear neither in its input nor in its predictions, generated text or
loss, and are not in the vocabulary. In the authors' files the landmark is a token, the last row of the embedding.

``landmark_200m`` is the model that the authors train on PG-19, with their embedding of 50304 rows: blocks of 50 words,
sequences of 512 tokens. At a length of 2048, with chunks of 250 words and 2 retrieved blocks (``retrieved=2, local=5``,
with weights trained without retrieval), the paper reports a perplexity of 15.14, and 14.72 for Transformer-XL with a
window of 512. The size of ``landmark_nano`` is our choice.

``landmark_llama_7b`` is the authors' LLaMA, released as the difference to Meta's weights with a script that adds it
(epfml/landmark-attention-llama7b-wdiff): blocks of 63 words, RMSNorm, SwiGLU, and an untied head, which also has a
logit for the landmark. The vocabulary is LLaMA's 32,000 tokens and one for padding. In the paper it finds a pass key in
98 % of texts of 32,000 tokens; the authors' script retrieves 5 blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.landmark import check_period
from layers.extra_tokens import ExtraTokens
from layers.initializers import normal
from layers.mixer import MixerSpec, Place
from layers.tokens import Tokens
from zoo.backbones.causal import Causal, CausalConfig, CausalState, Mlp
from zoo.language.llama import released_names
from zoo.naming import Naming, Split
from zoo.registry import FrozenOptions, register_family


@dataclasses.dataclass(frozen=True)
class LandmarkConfig(CausalConfig):
    """Hyper-parameters of landmark transformers.

    Attributes:
      period: l, tokens of a block, including the landmark, its last.
      retrieved, local: blocks that a query retrieves, and blocks of a chunk, as in :class:`layers.LandmarkAttention`;
        the parameters do not depend on them.
      rotary: base of the rotary embedding, or options of :class:`layers.position.Rotary`.
    """

    mlp: Mlp | None = "gelu"
    norm: str = "unbiased_layer"
    period: int = 51
    retrieved: int | None = None
    local: int = 1
    rotary: float | Mapping[str, Any] | None = FrozenOptions({"base": 10000.0, "interleaved": True})


class Landmark(Causal):
    """A landmark transformer. Names: those of :class:`Causal`, and ``landmark`` (1, features)."""

    stem = (*Causal.stem, "landmark")
    undecayed = (*Causal.undecayed, "landmark")
    config: LandmarkConfig

    def __init__(self, config: LandmarkConfig, *, rngs: nnx.Rngs):
        check_period(config.period)
        super().__init__(config, rngs=rngs)
        init = normal(config.embedding_std)
        self.landmark = nnx.Param(init(rngs.params(), (1, config.features), config.param_dtype))
        self.extra = ExtraTokens(1, place=config.period - 1)

    @property
    def outputs(self) -> int:
        """The head's width: one more than the vocabulary, for the landmark, as in the authors' files; that logit is
        never returned.
        """
        return self.config.vocab_size + 1

    def logits(self, hidden: jax.Array) -> jax.Array:
        logits = super().logits(hidden)
        return logits if self.head is None else logits[..., :-1]

    @property
    def segment_multiple(self) -> int:
        """The multiple, in words, at which documents that share a row must begin: that of a block's start."""
        blocks = -(-super().segment_multiple // self.config.period)
        return blocks * (self.config.period - 1)

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        options = {name: getattr(c, name) for name in ("period", "retrieved", "local", "rotary")}
        return {"name": "landmark_attention", **options}

    def put_in(
        self, x: jax.Array, known: Tokens, places: jax.Array | None = None
    ) -> tuple[jax.Array, Tokens, Callable[[jax.Array], jax.Array]]:
        if places is None:
            x, known = self.extra.put(x, self.landmark[...], known)
            return x, known, lambda y: self.extra.take(y)[0]
        x, known, at = self.extra.put_next(x, self.landmark[...], places, known)
        return x, known, lambda y: jnp.take_along_axis(y, at[..., None], axis=1)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> CausalState:
        room = None if max_length is None else max_length + max_length // (self.config.period - 1)
        return super().init_state(batch_size, room, dtype)


_PAPER: dict[str, Any] = {"vocab_size": 50303, "features": 1024, "depth": 12, "num_heads": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "landmark_nano": {"features": 128, "depth": 4, "num_heads": 4, "period": 17},
    "landmark_200m": _PAPER,
    "landmark_llama_7b": {
        "vocab_size": 32001, "features": 4096, "depth": 32, "num_heads": 32, "hidden": 11008, "mlp": "swiglu",
        "norm": "rms", "norm_epsilon": 1e-6, "rotary": 10000.0, "period": 64, "tied": False,
    },
}  # fmt: skip

_BLOCK, _OURS = "transformer.h.{i}", "blocks.{i}"
_LLAMA = released_names({"input_layernorm": "mixer_norm", "post_attention_layernorm": "channel_norm"})
RULES: dict[str, Naming] = {
    "authors": Naming(
        [
            # The tied head, which files may hold as well, is the same array.
            ("transformer.wte.weight", ("embedding.embedding", "landmark"), Split()),
            (f"{_BLOCK}.attn.c_attn", tuple(f"{_OURS}.mixer.{part}" for part in ("query", "key", "value")), Split()),
            (f"{_BLOCK}.attn.c_proj", f"{_OURS}.mixer.out"),
            (f"{_BLOCK}.ln_1", f"{_OURS}.mixer_norm"),
            (f"{_BLOCK}.ln_2", f"{_OURS}.channel_norm"),
            (f"{_BLOCK}.mlp.c_fc", f"{_OURS}.channel.up"),
            (f"{_BLOCK}.mlp.c_proj", f"{_OURS}.channel.down"),
            ("transformer.ln_f", "norm"),
        ],
        # Rotary frequencies, masks and the tied head.
        ignore=("transformer.wpe.freqs", f"{_BLOCK}.attn.bias", "lm_head.weight"),
    ),
    "llama": dataclasses.replace(
        _LLAMA, rules=(("model.embed_tokens.weight", ("embedding.embedding", "landmark"), Split()), *_LLAMA.rules[1:])
    ),
}

register_family(
    "landmark",
    Landmark,
    LandmarkConfig,
    VARIANTS,
    our_choice=("landmark_nano",),
    # Counted in the authors' model, and in Meta's with two more rows in the embedding and the head.
    parameters={"landmark_200m": 202_531_840, "landmark_llama_7b": 6_738_415_616 + 4 * 4096},
    rules=RULES,
    paper=(20,),
)
