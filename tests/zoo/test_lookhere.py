"""LookHere's files as its authors release them; test_recorded_models.py compares numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

import zoo
from tests.references import lookhere as recorded
from tests.references.comparing import same_bits
from tests.references.recording import Recording
from zoo.registry import variant
from zoo.weights import export


@pytest.mark.full  # PyTorch takes long to import
def test_a_file_of_the_authors(tmp_path: Path) -> None:
    """Of weights and the configuration beside them."""
    torch = pytest.importorskip("torch")
    state = Recording(recorded).weights()
    file = tmp_path / "weights_and_config.pth"
    config = {"head_directions": "-".join(recorded.FIELDS), "global_slope": recorded.SLOPE}
    torch.save({"weights": {key: torch.from_numpy(value) for key, value in state.items()}, "config": config}, file)
    size = {
        "features": 48,
        "depth": 2,
        "num_heads": 6,
        "mlp_ratio": 2.0,
        "pooler_ratio": 2.0,
        "fields": recorded.FIELDS,
    }
    more = {"patch_size": recorded.PATCH, "image_size": 48, "num_classes": recorded.CLASSES, "layer_slopes": (1.0, 1.0)}
    model = zoo.create("lookhere_45_base_patch16_224", weights=file, **size, **more)
    assert same_bits(export(model, naming="lookhere"), state)


def test_size_is_that_of_the_authors() -> None:
    published = [name for name in zoo.list_models("lookhere_*") if variant(name).published]
    assert {variant(name).parameters for name in published} == {Recording(recorded).about["count"]}
