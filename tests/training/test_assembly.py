"""From a config to a task and a model: each gets what it needs of the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs import longnet, pointer_network, vit
from training import assembly


def test_packed_documents_begin_where_the_models_chunks_do(tmp_path: Path) -> None:
    """A mixer that counts from the row's start says of what its documents' starts must be multiples; the task aligns
    them.
    """
    for index in range(60):
        (tmp_path / f"{index}.txt").write_text(f"document {index}: " + "abc " * (index % 7))
    config = longnet.get_config()
    config.task.dataset = {"name": "files", "path": str(tmp_path)}
    config.task.packing, config.task.sequence_length = True, 64
    config.model_options.update({"depth": 1, "features": 8, "num_heads": 2, "segments": (8, 16), "rates": (1, 4)})
    task, model = assembly.build(config)
    assert model.blocks[0].mixer.segment_multiple == 4
    row = task.examples("train").get(0, None)
    begins = np.nonzero(np.diff(row["segment_ids"], prepend=-1))[0]
    assert len(begins) > 1
    assert not np.any(begins % 4)
    config.task.sequence_length = 62
    with pytest.raises(ValueError, match="begin at multiples of 4 tokens for this model"):
        assembly.build(config)


@pytest.mark.parametrize("model", ["bert_tiny", "transformer_nano", "vit_tiny_patch16_224"])
def test_geometry_is_for_models_that_point(model: str) -> None:
    config = pointer_network.get_config()
    config.model = model
    with pytest.raises(ValueError, match=rf"{model} does not point at its input: .* as pointer_network_nano"):
        assembly.build(config)


@pytest.mark.parametrize("part", ["model_options", "task"])
def test_images_are_as_large_as_the_model(part: str) -> None:
    """Whether the size is an option of the model or of the task."""
    config = vit.get_config()
    config[part].update({"image_size": 16})
    task, model = assembly.build(config)
    assert task.examples("train").get(0, None)["image"].shape == (16, 16, 3)
    assert model.config.image_size == 16
