"""The isotropic image backbone: patches become tokens, and every block sees them at one width.

    image -> patches -> + positions, prefix tokens -> blocks -> norm -> pool -> head

ViT, DeiT and other models whose blocks keep one resolution are this class with other hyper-parameters. Reductions
between blocks may remove tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.class_attention import ClassBlock
from layers.combinators import bidirectional, on_grid
from layers.drop import Dropout
from layers.extra_tokens import ExtraTokens, repeated
from layers.initializers import constant, normal, truncated_normal
from layers.linear import Linear
from layers.mixer import Mixer, MixerSpec, Place
from layers.mlp import MLP, GatedMLP, gelu, gelu_tanh
from layers.module import AuxLogits
from layers.norm import NORMS, Norm, create_norm
from layers.patch import PatchEmbed
from layers.position import FixedPositions, LearnedPositions
from layers.reduction import Extent, ReductionSpec, TokenReduction, create_reduction
from layers.stack import Passed, Stack
from layers.tokens import Tokens
from primitives.exponential import Later, activation, silu, slope_of_gated, value_and_gate
from zoo.backbones.classifier import Classifier, check_images, make_head
from zoo.backbones.model import choose, last_of_quarters, mixers
from zoo.backbones.pooling import AttentionPool
from zoo.registry import ModelConfig


@activation
def quick_gelu(x: jax.Array) -> tuple[jax.Array, Later]:
    """``x sigmoid(1.702 x)``, the approximation of GELU that CLIP was trained with."""
    value, gate = value_and_gate(x, 1.702 * x)
    return value, lambda: slope_of_gated(value, gate(), 1.702)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "swiglu": silu,
}


@dataclasses.dataclass(frozen=True)
class IsotropicConfig(ModelConfig):
    """Hyper-parameters of an isotropic image model.

    Attributes:
      image_size: side in pixels of the square image that the position table is made for; it is resampled for others.
      features, depth, num_heads, mlp_ratio: width of a token, number of blocks, attention heads, hidden width of the
        MLP / features.
      mlp: the activation "gelu", "gelu_tanh" or "quick_gelu", or "swiglu", gated: ``mlp_ratio * features`` is then the
        hidden width of each of the two halves.
      class_token, registers: whether there is a class token, and the number of register tokens, which stand before the
        patches.
      class_position: where the class token is among the patches: "first", before the registers, "middle" or "last"; or
        "after" the body: it then attends to the patches in blocks of its own (CaiT, :mod:`layers.class_attention`).
      class_blocks: number of these blocks "after" the body.
      distilled: a second class token and head, averaged with the first (DeiT).
      position: "learned" adds a table, "sincos" a fixed one of sines and cosines of rows and columns; None leaves
        positions to the mixer.
      rotary: base of the rotary embedding of rows and columns in the architecture's own attention, or its options as in
        :class:`layers.position.Rotary`; None for none.
      prefix_positions: which prefix tokens have positions of their own: "all", "class" (DINOv2 with registers) or
        "none".
      mask_token: a token that replaces masked patches (``embed(images, masked)``), as in self-supervised training.
      distilled_head: whether the second class token has a head; without one it only takes part in attention.
      pool: "token" (the class token), "average" (patches), "token_and_average" (both, side by side), or "attention" (a
        learned query).
      pooler, pooler_ratio: a linear layer and tanh after the pooling, as in pre-training (section 3.1 of ViT); its
        features / those of the pooling.
      head_bias: whether the head has a bias (CLIP's projection has none).
      norm_after_pool: the final norm follows the pooling instead of preceding it.
      final_norm: whether there is a norm after the last block.
      pre_norm: a norm before the first block (CLIP).
      norm, norm_epsilon: the kind of all norms, "layer", "rms" or "affine" (a scale and a shift without statistics),
        and the epsilon added to the variance.
      order: of the norms in blocks: "pre", or "res_post", after each branch (whose scales then start at
        ``layer_scale``).
      qk_norm, qkv_bias, layer_scale: norms of queries and keys, biases of queries, keys and values, and the initial
        scale of the branches (None for no scale).
      reductions: token reductions after blocks (:mod:`layers.reduction`), by the block's index, in the form of a
        ``pattern``: ``{3: "max_pool", 7: {"name": "top_k", "keep": 0.7}}``.
      antialias: how position tables are resampled to other grids; False resamples as PyTorch does without antialiasing,
        like the authors of DINOv2 without registers and all models of transformers except DINOv2 with registers.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    features: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"] = "gelu"
    class_token: bool = True
    class_position: Literal["first", "middle", "last", "after"] = "first"
    class_blocks: int = 2
    position: Literal["learned", "sincos"] | None = "learned"
    rotary: float | Mapping[str, Any] | None = None
    registers: int = 0
    distilled: bool = False
    distilled_head: bool = True
    prefix_positions: Literal["all", "class", "none"] = "all"
    mask_token: bool = False
    pool: Literal["token", "average", "token_and_average", "attention"] = "token"
    pooler: bool = False
    pooler_ratio: float = 1.0
    head_bias: bool = True
    norm_after_pool: bool = False
    final_norm: bool = True
    pre_norm: bool = False
    norm: Literal["layer", "rms", "affine"] = "layer"
    norm_epsilon: float = 1e-6
    order: Literal["pre", "res_post"] = "pre"
    qk_norm: bool = False
    qkv_bias: bool = True
    layer_scale: float | None = None
    reductions: Mapping[Any, ReductionSpec] | None = None
    antialias: bool = True


class Isotropic(Classifier):
    """An isotropic image model.

    Besides the hooks of :class:`Model`, a subclass may override ``make_stem``, ``make_position``, ``make_class_block``,
    ``reduction_spec``, and ``width`` if reductions change the features.

    Names: ``patch_embed``, ``position``, ``class_token``, ``distillation_token``, ``register_tokens``,
    ``prefix_position``, ``blocks.N``, ``blocks.reductions.N``, ``class_blocks.N``, ``norm`` or ``pool_norm``,
    ``attention_pool``, ``pooler``, ``head``, ``distilled_head``.
    """

    heads = ("head", "distilled_head")
    extras = before_head = ("pooler",)
    neutral = ("prefix_position", "mask_token")

    stem: ClassVar[tuple[str, ...]] = (
        "patch_embed",
        "position",
        "class_token",
        "distillation_token",
        "register_tokens",
        "mask_token",
        "prefix_position",
        "pre_norm",
    )

    config: Any
    extents: tuple[Extent, ...]
    takes_grid: bool
    prefix: int
    class_token: Any
    prefix_position: Any
    pool: str

    def __init__(self, config: IsotropicConfig, *, rngs: nnx.Rngs):
        """Builds the model.

        A mixer that takes grids only gets the grid alone: no prefix tokens, and average pooling (``adapted`` says so).

        Raises:
          ValueError: a stem that does not fit the image size, pooling by a token that does not exist, a class token
            among the patches together with other tokens or reductions, or a reduction that leaves no grid for mixers
            that need one.
        """
        c = self.config = config
        if c.pool.startswith("token") and not c.class_token:
            raise ValueError(f'pool="{c.pool}" needs class_token=True')
        if c.class_position not in ("first", "middle", "last", "after"):
            raise ValueError(f'class_position is "first", "middle", "last" or "after", got {c.class_position!r}')
        if c.class_position != "first" and (c.distilled or c.registers or c.prefix_positions == "class"):
            raise ValueError(
                f'class_position="{c.class_position}" is for a class token alone: without registers or distillation'
            )
        norm = self._norm_of()
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        width = self.width(c.depth)
        self.patch_embed = self.make_stem(rngs=rngs)
        grid = self.patch_embed.grid(c.image_size, c.image_size)
        after = c.class_token and c.class_position == "after"
        reductions = self._make_reductions(grid, 0 if after else c.class_token * (1 + c.distilled) + c.registers, rngs)
        if reductions and c.class_position in ("middle", "last"):
            raise ValueError(
                f'class_position="{c.class_position}" puts the token among those that reductions take away: leave '
                "these out"
            )
        self.blocks = self.make_stack(reductions=reductions, rngs=rngs)
        self.takes_grid = any(not {"sequence", "image"} & set(mixer.layouts) for mixer in mixers(self.blocks))
        if self.takes_grid:
            self._put_on_grid(grid, rngs)
        if self.takes_grid and not after:
            self.adapted = "the mixer takes the grid alone: no prefix tokens, average pooling"
            c = dataclasses.replace(
                c,
                class_token=False,
                distilled=False,
                registers=0,
                pool="average" if c.pool.startswith("token") else c.pool,
            )

        def token(count: int, std: float = 1e-6) -> nnx.Param:
            return nnx.Param(normal(std)(rngs.params(), (count, c.features), c.param_dtype))

        self.class_token = token(1) if c.class_token else None
        self.distillation_token = token(1, 0.02) if c.class_token and c.distilled else None
        self.register_tokens = token(c.registers) if c.registers else None
        self.mask_token = token(1, 0.02) if c.mask_token else None
        classes = c.class_token * (1 + c.distilled)
        self.prefix = 0 if after else classes + c.registers
        self.extra = ExtraTokens(self.prefix, "first" if c.class_position == "after" else c.class_position)
        self.class_blocks = (
            nnx.List([self.make_class_block(rngs=rngs) for _ in range(c.class_blocks)]) if after else None
        )
        placed = {"all": self.prefix, "class": classes, "none": 0}[c.prefix_positions] if c.position == "learned" else 0
        self.prefix_position = (
            nnx.Param(truncated_normal(0.02)(rngs.params(), (placed, c.features), c.param_dtype)) if placed else None
        )
        self.position = self.make_position(grid, rngs=rngs)
        self.dropout = Dropout(c.dropout, rngs=rngs) if c.dropout else None
        self.pre_norm = create_norm(norm, c.features, **common, rngs=rngs) if c.pre_norm else None
        self.norm = create_norm(norm, width, **common, rngs=rngs) if c.final_norm and not c.norm_after_pool else None
        self.pool_norm = create_norm(norm, width, **common, rngs=rngs) if c.final_norm and c.norm_after_pool else None
        pooling = {"norm": norm, "activation": ACTIVATIONS[c.mlp], **common}
        self.attention_pool = (
            AttentionPool(width, c.num_heads, c.mlp_ratio, **pooling, rngs=rngs) if c.pool == "attention" else None
        )
        pooled, self.pool = width * (1 + (c.pool == "token_and_average")), c.pool
        self.num_features = int(c.pooler_ratio * pooled) if c.pooler else pooled
        self.pooler = (
            Linear(pooled, self.num_features, kernel_init=truncated_normal(0.02), **common, rngs=rngs)
            if c.pooler
            else None
        )
        self.head = self.make_head(rngs=rngs)
        self.distilled_head = (
            make_head(width, c.num_classes, c, rngs)
            if self.distillation_token is not None and c.distilled_head
            else None
        )

    def make_stem(self, *, rngs: nnx.Rngs) -> Any:
        """The module that maps images to a grid of tokens (batch, rows, columns, features); its ``grid(height, width)``
        returns the grid's size.
        """
        c = self.config
        return PatchEmbed(
            c.patch_size,
            c.in_channels,
            c.features,
            use_bias=not c.pre_norm,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            rngs=rngs,
        )

    def shared(self, x: jax.Array) -> Any:
        """What the first block gets beside the tokens ``x`` (:class:`layers.stack.Stack`); None for nothing."""
        return None

    def make_class_block(self, *, rngs: nnx.Rngs) -> Any:
        """A block of the class token "after" the body: called with that token and the patches, it returns both."""
        c = self.config
        options = {"num_heads": c.num_heads, "norm": c.norm, "norm_epsilon": c.norm_epsilon, "use_bias": c.qkv_bias}
        common = {"layer_scale": c.layer_scale, "dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        return ClassBlock(c.features, activation=ACTIVATIONS[c.mlp], **options, **common)

    def width(self, index: int) -> int:
        """Features of the input of block ``index``; for ``index = depth``, of the last block's output."""
        return self.config.features

    def reduction_spec(self, index: int) -> ReductionSpec | None:
        """The token reduction after block ``index``; None for none."""
        c = self.config
        return None if c.reductions is None else choose(c.reductions, 0, index, c.depth)

    def _make_reductions(self, extent: Extent, prefix: int, rngs: nnx.Rngs) -> dict[int, TokenReduction]:
        """Makes the reductions; sets ``extents``, the layout of each block's tokens at the usual input size."""
        c, made, extents = self.config, {}, [extent]
        for i in range(c.depth):
            if (spec := self.reduction_spec(i)) is not None:
                options = {"prefix": prefix, "dtype": c.dtype, "param_dtype": c.param_dtype}
                made[i] = create_reduction(spec, self.width(i), extent=extents[i], **options, rngs=rngs)
            extents.append(made[i].extent_after(extents[i]) if i in made else extents[i])
        self.extents = tuple(extents)
        return made

    def place(self, stage: int, index: int) -> Place:
        extent = self.extents[index]
        grid = extent if isinstance(extent, tuple) else None
        return dataclasses.replace(super().place(stage, index), grid=grid, features=self.width(index))

    def make_position(self, grid: tuple[int, int], *, rngs: nnx.Rngs) -> Any:
        """What is added to the tokens of a grid: called with (rows, columns), it returns (rows, columns, features);
        None for nothing.

        Raises:
          ValueError: an unknown kind of position.
        """
        c = self.config
        if c.position == "learned":
            return LearnedPositions(grid, c.features, antialias=c.antialias, param_dtype=c.param_dtype, rngs=rngs)
        if c.position not in ("sincos", None):
            raise ValueError(f'position is "learned", "sincos" or None, got {c.position!r}')
        return None if c.position is None else FixedPositions(c.features)

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        norm = self._norm_of() if c.qk_norm else None
        return {"name": "attention", "use_bias": c.qkv_bias, "out_bias": True, "qk_norm": norm, "rotary": c.rotary}

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        return bidirectional(self.mixer_spec(place), self._width(place), place=place, rngs=rngs)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c, features = self.config, self._width(place)
        hidden = int(features * c.mlp_ratio)
        if c.mlp == "swiglu":
            return GatedMLP(features, hidden, use_bias=True, dropout=c.dropout, **place.dtypes, rngs=rngs)
        return MLP(features, hidden, activation=ACTIVATIONS[c.mlp], dropout=c.dropout, **place.dtypes, rngs=rngs)

    def block_options(self, place: Place) -> dict[str, Any]:
        c = self.config
        if c.order == "res_post" and c.layer_scale is not None:
            return {
                "order": c.order,
                "norm": functools.partial(NORMS[c.norm], scale_init=constant(c.layer_scale)),
                "norm_epsilon": c.norm_epsilon,
            }
        return {"order": c.order, "norm": c.norm, "norm_epsilon": c.norm_epsilon, "layer_scale": c.layer_scale}

    def _norm_of(self) -> Norm:
        """The norm of the configuration, as a callable."""
        c = self.config
        if c.norm not in ("layer", "rms", "affine"):
            raise ValueError(f'norm is "layer", "rms" or "affine", got {c.norm!r}')
        return functools.partial(NORMS[c.norm], epsilon=c.norm_epsilon)

    def _put_on_grid(self, grid: tuple[int, int], rngs: nnx.Rngs) -> None:
        """Adapts mixers of sequences to a grid, in row-major order, and reductions to tokens without a prefix."""
        if self.blocks.reductions is not None:
            if not all(isinstance(extent, tuple) for extent in self.extents):
                raise ValueError(
                    "a mixer takes grids only, and a reduction leaves none: give another mixer or reduction"
                )
            c = self.config
            self.blocks = Stack(
                self.blocks, reductions=self._make_reductions(grid, 0, rngs), remat=c.remat, scan=c.scan
            )
        for block in dict.fromkeys(self.blocks):
            for name, module in list(vars(block).items()):
                if isinstance(module, Mixer):
                    setattr(block, name, on_grid(module, self.config.features, rngs=rngs))

    def depth_of(self, path: list[str]) -> int:
        depth = super().depth_of(path)
        if self.class_blocks is None or path[0] in ("blocks", *self.stem):
            return depth
        return depth + (int(path[1]) if path[0] == "class_blocks" else len(self.class_blocks))

    def __call__(self, images: jax.Array) -> jax.Array:
        if self.distilled_head is None or self.head is None:
            return super().__call__(images)
        x = self._normed(self._run(images)[0][0])
        logits, distilled = self.head(x[:, 0]), self.distilled_head(x[:, 1])
        self.sow(AuxLogits, "class", logits)
        self.sow(AuxLogits, "distilled", distilled)
        return (logits + distilled) / 2

    def features(
        self, images: jax.Array, indices: Sequence[int] | None = None, *, prefix: bool = False, norm: bool = False
    ) -> list[Any]:
        """Outputs of some blocks as maps.

        Args:
          images: (batch, height, width, channels).
          indices: of the blocks; default: the last of each quarter of the depth.
          prefix: also return the tokens besides those of the patches.
          norm: apply the final norm.

        Returns:
          For each index a map (batch, rows, columns, features), or (map, other tokens (batch, count, features)). Where
          a reduction left no grid, the map is a pair: tokens (batch, length, features), and the row and column on the
          last grid of each, (batch or 1, length, 2).
        """
        indices = last_of_quarters(len(self.blocks)) if indices is None else indices
        maps: list[tuple[Any, jax.Array]] = []
        for x, tokens in self._run(images, capture=indices)[1]:
            patches: Any
            patches, others = self.extra.take(self._normed(x) if norm else x)
            if tokens.grid is not None:
                patches = patches.reshape(patches.shape[0], *tokens.grid, -1)
            elif (cells := tokens.grid_places(x.shape[1])) is not None:
                patches = patches, cells[:, self.prefix :]
            maps.append((patches, others))
        return maps if prefix else [patches for patches, _ in maps]

    def pooled(self, images: jax.Array) -> jax.Array:
        (x, _), _ = self._run(images)
        patches, others = self.extra.take(x if self.class_blocks is not None else self._normed(x))
        if self.class_blocks is not None:
            others = repeated(self.class_token[...], x.shape[0], x.dtype)
            for block in self.class_blocks:
                others, patches = block(others, patches)
            patches, others = self._normed(patches), self._normed(others)
        if self.attention_pool is not None:
            x = self.attention_pool(patches)
        else:
            parts = {"token": lambda: others[:, 0], "average": lambda: patches.mean(1)}
            x = jnp.concatenate([parts[part]() for part in self.pool.split("_and_")], axis=-1)
        x = x if self.pool_norm is None else self.pool_norm(x)
        return x if self.pooler is None else jnp.tanh(self.pooler(x))

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        super().reset_head(num_classes, rngs=rngs)
        if self.distilled_head is not None:
            self.distilled_head = nnx.data(
                make_head(self.num_features, num_classes, self.config, nnx.Rngs(1) if rngs is None else rngs)
            )

    def embed(self, images: jax.Array, masked: jax.Array | None = None) -> jax.Array:
        """Tokens that enter the first block: (batch, tokens, features).

        Args:
          images: (batch, height, width, channels).
          masked: (batch, rows, columns) bool, patches that the mask token replaces.
        """
        return self._embed(images, masked)[0]

    def _embed(self, images: jax.Array, masked: jax.Array | None = None) -> tuple[jax.Array, Tokens, tuple[int, int]]:
        """:meth:`embed`, what is known about these tokens, and the rows and columns of the patches."""
        check_images(images, self.config.in_channels)
        grid = self.patch_embed(images)
        batch, rows, columns, features = grid.shape
        if masked is not None:
            if self.mask_token is None:
                raise ValueError("masked= needs a model with mask_token=True")
            grid = jnp.where(masked[..., None], broadcast(self.mask_token[...], grid.shape, grid.dtype), grid)
        if self.position is not None:
            grid = grid + broadcast(self.position((rows, columns)), grid.shape, grid.dtype)
        x, tokens = grid.reshape(batch, rows * columns, features), Tokens(grid=(rows, columns))
        if self.prefix:
            others = [
                token[...]
                for token in (self.class_token, self.distillation_token, self.register_tokens)
                if token is not None
            ]
            learned = jnp.concatenate(others)
            if self.prefix_position is not None:
                placed = self.prefix_position[...]
                learned = learned.at[: len(placed)].add(placed)
            x, tokens = self.extra.put(x, learned, tokens)
        x = x if self.dropout is None else self.dropout(x)
        return x if self.pre_norm is None else self.pre_norm(x), tokens, (rows, columns)

    def _normed(self, x: jax.Array) -> jax.Array:
        return x if self.norm is None else self.norm(x)

    def _run(self, images: jax.Array, capture: Sequence[int] = ()) -> tuple[Passed, list[Passed]]:
        """Tokens (batch, tokens, features) after the last block, and those after the blocks in ``capture``, each with
        the grid of the patches."""
        x, tokens, grid = self._embed(images)
        if self.takes_grid:
            x = x.reshape(x.shape[0], *grid, x.shape[2])
            last, found, _ = self.blocks.through(x, capture=capture, shared=self.shared(x))
            last, *found = [
                (y.reshape(y.shape[0], -1, y.shape[3]), Tokens(grid=(y.shape[1], y.shape[2])))
                for y, _ in (last, *found)
            ]
            return last, found
        last, found, _ = self.blocks.through(x, tokens, capture=capture, shared=self.shared(x))
        if self.extra.place != "first":
            # The mixers saw no grid, and no tokens were removed.
            last, *found = [(y, Tokens(grid=grid)) for y, _ in (last, *found)]
        return last, found
