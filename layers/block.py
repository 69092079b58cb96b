"""The residual block: the only place for norm order, layer scale, drop path and the state of causal parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.drop import DropPath, LayerScale
from layers.mixer import Mixer, finite_padding
from layers.module import Diagnostic, Module
from layers.norm import Norm, create_norm
from layers.tokens import Known, Tokens
from primitives.fusion import gradient_computed_once

Order = Literal["pre", "post", "res_post", "sandwich", "parallel"]
ORDERS: tuple[Order, ...] = ("pre", "post", "res_post", "sandwich", "parallel")
BLOCK: Any = "block"
"""The value of a branch's option that means "as in the block"."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """One residual branch of a block.

    With s standing for the branch's scale and drop path, the orders are

        pre       x = x + s(module(norm(x)))
        post      x = norm(x + s(module(x)))                           the original transformer
        res_post  x = x + s(norm(module(x)))                           Swin v2
        sandwich  x = x + s(post_norm(module(norm(x))))                Gemma 2
        parallel  beside the branch before it: x = x + s(before(norm(x))) + s(module(norm(x))), each with its own norm
          and s;
                  one without a norm is part of the branch before it (GPT-J, ViT-22B): x = x + s(before(h) + module(h))
                  with h = norm(x); it has no scale, drop path or skip of its own

    Attributes:
      module: an instance. A :class:`Mixer` also gets the :class:`Tokens` and its part of the state; any other module is
        called with x alone.
      norm: a name or a callable, None for none.
      order: position of the norm.
      scale: initial value of the per-feature factors, None for none.
      drop: probability of dropping the branch, None for none.
      skip: a module applied to the residual x before the branch is added; None for the identity.
      norm_of: the name of an earlier branch whose norm this branch uses instead of its own.

    ``norm``, ``order``, ``scale`` and ``drop`` default to the values of the block.
    """

    module: nnx.Module
    norm: Norm | None = BLOCK
    order: Order = BLOCK
    scale: float | None = BLOCK
    drop: float | None = BLOCK
    skip: nnx.Module | None = None
    norm_of: str | None = None


class Block(Module):
    """Named residual branches, one after another; those of a transformer block are ``mixer`` and ``channel``.

        Block({"mixer": attention, "channel": mlp}, features=64, rngs=rngs)            x = x + mixer(norm(x)); ...
        Block({"position": Branch(conv, norm=None), "mixer": attention, "channel": mlp}, features=64, rngs=rngs)

    Names of the parts of a branch: ``NAME``, ``NAME_norm``, ``NAME_post_norm`` (sandwich), ``NAME_scale``,
      ``NAME_drop``, ``NAME_skip``.
    """

    def __init__(
        self,
        branches: Mapping[str, nnx.Module | Branch],
        *,
        features: int,
        norm: Norm | None = "layer",
        norm_epsilon: float = 1e-6,
        order: Order = "pre",
        layer_scale: float | None = None,
        drop_path: float | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          branches: modules, or a :class:`Branch` where one needs options of its own.
          norm, norm_epsilon, order, layer_scale, drop_path: defaults for branches that do not set their own. (A stack
            gives a drop path rate to all of its blocks or to none: a rate of 0.0 keeps the block's program equal to its
            neighbors'.)

        Raises:
          ValueError: no branch, an unknown order, a parallel first branch, a parallel branch without a norm that has a
            scale, drop path or skip of its own, or ``norm_of`` a branch without a norm.
        """
        if not branches:
            raise ValueError("a block needs at least one branch")
        own: dict[str, Any] = {"norm": norm, "order": order, "scale": layer_scale, "drop": drop_path}
        plans: list[tuple[tuple[str, ...], Order]] = []
        owners: dict[str, str] = {}
        for name, given in branches.items():
            stated = given if isinstance(given, Branch) else Branch(given)
            branch = dataclasses.replace(
                stated, **{option: value for option, value in own.items() if getattr(stated, option) is BLOCK}
            )
            if branch.order not in ORDERS:
                raise ValueError(f"the order of a branch is one of {', '.join(ORDERS)}; {name!r} has {branch.order!r}")
            if branch.order == "parallel" and not plans:
                raise ValueError(f"{name!r} is the first branch: there is no branch before it to be parallel to")
            if branch.order == "parallel" and branch.norm is None:
                before, order_before = plans[-1]
                if stated.scale is not BLOCK or stated.drop is not BLOCK or stated.skip is not None:
                    raise ValueError(
                        f"{name!r} has no norm and so is part of {before[0]!r}: give that one its scale, drop or skip"
                    )
                setattr(self, name, branch.module)
                plans[-1] = ((*before, name), order_before)
                continue

            if branch.norm_of is not None and getattr(self, f"{branch.norm_of}_norm", None) is None:
                raise ValueError(
                    f"{name!r} shares the norm of {branch.norm_of!r}, and no branch before it has that norm"
                )
            owners[name] = name if branch.norm_of is None else branch.norm_of

            def make_norm(branch: Branch = branch) -> nnx.Module | None:
                options = {"epsilon": norm_epsilon, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
                return None if branch.norm is None else create_norm(branch.norm, features, **options)

            scale = (
                None if branch.scale is None else LayerScale(features, branch.scale, param_dtype=param_dtype, rngs=rngs)
            )
            own_norm = None if branch.norm_of is not None else make_norm()
            parts = {"_norm": own_norm, "": branch.module, "_scale": scale}
            parts["_drop"] = None if branch.drop is None else DropPath(branch.drop, rngs=rngs)
            parts["_skip"] = branch.skip
            if branch.order == "sandwich":
                parts["_post_norm"] = make_norm()
            for part, module in parts.items():
                setattr(self, name + part, module)
            plans.append(((name,), branch.order))
        self.branches = tuple(
            plans
        )  # the names of the modules that are summed, the first being the branch's, and its order
        self.norm_owners = tuple(owners.items())

    def __call__(self, x: jax.Array, tokens: Known = None, shared: Any = None, own: Any = None) -> Any:
        """Maps ``x`` to the same shape.

        Args:
          x, tokens: as :class:`Mixer`.
          shared, own: what each block passes to the next, and what is given to this block only
            (:class:`layers.stack.Stack`).

        Returns:
          The new x; (x, shared) where ``shared`` is given.
        """
        x, shared, _ = self._run(x, self.checked(tokens), shared, own, None)
        return x if shared is None else (x, shared)

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: Any = jnp.float32,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> dict[str, Any]:
        """The states of the mixers, by the name of the branch."""
        mixers = {name: part for name, part in self._parts().items() if isinstance(part, Mixer)}
        cross = {name: "context" in part.honors for name, part in mixers.items()}
        return {
            name: part.init_state(batch_size, max_length, dtype, *((context, context_mask) if cross[name] else ()))
            for name, part in mixers.items()
        }

    def extend(
        self, x: jax.Array, state: dict[str, Any], tokens: Known = None, shared: Any = None, own: Any = None
    ) -> Any:
        """As :meth:`Mixer.extend`; returns (y, state), or (y, state, shared) where ``shared`` is given."""
        x, shared, state = self._run(x, Tokens.of(tokens), shared, own, dict(state))
        return (x, state) if shared is None else (x, state, shared)

    def checked(self, tokens: Known) -> Tokens:
        """``tokens`` as a :class:`Tokens`.

        Raises:
          ValueError: a context that no branch reads.
        """
        tokens = Tokens.of(tokens)
        if tokens.context is not None and not any(
            "context" in getattr(part, "honors", ()) for part in self._parts().values()
        ):
            raise ValueError("no branch of the block reads the context: add cross attention (context_features=)")
        return tokens

    def _parts(self) -> dict[str, Any]:
        """The modules of the branches, by name."""
        return {name: getattr(self, name) for names, _ in self.branches for name in names}

    def _run(
        self, x: jax.Array, tokens: Tokens, shared: Any, own: Any, state: dict[str, Any] | None
    ) -> tuple[jax.Array, Any, Any]:
        """The branches; ``state``, if any, is updated in place."""
        x = finite_padding(x, tokens.mask)
        before = x  # the input of the previous branch
        owners = dict(self.norm_owners)
        for (name, *more), order in self.branches:
            norm = getattr(self, f"{owners[name]}_norm")
            if order != "parallel":
                before = x = gradient_computed_once(x)
            h = norm(before) if norm is not None and order in ("pre", "sandwich", "parallel") else before
            y, shared = self._call(name, h, tokens, shared, own, state)
            for part in more:
                z, shared = self._call(part, h, tokens, shared, own, state)
                y = y + z
            if order == "sandwich" and norm is not None:
                y = getattr(self, f"{name}_post_norm")(y)
            if order == "res_post" and norm is not None:
                y = norm(y)
            for factor in (getattr(self, f"{name}_scale"), getattr(self, f"{name}_drop")):
                y = y if factor is None else factor(y)
            skip: Callable[[jax.Array], jax.Array] | None = getattr(self, f"{name}_skip")
            x = (x if skip is None else skip(x)) + y.astype(x.dtype)
            if order == "post" and norm is not None:
                x = norm(x)
        self.sow(Diagnostic, "residual", x)
        return x, shared, state

    def _call(
        self, name: str, h: jax.Array, tokens: Tokens, shared: Any, own: Any, state: dict[str, Any] | None
    ) -> tuple[jax.Array, Any]:
        """Calls a branch's module; returns its output and the new ``shared``."""
        module: Any = getattr(self, name)
        if not isinstance(module, Mixer):
            return module(h), shared
        if "context" not in module.honors:
            tokens = tokens.without("context", "context_mask")
        beside = (shared, own) if module.shares else ()
        if state is None:
            out = module(h, tokens, *beside)
        else:
            out = module.extend(h, state[name], tokens, *beside)
            state[name] = out[1]
            out = (out[0], *out[2:]) if module.shares else out[0]
        return out if module.shares else (out, shared)
