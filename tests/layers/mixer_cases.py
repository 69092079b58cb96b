"""The forms of every registered mixer that the suite runs.

A mixer without an entry in OPTIONS is tested with its default options, both ways if it supports both:
a new mixer needs no line here. An entry adds the option sets whose code differs; those after the first run one way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

import layers
from layers import Mixer, Place
from layers.attention.multi_head import soft_cap
from layers.initializers import truncated_normal
from layers.making import abstract, make
from layers.memory.choices import KL, MIRAS_STRUCTURE, GradientDescent, Memory, MLPMemory
from pallas_kernels import masks

FEATURES, HEADS, LENGTH, GRID = 16, 2, 21, (7, 6)
PADDED = LENGTH + 6

ATTENTION = {
    "plain": {},
    "grouped": {"num_heads": 4, "num_kv_heads": 2, "qk_norm": "rms", "rotary": {"base": 100.0, "dimensions": 2}},
    "window": {"window": 5, "rotary": 100.0, "score": soft_cap(2.0)},
    "persistent": {"window": 5, "rotary": 100.0, "persistent": 3},
    "sinks": {"sinks": True, "relative": "alibi"},
    "relative": {"relative": {"name": "keys", "reach": 3}, "visible": masks.segments(6) | masks.window(2, 2)},
    "sigmoid": {"normalize": "sigmoid", "scale": 0.5, "relative": "kerple", "value_dim": 6},
    "cosine": {"qk_norm": "unit", "logit_scale": 10.0, "key_bias": False},
}
WIDE = truncated_normal(0.3)
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "attention": ATTENTION,
    "agent": {
        "plain": {"agents": 4, "grid": (7, 5), "kernel_init": truncated_normal(0.2)},
        "coarse": {"agents": 9, "use_bias": False},
    },
    # Of sides that the reduction does not divide, and without a pooled map.
    "aggregated": {
        "plain": {"reduction": 3, "grid": (9, 9), "kernel_init": WIDE},
        "whole": {"reduction": 1, "num_heads": 4, "shared": 1, "chosen": 2, "kernel_init": WIDE},
    },
    "bigbird": {
        "plain": {"block": 2, "random": 2},
        "first": {"block": 3, "random": 0, "choice": "first", "num_kv_heads": 1},
    },
    "bilevel_routing": {
        "routed": {"regions": 2, "topk": 2},
        "dense": {"topk": None, "enhance": "input", "use_bias": False},
        "random": {"regions": 2, "topk": 1, "routing": "random", "enhancement_size": 0},
    },
    "cosformer": {"plain": {"max_length": 30}},
    "cosine_attention": {"plain": {"rotary": 100.0}},
    "cross_shaped": {"plain": {"stripe": 2}, "whole": {"stripe": None, "use_bias": False}},
    "direction_gated_linear": {"plain": {"activated": True, "temperature": 2.0}, "wide": {"key_expansion": 1.0}},
    "forgetting_attention": {
        "plain": {"num_heads": 4, "num_kv_heads": 2, "window": 5, "gated": True},
        "whole": {"qk_norm": "rms", "rotary": 100.0, "use_bias": True},
    },
    "focal_modulation": {
        "plain": {},
        "deep": {"levels": 3, "normalize": True, "inner_norm": True, "use_bias": False},
        "mean": {"levels": 0},
    },
    "context_mixing": {
        "plain": {"num_heads": 1, "kernel_size": 5, "kernel_init": WIDE},
        "context": {"num_heads": 1, "small_kernel_size": 3, "context_features": 4, "kernel_init": WIDE},
    },
    "large_kernel_convolution": {"plain": {"kernel_size": 5, "kernel_init": WIDE}},
    "gated_convolution": {
        "plain": {"kernel_init": truncated_normal(0.2)},
        "part": {"conv_ratio": 0.5, "kernel_size": 3, "expansion": 1.5, "use_bias": False, "kernel_init": WIDE},
    },
    "mixer_gate": {
        "plain": {"hidden": 12, "grid": GRID},
        "attention": {"hidden": 12, "inner": {"name": "attention", "kernel_init": WIDE}},
    },
    "predicted_sparse_attention": {
        "plain": {"grid": (6, 6), "keep": 0.8, "coefficients": 3, "threshold": 0.01, "kernel_init": WIDE},
        "nearest": {"keep": 0.2, "connections": "nearest", "kernel_init": WIDE},
    },
    "relu_attention": {"plain": {"rotary": 100.0, "kernel_init": WIDE}},
    "relu_linear": {"plain": {"floor": 0.5}},
    "routing": {
        "plain": {"clusters": 1024},
        "window": {"clusters": 3, "window": 6},
        "last": {"clusters": 3, "window": 4, "membership": "causal", "relative": 3},
    },
    "sigmoid_attention": {"plain": {"length": 9, "relative": "alibi", "kernel_init": WIDE}},
    "spatial_gating": {
        "plain": {"grid": GRID, "expansion": 3, "gate_init": WIDE, "kernel_init": WIDE},
    },
    "spatial_reduction": {"plain": {"stride": 2}, "linear": {"pool": 3}},
    "token_aware_pooling": {"plain": {"scales": 3, "norm": "layer"}},
    "token_mlp": {"plain": {"hidden": 9, "grid": GRID}, "linear": {"hidden": None, "grid": (4, 4)}},
    "wavelet_space": {
        "plain": {"levels": 2, "taps": 4, "inner": {"name": "attention", "kernel_init": WIDE}},
        "orthogonal": {"wavelet": "orthogonal", "levels": 1, "taps": 6, "shared": True},
        "lift": {"wavelet": "lift", "inner": {"name": "linear_attention", "kernel_init": WIDE}},
    },
    "windowed": {
        "plain": {"window": 4},
        "oblong": {"window": (2, 3)},
        "shifted": {"window": 4, "shift": 2, "padding": "zeros"},
        "stripes": {"window": (None, 2)},
    },
    "grid": {"plain": {"window": 4}, "oblong": {"window": (2, 3)}},
    "dilated": {"plain": {}, "window": {"rate": 3, "inner": {"name": "attention", "window": 2, "rotary": 100.0}}},
    "dilated_attention": {
        "plain": {"segments": (4, 8, 16), "rates": (1, 2, 4)},
        "ragged": {"num_heads": 4, "segments": (3, 10, 64), "rates": (1, 3, 6), "rotary": 100.0, "qk_norm": "rms",
                   "inner_norm": True},
    },
    "feed_forward_mixing": {"plain": {"max_length": 30, "hidden": 7}},
    "diverse_attention": {"plain": {"rotary": 100.0, "kernel_init": truncated_normal(0.5)}},
    "flow_attention": {"plain": {"kernel_init": WIDE}},
    "gin_attention": {
        "plain": {"edges": "sigmoid", "rotary": 100.0, "kernel_init": WIDE},
        "unprojected": {"project": False, "kernel_init": WIDE},
    },
    "halo": {
        "plain": {"block": 4, "halo": 1},
        "masked": {"block": 3, "halo": 2, "head_dim": 5, "padding": "masked", "use_bias": True},
    },
    "inline": {"plain": {}, "relu": {"residual": 0, "feature_map": "relu"}, "own": {"enhancement": 3, "norm": "rms"}},
    "landmark_attention": {
        "plain": {"period": 4, "kernel_init": WIDE},
        "retrieving": {"period": 3, "retrieved": 2, "local": 2, "rotary": 100.0, "kernel_init": WIDE},
    },
    "linear_attention": {
        "plain": {},
        "rotary": {"rotary": 100.0, "qk_norm": "rms", "feature_map": "silu+0.5", "head_dim": 4},
    },
    "kernelized_attention": {
        "plain": {"reach": 5},
        "unnormalized": {"length": None, "feature_map": "elu+1", "reach": 30},
    },
    "linformer_attention": {
        "plain": {"max_length": 40, "rank": 6, "kernel_init": WIDE},
        "each": {"max_length": 40, "rank": 3, "sharing": "none", "num_heads": 4, "num_kv_heads": 2, "use_bias": False},
    },
    "lion": {"plain": {"kernel_init": truncated_normal(0.2)}, "fixed": {"decay": "fixed"}},
    "lion_natural": {"plain": {"kernel_init": truncated_normal(0.2)}},
    "lookhere": {
        "plain": {"fields": ("halves",), "index": 1, "depth": 3},
        "mixed": {"num_heads": 8, "fields": ("eighths1", "none"), "use_bias": False},
    },
    "longformer_attention": {
        "plain": {"window": 6, "max_global": 3},
        "few": {"window": 3, "max_global": 2, "head_dim": 5, "use_bias": False},
    },
    "low_rank_attention": {"plain": {}, "learned": {"context": "learned", "use_bias": False}},
    "lsg_attention": {
        "plain": {"block": 4, "kernel_init": WIDE},
        "pooling": {"block": 4, "sparse_block": 2, "sparsity": "pooling", "num_global": 0},
        "stride": {"block": 2, "sparse_block": 4, "sparsity": "stride", "num_global": 2, "head_dim": 5},
    },
    "lsh_attention": {"plain": {"chunk": 4, "buckets": 4, "kernel_init": truncated_normal(0.3)}},
    "manhattan": {"plain": {}, "decomposed": {"decomposed": True, "use_bias": False}, "index": {"distance": "index"}},
    "randomized_positions": {
        "plain": {"inner": {"name": "attention", "rotary": 100.0}, "max_length": 64, "longest": 40, "seed": 3},
    },
    "rala": {"plain": {"kernel_init": truncated_normal(0.5)}, "softmax": {"softmax": True, "use_bias": False}},
    "mixture_of_heads": {"plain": {"num_heads": 4, "shared": 1, "chosen": 2, "kernel_init": WIDE}},
    "multi_head_latent_attention": {
        "plain": {"form": "absorbed", "rotary": 100.0, "kernel_init": truncated_normal(0.2)},
        "expanded": {
            "form": "expanded",
            "rotary": None,
            "query_latent_dim": 5,
            "value_dim": 3,
            "latent_dim": 7,
            "use_bias": True,
            "kernel_init": truncated_normal(0.2),
        },
    },
    "multi_path": {
        "plain": {"inner": {"name": "mamba", "state_dim": 3, "expand": 1, "step_rank": 2}},
        "mean": {
            "inner": {"name": "mamba", "state_dim": 3, "expand": 1},
            "paths": ("reverse", "forward"),
            "gate": False,
        },
    },
    "native_sparse_attention": {
        "plain": {
            "num_heads": 4,
            "num_kv_heads": 2,
            "block": 2,
            "selected": 4,
            "window": 3,
            "rotary": 100.0,
            "kernel_init": WIDE,
        },
    },
    "neighborhood": {"plain": {"window": 3, "bias": True}, "strides": {"window": 4, "stride": 2}},
    "mamba": {
        "plain": {},
        "small": {"state_dim": 3, "expand": 1, "conv_size": 2, "step_rank": 2, "use_bias": True},
        "stateless": {"state_dim": 0, "expand": 1},
    },
    "longhorn": {"plain": {"state_dim": 5, "step_rank": 2}},
    "mamba2": {"plain": {}, "grouped": {"state_dim": 6, "head_dim": 4, "groups": 2, "conv_size": 3}},
    "differential_mamba": {
        "plain": {"inner": {"name": "mamba2", "state_dim": 6, "expand": 1, "head_dim": 4, "conv_size": 3}, "index": 1},
        "exponential": {
            "inner": {"name": "mamba", "state_dim": 3, "expand": 1},
            "strength": "exponential",
            "vector": 3,
        },
    },
    "memory_mamba": {
        "plain": {"notes": 3, "note_dim": 6, "window": 2, "state_dim": 3, "expand": 1, "step_rank": 2},
        "every": {"notes": 5, "note_dim": 6, "window": 1, "note_threshold": 0.0, "fusion": "gated", "state_dim": 3},
        "product": {"notes": 2, "note_dim": 6, "recall_threshold": 0.0, "window": 3, "fusion": "product"},
        "priority": {"notes": 3, "note_dim": 6, "window": 2, "replacement": "priority", "note_threshold": 0.4,
                     "state_dim": 3, "expand": 1, "step_rank": 2},
    },
    "hydra": {"plain": {"state_dim": 6, "head_dim": 4, "groups": 2, "conv_size": 3}},
    "s4": {"plain": {"state_dim": 6}},
    "s4d": {
        "plain": {},
        "bilinear": {"initialization": "inv", "discretization": "bilinear", "state_dim": 6},
        "real": {"initialization": "real", "state_dim": 4},
    },
    "normalized_attention": {"plain": {"shift": 0.5, "kernel_init": WIDE}},
    "nystrom_attention": {
        "plain": {"landmarks": 4, "kernel_size": 5, "kernel_init": WIDE},
        "softmax": {"landmarks": 0, "kernel_size": None, "use_bias": False},
    },
    "relative_convolutional_attention": {"plain": {"reach": 6, "kernel_init": WIDE}},
    "selective_attention": {
        "plain": {"num_heads": 4, "num_kv_heads": 2, "window": 5},
        "mlp": {"token": "mlp", "kernel_init": WIDE},
    },
    "softplus_attention": {"plain": {"rotary": 100.0}},
    "block_recurrent_attention": {
        "plain": {"window": 4, "states": 3},
        "dual": {"window": 5, "states": 2, "gate": "lstm", "cell": "dual", "hidden": 7, "hidden_start": False},
        "single": {"window": 4, "states": 3, "gate": "lstm", "cell": "single", "hidden": 7},
    },
    "compressive_attention": {
        "plain": {"segment": 4, "memory": 4, "compressed": 3, "kernel_init": WIDE, "end_to_end": True},
        "most_used": {"segment": 4, "memory": 4, "compressed": 4, "compression": "most_used"},
        "mean": {"segment": 6, "memory": 3, "compressed": 2, "rate": 3, "compression": "mean"},
    },
    "transformer_xl": {"plain": {"segment": 4, "memory": 3, "kernel_init": WIDE}},
    "urpe_attention": {"plain": {"reach": 4}},
    "delta_net": {"plain": {}, "no_convolution": {"conv_size": None, "head_dim": 3}},
    "gated_delta_net": {
        "plain": {},
        "grouped": {"num_value_heads": 4, "head_dim": 6, "value_expansion": 1.5, "conv_bias": True},
    },
    "delta_product": {"plain": {}, "gated": {"steps": 3, "use_decay": True, "value_expansion": 1.0}},
    "causal_relation": {"plain": {"hidden": 12}, "linear": {"form": "linear"}},
    "combiner_attention": {
        "plain": {"segment": 4},
        "log": {"pattern": "log", "head_dim": 5},
        "axial": {"pattern": "axial", "segment": 3, "kernel_init": WIDE},
        "mixture": {"pattern": "mixture", "segment": 4, "use_bias": True},
    },
    "comba": {"plain": {"head_dim": 6, "value_expansion": 1.5, "conv_size": 3}},
    "kimi_delta_attention": {
        "plain": {"num_value_heads": 4, "head_dim": 6, "lower_bound": -5.0, "negative": True, "conv_size": 3},
    },
    "mixture_of_memories": {"plain": {"memories": 3, "conv_size": 3}},
    "rwkv6": {
        "plain": {"index": 1, "depth": 3, "zero_init": False, "decay_rank": 3, "shift_rank": 3, "key_expansion": 0.5},
    },
    "rwkv7": {"plain": {"index": 1, "depth": 3, "zero_init": False, "decay_rank": 3, "rate_rank": 3, "gate_rank": 3}},
    "reversed_attention": {"plain": {"temperature": 0.5, "kernel_init": WIDE}},
    "retention": {
        "plain": {"key_expansion": 0.5},
        "plain_heads": {"gated": False, "use_bias": True, "rotary": None, "decays": "paper", "value_expansion": 1.0},
    },
    "gated_linear_attention": {"plain": {"conv_size": 3, "key_expansion": 1.0, "decay_rank": 3}},
    "gru": {"plain": {"hidden": 12}, "unbiased": {"use_bias": False}},
    "lstm": {"plain": {"hidden": 12}},
    "hgrn": {"plain": {"lower_bound": 0.3, "expand": 2, "conv_size": 3}},
    "rg_lru": {"plain": {"channels": 12}},
    "native_hybrid_attention": {
        "plain": {"num_slots": 3, "window": 4},
        "overlapping": {"num_slots": 3, "window": 5, "delay": 0, "conv_size": 3, "rotary": None},
    },
    "gated_slot_attention": {"plain": {"num_slots": 3, "key_expansion": 0.5}},
    "hgrn2": {"plain": {"lower_bound": 0.3, "head_dim": 3}},
    "mlstm": {"plain": {"input_bias": 0.0, "use_bias": True}},
    "projected_mlstm": {"plain": {"conv_size": 3}},
    "slstm": {"plain": {"conv_size": 3, "recurrent_init": truncated_normal(0.5)}},
    "lightning_attention": {
        "plain": {"activate_values": True, "use_scale": True, "turning": True, "head_dim": 5, "index": 1, "depth": 3}
    },
    "neural_memory": {
        "plain": {},
        "deep": {
            "memory": Memory(MLPMemory(2, 1, residual=True), algorithm=GradientDescent(momentum=False)),
            "chunk": 5,
            "persistent": 3,
        },
        "linear": {"memory": Memory(MLPMemory(1)), "chunk": 1, "conv_size": None},
        "yaad": {"memory": "yaad", "chunk": 4},
        "memora": {"memory": Memory(MIRAS_STRUCTURE, retention=KL(total=4.0, every_token=True)), "chunk": 4},
    },
    "synthesizer_attention": {
        "plain": {"max_length": 40, "kernel_init": truncated_normal(0.5)},
        "mixture": {"scores": ("random", "factorized", "dot", "dense"), "max_length": 40, "rank": 3,
                    "kernel_init": truncated_normal(0.5), "use_bias": False},
    },
    "talking_heads": {
        "plain": {"kernel_init": truncated_normal(0.5)},
        "rotary": {"kernel_init": truncated_normal(0.5), "rotary": 100.0, "qk_norm": "rms", "use_bias": False},
    },
    # Deeper memories are neural_memory's and titans_mac's.
    "titans_mac": {
        "plain": {"segment": 5, "persistent": 2},
        "chunks": {"segment": 4, "chunk": 2, "persistent": 0, "memory": Memory(MLPMemory(1))},
    },
    "titans_mag": {"plain": {"window": 4, "persistent": 2, "chunk": 5, "memory": Memory(MLPMemory(1))}},
    "titans_mal": {"plain": {"window": 4, "persistent": 2, "chunk": 5, "memory": Memory(MLPMemory(1))}},
    "parallel": {"plain": {}, "mixed": {"branches": ("attention", {"name": "dilated", "rate": 2})}},
}


@dataclasses.dataclass(frozen=True)
class MixerCase:
    """One form of a mixer: its registered name, the label of its options, and whether it looks back only."""

    name: str
    label: str
    causal: bool

    def __str__(self) -> str:
        return f"{self.name}-{self.label}{'-causal' if self.causal else ''}"

    @property
    def member(self) -> str:
        """The member of a registry whose costs the tests of this case are."""
        return f"mixer {self.name}"

    @property
    def is_first(self) -> bool:
        """Whether it has a mixer's first options."""
        return self.label == next(iter(OPTIONS.get(self.name, {"plain": {}})))

    @property
    def quick(self) -> bool:
        """Whether it is of the quick tier: first options, causal where it can be, which promises most."""
        return self.is_first and self.causal == layers.mixer_class(self.name).supports_causal

    @property
    def options(self) -> dict[str, Any]:
        return OPTIONS.get(self.name, {"plain": {}})[self.label]

    @property
    def exact(self) -> bool:
        """Whether the future never shows: a class that streams by "selection" may have options that make it exact."""
        return layers.mixer_class(self.name).streaming == "exact" or self.declared.streaming == "exact"

    @property
    def packs(self) -> bool:
        """Whether documents that share a row are as if alone: not those of a grid, nor those that compete."""
        declared = self.declared
        return self.exact and "sequence" in declared.layouts and "segment_ids" in declared.honors

    @functools.cached_property
    def declared(self) -> Mixer:
        """The mixer without arrays, for what it says of itself: a suite is collected without drawing weights."""
        return abstract(self.build)

    @property
    def parameters(self) -> set[str]:
        """Names of its parameters."""
        return set(layers.flatten(self.declared, nnx.Param))

    def build(self, rngs: nnx.Rngs, changed: Mapping[str, Any] | None = None, **common: Any) -> Mixer:
        """As :meth:`make`, of weights that ``rngs`` gives; some options ``changed``."""
        place, options = Place(num_heads=HEADS, **common), {**self.options, **(changed or {})}
        return layers.create_mixer(self.name, FEATURES, causal=self.causal, place=place, rngs=rngs, **options)

    def make(self, **common: Any) -> Mixer:
        """The mixer, always of the same weights."""
        return make(functools.partial(self.build, **common), nnx.Rngs(0))


def ways(name: str, label: str) -> list[bool]:
    """Whether a form looks back only: first options both ways, where there are two, others only back."""
    cls, (first, *_) = layers.mixer_class(name), OPTIONS.get(name, {"plain": {}})
    both = [False] * cls.supports_bidirectional + [True] * cls.supports_causal
    return both if label == first else both[-1:]


CASES = [
    MixerCase(name, label, causal)
    for name in layers.list_mixers()
    for label in OPTIONS.get(name, {"plain": {}})
    for causal in ways(name, label)
]
# Both directions of a form have the same parameters and sums: the last is that which looks back, where there is one.
FORMS = list({(case.name, case.label): case for case in CASES}.values())


def brings_parameters(case: MixerCase) -> bool:
    """Whether a form has parameters that those of the mixer before it have not; a first one always."""
    known = {name for form in FORMS[: FORMS.index(case)] if form.name == case.name for name in form.parameters}
    return case.is_first or not case.parameters <= known


# One of each way to mix.
VARIOUS = (
    "attention", "gated_delta_net", "gated_linear_attention", "hgrn", "linear_attention", "mamba", "neural_memory",
    "rwkv7", "s4d",
)  # fmt: skip


def relative(a: Any, b: Any) -> float:
    """max|a-b| / max|b|."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
