"""Structural reparameterization: a trained model with fewer operations that computes the same.

RepVGG: Making VGG-style ConvNets Great Again (Ding et al., 2021, arXiv:2101.03697). A module with a simpler equivalent
in evaluation returns it from its method ``merged``: a convolution and its batch norm become one convolution.
"""

from __future__ import annotations

from typing import Any, TypeVar

from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def reparameterize(model: M, *, only: Any = nnx.Module) -> M:
    """Replaces every module that has a merged form by that form, in place, puts the model into evaluation mode and
    returns it.

    Outputs in evaluation mode stay the same up to rounding. The model can't be trained further as before and has other
    parameters: files of released names fit it before this, not after, except those of a published merged form
    (:mod:`zoo.vision.overlock`).

    Args:
      only: a class of modules, or a tuple of classes; all other modules are left as they are.
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
