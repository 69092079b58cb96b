"""xLSTM: Extended Long Short-Term Memory (Beck et al., 2024, arXiv:2405.04517).

    x = x + mLSTM(norm(x))                              most blocks (:mod:`layers.linear_attention.projected_mlstm`)
    x = x + sLSTM(norm(x));  x = x + GEGLU(norm(x))     some (:mod:`layers.linear_attention.slstm`)

xLSTM[a:b] has b sLSTM blocks for every a mLSTM blocks; the norms are LayerNorm without biases. ``xlstm_parity`` is the
model of the authors' experiments on parity, xLSTM[1:1]. The 350m variants have the paper's sizes for language modeling
(409.3M and 408.4M parameters); which of the 48 blocks of xLSTM[7:1] are sLSTM is our choice, and so is the size of
``xlstm_block_nano``. (xLSTM 7B, which has other blocks, is ``xlstm_7b``.) Names are the authors'; files saved from
models made on a GPU and on a CPU differ in the layout of R and b.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.mixer import MixerSpec, Place
from layers.mlp import GatedMLP, gelu
from zoo.backbones.causal import Causal, CausalConfig
from zoo.naming import Naming, Rearrange, Split, Tie
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class XLSTMConfig(CausalConfig):
    """Hyper-parameters of the first xLSTM.

    Attributes:
      slstm_at: indices of the sLSTM blocks, from 0; the others are mLSTM blocks.
      hidden: width of the channel mixer of the sLSTM blocks; None is 1.3 features, rounded up to a multiple of 64.
      channels, block: as in :class:`layers.ProjectedMLSTM`.
      conv_size: size of the convolution in both mixers.
    """

    mlp: None = None
    norm: str = "zero_centered_layer"
    tied: bool = False
    slstm_at: tuple[int, ...] = (1,)
    channels: int | None = None
    block: int = 4
    conv_size: int = 4


class XLSTM(Causal):
    """The first xLSTM; names as in :class:`Causal`."""

    config: XLSTMConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        if place.index in c.slstm_at:
            return {"name": "slstm", "conv_size": c.conv_size}
        return {"name": "projected_mlstm", "channels": c.channels, "block": c.block, "conv_size": c.conv_size}

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module | None:
        c = self.config
        if place.index not in c.slstm_at:
            return None
        hidden = c.hidden or -(-13 * c.features // 640) * 64
        return GatedMLP(c.features, hidden, activation=gelu, **place.dtypes, rngs=rngs)


_350M: dict[str, Any] = {"vocab_size": 50304, "features": 1024, "depth": 48, "num_heads": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "xlstm_parity": {"vocab_size": 3, "features": 64, "depth": 2, "num_heads": 1},
    "xlstm_1_0_350m": {**_350M, "slstm_at": ()},
    "xlstm_7_1_350m": {**_350M, "slstm_at": (7, 15, 23, 31, 39, 47)},
    "xlstm_block_nano": {"features": 128, "depth": 4, "num_heads": 4, "tied": True},
}

# Counted in the authors' code at these sizes.
PARAMETERS = {"xlstm_parity": 86_402, "xlstm_1_0_350m": 409_290_112, "xlstm_7_1_350m": 408_436_048}

_BLOCK, _OURS = "xlstm_block_stack.blocks.{i}", "blocks.{i}"
_THEIRS, _MIXER = f"{_BLOCK}.xlstm", f"{_OURS}.mixer"
# The authors' layer passes the outputs of fgate and igate to i and f, in this order.
_SLSTM = {"fgate": "input", "igate": "forget", "zgate": "cell", "ogate": "output"}
_BLOCKS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", **_SLSTM}


def _naming(recurrent: tuple[Rearrange, ...], bias: str) -> Naming:
    """The naming rules, with ``recurrent`` and ``bias`` the layout of R and b in the file."""
    turned = Rearrange("h o d -> h d o")
    return Naming(
        [
            (("token_embedding", "lm_head"), "embedding", Tie()),
            ("lm_head", "head"),
            (f"{_BLOCK}.xlstm_norm", f"{_OURS}.mixer_norm"),
            (f"{_BLOCK}.ffn_norm", f"{_OURS}.channel_norm"),
            (f"{_BLOCK}.ffn.proj_up", (f"{_OURS}.channel.gate", f"{_OURS}.channel.up"), Split()),
            (f"{_BLOCK}.ffn.proj_down", f"{_OURS}.channel.down"),
            (f"{_THEIRS}.proj_up", (f"{_MIXER}.up", f"{_MIXER}.gate"), Split()),
            (f"{_THEIRS}.proj_down", f"{_MIXER}.out"),
            (f"{_THEIRS}.conv1d.conv", f"{_MIXER}.conv"),
            *((f"{_THEIRS}.{theirs}.weight", f"{_MIXER}.{own}.kernel", turned) for theirs, own in _BLOCKS.items()),
            (f"{_THEIRS}.mlstm_cell.igate", f"{_MIXER}.input_gate"),
            (f"{_THEIRS}.mlstm_cell.fgate", f"{_MIXER}.forget_gate"),
            (f"{_THEIRS}.mlstm_cell.outnorm.weight", f"{_MIXER}.norm"),
            (f"{_THEIRS}.learnable_skip", f"{_MIXER}.skip"),
            (f"{_THEIRS}.slstm_cell._recurrent_kernel_", f"{_MIXER}.recurrent.kernel", *recurrent),
            (f"{_THEIRS}.slstm_cell._bias_", f"{_MIXER}.bias", Rearrange(bias)),
            (f"{_THEIRS}.group_norm.weight", f"{_MIXER}.scale"),
            ("xlstm_block_stack.post_blocks_norm", "norm"),
        ],
        prefix="xlstm_block_stack.",
    )


RULES = {
    "authors": _naming((), "(h g d) -> h g d"),
    "authors_cpu": _naming((Rearrange("h o d -> h d o"),), "(g h d) -> h g d"),
}

register_family(
    "xlstm",
    XLSTM,
    XLSTMConfig,
    VARIANTS,
    our_choice=("xlstm_block_nano",),
    parameters=PARAMETERS,
    rules=RULES,
)
