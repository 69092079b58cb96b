"""Layers: every token mixer, with one interface, and the blocks and stacks that carry them."""

from layers.attention.agent import AgentAttention
from layers.attention.aggregated import AggregatedAttention
from layers.attention.block_recurrent import BlockRecurrentAttention
from layers.attention.causal_relation import CausalRelation
from layers.attention.compressive import CompressiveAttention
from layers.attention.cosformer import CosFormerAttention
from layers.attention.cosine import CosineAttention
from layers.attention.cross_shaped import CrossShapedAttention
from layers.attention.differential import DifferentialAttention
from layers.attention.direction_gated import DirectionGatedLinearAttention
from layers.attention.diverse import DiverseAttention
from layers.attention.elementwise import ReLUAttention, SigmoidAttention
from layers.attention.flow import FlowAttention
from layers.attention.forgetting import ForgettingAttention
from layers.attention.halo import HaloAttention
from layers.attention.inline import InLineAttention
from layers.attention.isomorphic import IsomorphicAttention
from layers.attention.kernelized import KernelizedAttention
from layers.attention.landmark import LandmarkAttention
from layers.attention.latent import MultiHeadLatentAttention
from layers.attention.linear import LinearAttention, PerformerAttention
from layers.attention.linformer import LinformerAttention
from layers.attention.lion import LionAttention, NaturalLionAttention
from layers.attention.look_here import DirectedAttention
from layers.attention.manhattan import ManhattanAttention
from layers.attention.mixture_of_heads import MixtureOfHeads
from layers.attention.multi_head import MultiHeadAttention, soft_cap
from layers.attention.neighborhood import NeighborhoodAttention
from layers.attention.normalized import NormalizedAttention
from layers.attention.nystrom import NystromAttention
from layers.attention.projected import ProjectedAttention
from layers.attention.rank_augmented import RankAugmentedLinearAttention
from layers.attention.relative_convolutional import RelativeConvolutionalAttention
from layers.attention.relu_linear import ReLULinearAttention
from layers.attention.reversed import ReversedAttention
from layers.attention.selective import SelectiveAttention
from layers.attention.softplus import SoftplusAttention
from layers.attention.spatial_reduction import SpatialReductionAttention
from layers.attention.synthesizer import SynthesizerAttention
from layers.attention.talking_heads import TalkingHeadsAttention
from layers.attention.transformer_xl import TransformerXLAttention
from layers.attention.universal import UniversalAttention
from layers.block import Block, Branch
from layers.bottleneck import BasicBlock, Bottleneck
from layers.class_attention import ClassBlock
from layers.combinators import Bidirectional, Dilated, Parallel, RowMajor, Scan2D, bidirectional, on_grid
from layers.context_mixing import ContextMixingConvolution
from layers.convolution import CausalConvolution
from layers.delta.delta_net import Comba, DeltaNet, DeltaProduct, GatedDeltaNet
from layers.delta.kimi_delta_attention import KimiDeltaAttention
from layers.delta.mixture_of_memories import MixtureOfMemories
from layers.delta.rwkv7 import RWKV7
from layers.depthwise import DepthwiseConv, DepthwiseConvolution
from layers.drop import Dropout, DropPath, LayerScale
from layers.experts import MixtureOfExperts
from layers.extra_tokens import ExtraTokens
from layers.feature_maps import create_feature_map
from layers.feed_forward_mixing import FeedForwardMixing
from layers.focal import FocalModulation
from layers.fourier import FourierMixing
from layers.gated_convolution import GatedConvolution
from layers.gated_recurrent import GRU, LSTM
from layers.gates import create_gate
from layers.gaussian_adaptive import GaussianAdaptiveAttention
from layers.large_kernel import LargeKernelConvolution
from layers.linear import Embed, Linear
from layers.linear_attention.aaren import Aaren
from layers.linear_attention.gated_linear_attention import GatedLinearAttention
from layers.linear_attention.gated_slot_attention import GatedSlotAttention
from layers.linear_attention.hgrn import HGRN
from layers.linear_attention.hgrn2 import HGRN2
from layers.linear_attention.lightning import LightningAttention
from layers.linear_attention.mlstm import MLSTM
from layers.linear_attention.native_hybrid_attention import NativeHybridAttention
from layers.linear_attention.projected_mlstm import ProjectedMLSTM
from layers.linear_attention.retention import Retention
from layers.linear_attention.rwkv6 import RWKV6
from layers.linear_attention.slstm import SLSTM
from layers.lora import add_lora, merge_lora
from layers.low_rank import LowRank
from layers.low_rank_attention import LowRankAttention, LowRankPool
from layers.memory.choices import MEMORIES, Memory
from layers.memory.neural_memory import NeuralMemory
from layers.memory.titans import MemoryAsContext, MemoryAsGate, MemoryAsLayer
from layers.mixer import Mixer, MixerSpec, Place, create_mixer, list_mixers, mixer_class, register_mixer
from layers.mixer_gate import MixerGatingUnit
from layers.mlp import MLP, ConvMLP, GatedConvMLP, GatedMLP
from layers.module import AuxLogits, AuxLoss, Constant, Diagnostic, Module, Statistic, collecting
from layers.multi_path import MultiPath
from layers.norm import BatchNorm, GatedRMSNorm, LayerNorm, RMSNorm, create_norm
from layers.patch import ConvNorm, ConvStem, PatchEmbed, PatchMerging
from layers.randomized_positions import RandomizedPlaces, RandomizedPositions
from layers.recurrent import Recurrent, RecurrentState
from layers.reduction import TokenReduction, create_reduction, list_reductions, reduction_class, register_reduction
from layers.sparse.big_bird import BigBirdAttention
from layers.sparse.bilevel_routing import BilevelRoutingAttention
from layers.sparse.combiner import CombinerAttention
from layers.sparse.dilated import DilatedAttention
from layers.sparse.longformer import LongformerAttention
from layers.sparse.lsg import LSGAttention
from layers.sparse.lsh import LSHAttention
from layers.sparse.native import NativeSparseAttention
from layers.sparse.predicted import PredictedSparseAttention
from layers.sparse.routing import RoutingAttention
from layers.stack import Stack, drop_path_rates
from layers.state import assign, flatten, parameter_count
from layers.state_space.differential import DifferentialMamba
from layers.state_space.hydra import Hydra
from layers.state_space.mamba import Longhorn, Mamba, SelectiveState
from layers.state_space.mamba2 import Mamba2
from layers.state_space.memory_mamba import MemoryMamba
from layers.state_space.rg_lru import RGLRU
from layers.state_space.s4 import S4
from layers.state_space.s4d import S4D
from layers.token_aware_pooling import TokenAwarePooling
from layers.token_mlp import SpatialGating, TokenMLP
from layers.token_shift import ShiftedMLP, TokenShift
from layers.tokens import Tokens
from layers.wavelet_space import WaveletSpace
from layers.windows import Grid, Windowed

__all__ = [
    "GRU",
    "HGRN",
    "HGRN2",
    "LSTM",
    "MEMORIES",
    "MLP",
    "MLSTM",
    "RGLRU",
    "RWKV6",
    "RWKV7",
    "S4",
    "S4D",
    "SLSTM",
    "Aaren",
    "AgentAttention",
    "AggregatedAttention",
    "AuxLogits",
    "AuxLoss",
    "BasicBlock",
    "BatchNorm",
    "Bidirectional",
    "BigBirdAttention",
    "BilevelRoutingAttention",
    "Block",
    "BlockRecurrentAttention",
    "Bottleneck",
    "Branch",
    "CausalConvolution",
    "CausalRelation",
    "ClassBlock",
    "Comba",
    "CombinerAttention",
    "CompressiveAttention",
    "Constant",
    "ContextMixingConvolution",
    "ConvMLP",
    "ConvNorm",
    "ConvStem",
    "CosFormerAttention",
    "CosineAttention",
    "CrossShapedAttention",
    "DeltaNet",
    "DeltaProduct",
    "DepthwiseConv",
    "DepthwiseConvolution",
    "Diagnostic",
    "DifferentialAttention",
    "DifferentialMamba",
    "Dilated",
    "DilatedAttention",
    "DirectedAttention",
    "DirectionGatedLinearAttention",
    "DiverseAttention",
    "DropPath",
    "Dropout",
    "Embed",
    "ExtraTokens",
    "FeedForwardMixing",
    "FlowAttention",
    "FocalModulation",
    "ForgettingAttention",
    "FourierMixing",
    "GatedConvMLP",
    "GatedConvolution",
    "GatedDeltaNet",
    "GatedLinearAttention",
    "GatedMLP",
    "GatedRMSNorm",
    "GatedSlotAttention",
    "GaussianAdaptiveAttention",
    "Grid",
    "HaloAttention",
    "Hydra",
    "InLineAttention",
    "IsomorphicAttention",
    "KernelizedAttention",
    "KimiDeltaAttention",
    "LSGAttention",
    "LSHAttention",
    "LandmarkAttention",
    "LargeKernelConvolution",
    "LayerNorm",
    "LayerScale",
    "LightningAttention",
    "Linear",
    "LinearAttention",
    "LinformerAttention",
    "LionAttention",
    "LongformerAttention",
    "Longhorn",
    "LowRank",
    "LowRankAttention",
    "LowRankPool",
    "Mamba",
    "Mamba2",
    "ManhattanAttention",
    "Memory",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MemoryMamba",
    "Mixer",
    "MixerGatingUnit",
    "MixerSpec",
    "MixtureOfExperts",
    "MixtureOfHeads",
    "MixtureOfMemories",
    "Module",
    "MultiHeadAttention",
    "MultiHeadLatentAttention",
    "MultiPath",
    "NativeHybridAttention",
    "NativeSparseAttention",
    "NaturalLionAttention",
    "NeighborhoodAttention",
    "NeuralMemory",
    "NormalizedAttention",
    "NystromAttention",
    "Parallel",
    "PatchEmbed",
    "PatchMerging",
    "PerformerAttention",
    "Place",
    "PredictedSparseAttention",
    "ProjectedAttention",
    "ProjectedMLSTM",
    "RMSNorm",
    "RandomizedPlaces",
    "RandomizedPositions",
    "RankAugmentedLinearAttention",
    "ReLUAttention",
    "ReLULinearAttention",
    "Recurrent",
    "RecurrentState",
    "RelativeConvolutionalAttention",
    "Retention",
    "ReversedAttention",
    "RoutingAttention",
    "RowMajor",
    "Scan2D",
    "SelectiveAttention",
    "SelectiveState",
    "ShiftedMLP",
    "SigmoidAttention",
    "SoftplusAttention",
    "SpatialGating",
    "SpatialReductionAttention",
    "Stack",
    "Statistic",
    "SynthesizerAttention",
    "TalkingHeadsAttention",
    "TokenAwarePooling",
    "TokenMLP",
    "TokenReduction",
    "TokenShift",
    "Tokens",
    "TransformerXLAttention",
    "UniversalAttention",
    "WaveletSpace",
    "Windowed",
    "add_lora",
    "assign",
    "bidirectional",
    "collecting",
    "create_feature_map",
    "create_gate",
    "create_mixer",
    "create_norm",
    "create_reduction",
    "drop_path_rates",
    "flatten",
    "list_mixers",
    "list_reductions",
    "merge_lora",
    "mixer_class",
    "on_grid",
    "parameter_count",
    "reduction_class",
    "register_mixer",
    "register_reduction",
    "soft_cap",
]
