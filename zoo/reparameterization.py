"""Structural reparameterization: a trained model with fewer operations that computes the same.

RepVGG: Making VGG-style ConvNets Great Again (Ding et al., 2021, arXiv:2101.03697). A module that can be had simpler in
evaluation says so by a method ``merged``: a convolution with its batch norm is one convolution.
"""

from __future__ import annotations

from typing import Any, TypeVar

from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def reparameterize(model: M, *, only: Any = nnx.Module) -> M:
    """Puts, in place, its merged form for every module that has one, and the model into evaluation mode; returns it.

    Its outputs in evaluation mode stay, up to rounding. It can't be trained on as before, and has other parameters:
    files of released names fit the model before this, not after, but for those of a published merged form
    (:mod:`zoo.vision.overlock`).

    Args:
      only: a class of modules, or a tuple of them, to leave all others as they are.
    """
    for _, module in list(nnx.iter_modules(model)):
        for name, part in list(nnx.iter_children(module)):
            if isinstance(part, only) and hasattr(part, "merged") and (merged := part.merged()) is not part:
                if isinstance(module, nnx.List):
                    module[int(str(name))] = merged
                else:
                    setattr(module, str(name), merged)
    model.eval()
    return model
