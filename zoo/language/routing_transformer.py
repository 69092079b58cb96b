"""Routing Transformer: Efficient Content-Based Sparse Attention with Routing Transformers (A. Roy et al., 2020,
arXiv:2003.05997).

    x = x + (LocalAttention(norm(x)) + RoutingAttention(norm(x))) / 2;  x = x + MLP(norm(x))

The upper layers divide their heads between a sliding window and routing attention (:mod:`layers.sparse.routing`); the
lower ones use the window alone. Sizes are those of the authors' hyper-parameter sets wikitext103_local_cluster4k,
enwik8_local_cluster8k, imagenet_local_cluster and pg19_local_cluster8k; the size of ``routing_transformer_nano`` is our
choice. Differences: a window of 512 replaces their blocks of 256 tokens that also attend to the previous block, rotary
positions replace the learned relative vectors of their local heads, and a pre-norm block with SwiGLU replaces their
post-norm block with GEGLU. Their heads on PG-19 have 129 features, ours 128.

``membership`` is how tokens are assigned to clusters in training: "balanced", the paper's, uses later tokens to choose
the members of a cluster, so that the loss of such a model is not that of predicting from the past alone. Generation
always uses "causal" membership (``zoo.create(name, membership="causal")`` does the same for whole sequences).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class RoutingTransformerConfig(CausalConfig):
    """Hyper-parameters of the Routing Transformer.

    Attributes:
      head_dim: features of a head; None is features / num_heads.
      window: tokens that a local head attends to, the current one included.
      rotary: base of the rotary embedding of local heads; None for no positions.
      routed_heads: how many of the ``num_heads`` use routing, in layers with routing.
      routed_layers: how many of the last layers use routing; None is all.
      clusters, cluster_window, membership, relative, decay, scale: of routing, as in :class:`layers.RoutingAttention`.
    """

    norm: str = "layer"
    norm_epsilon: float = 1e-6
    head_dim: int | None = None
    window: int = 512
    rotary: float | None = 10000.0
    routed_heads: int = 4
    routed_layers: int | None = None
    clusters: int = 16
    cluster_window: int | None = 512
    membership: Literal["balanced", "causal"] = "balanced"
    relative: int | None = 512
    decay: float = 0.999
    scale: float | None = 1.0


class RoutingTransformer(Causal):
    """The Routing Transformer; names as in :class:`Causal`."""

    config: RoutingTransformerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        """The local and routing heads of a layer.

        Raises:
          ValueError: more routed heads than heads.
        """
        c = self.config
        if not 0 <= c.routed_heads <= c.num_heads:
            raise ValueError(f"routed_heads={c.routed_heads} must be between 0 and num_heads={c.num_heads}")
        routed = c.routed_heads if c.routed_layers is None or (place.index or 0) >= c.depth - c.routed_layers else 0
        head_dim = c.head_dim or c.features // c.num_heads
        local = {
            "name": "attention",
            "num_heads": c.num_heads - routed,
            "head_dim": head_dim,
            "window": c.window,
            "rotary": c.rotary,
            "use_bias": False,
        }
        routing = {
            "name": "routing",
            "num_heads": routed,
            "head_dim": head_dim,
            "clusters": c.clusters,
            "window": c.cluster_window,
        }
        routing |= {"membership": c.membership, "relative": c.relative, "decay": c.decay, "scale": c.scale}
        branches = [branch for branch in (local, routing) if branch["num_heads"]]
        return branches[0] if len(branches) == 1 else {"name": "parallel", "branches": tuple(branches)}


VARIANTS: dict[str, dict[str, Any]] = {
    "routing_transformer_nano": {
        "features": 128, "depth": 4, "num_heads": 4, "window": 64, "routed_heads": 2, "routed_layers": 2,
        "clusters": 8, "cluster_window": 32, "relative": 32, "decay": 0.99, "scale": None,
    },
    "routing_transformer_wikitext103": {
        "vocab_size": 267735, "features": 1024, "hidden": 3072, "depth": 14, "num_heads": 16, "routed_heads": 8,
        "clusters": 8, "max_length": 4096,
    },
    "routing_transformer_enwik8": {"features": 1024, "hidden": 3072, "depth": 12, "num_heads": 8, "routed_heads": 4,
        "clusters": 16, "max_length": 8192},
    "routing_transformer_imagenet64": {
        "features": 1024, "mlp": "gelu", "hidden": 2048, "depth": 24, "num_heads": 16, "routed_heads": 4, "clusters": 8,
        "cluster_window": 2048,
        "position": "learned", "max_length": 12288, "rotary": None, "relative": None,
    },
    "routing_transformer_pg19": {
        "vocab_size": 32768, "features": 1032, "hidden": 4096, "depth": 22, "num_heads": 8, "head_dim": 128,
        "routed_heads": 2, "routed_layers": 1, "clusters": 16, "max_length": 8192,
    },
}  # fmt: skip

register_family(
    "routing_transformer",
    RoutingTransformer,
    RoutingTransformerConfig,
    VARIANTS,
    our_choice=("routing_transformer_nano",),
    paper=(35,),
)
