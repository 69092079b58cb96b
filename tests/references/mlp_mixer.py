"""Records outputs of the authors' MLP-Mixer: ``python -m tests.references.mlp_mixer CLONE`` writes mlp_mixer.npz beside
it.

CLONE is a checkout of github.com/google-research/vision_transformer (Apache 2.0). Only numbers are kept. The model is
the authors' Flax module, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; GELU is the
approximate one.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES = 47, 10, {"": (2, 12, 12, 3)}
KEPT: dict[str, Any] = {}
SIZE: dict[str, Any] = {"num_blocks": 2, "hidden_dim": 16, "tokens_mlp_dim": 8, "channels_mlp_dim": 32}


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    build = recording.module_of(clone / "vit_jax/models_mixer.py").MlpMixer
    model = build(patches=types.SimpleNamespace(size=(4, 4)), num_classes=CLASSES, **SIZE)
    images = seeded.images(IMAGES[""], SEED)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False)["params"])
    shapes = {"/".join(name): leaf.shape for name, leaf in flatten_dict(made).items()}
    weights = seeded.weights(shapes, SEED)
    params = unflatten_dict({tuple(name.split("/")): array for name, array in weights.items()})

    def logits(images: Any) -> Any:
        return model.apply({"params": params}, images, train=False)

    gradient = jax.grad(lambda images: jax.numpy.sin(logits(images)).sum())(images)
    arrays = {"logits": np.asarray(logits(images)), "gradient": np.asarray(gradient)}
    return arrays | recording.about("github.com/google-research/vision_transformer", clone, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
