"""ResNet's batch statistics beside timm's; test_timm_models.py compares the rest."""

from __future__ import annotations

import pytest

import zoo
from tests.references.live import images, relative, torch
from tests.references.timm_models import pair
from zoo.weights import export

pytestmark = pytest.mark.reference


def test_batch_statistics_move_as_in_timm() -> None:
    """A training pass: what is normalized by, and what is kept for evaluation."""
    theirs, ours, state = pair("resnet18", {"layers": (1, 1, 1, 1)}, {"depths": (1, 1, 1, 1)})
    zoo.load(ours, state)
    x = images(4, 32, 32, 3)
    theirs.train()
    ours.train()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative(ours(x), expected) < 2e-5
    moved = {name: value.numpy() for name, value in theirs.state_dict().items() if "running_" in name}
    kept = export(ours, naming="timm")
    # torch keeps a 10th of the unbiased variance, which is n / (n - 1) of ours; n is at least 4, of the last maps.
    assert all(relative(kept[name], value) < 1e-5 for name, value in moved.items() if name.endswith("mean"))
    assert all(relative(kept[name], value) < 0.1 / 3 for name, value in moved.items())
