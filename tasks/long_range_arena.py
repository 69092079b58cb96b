"""Long Range Arena: a benchmark of long sequences (Y. Tay et al., ICLR 2021, arXiv:2011.04006).

    part          sequence                                     classes   read as            data
    listops       nested operations, 500 to 2000 tokens             10   [class] tokens     drawn, or the authors' files
    text          a film review of IMDB, bytes                       2   [class] bytes      the user's, or TFDS
    retrieval     two articles of AAN, 4000 bytes each               2   dual               the user's
    image         CIFAR-10 in gray, 1024 pixels                     10   [class] pixels     the user's, or TFDS
    pathfinder    32 x 32 pixels, paths of 14 dashes                 2   pixels             drawn, or the authors' files
    path_x        128 x 128 of the same; _64 and _256 as well        2   pixels             drawn, or the authors' files

Published accuracy of the Transformer, percent: 36.37, 64.27, 57.46, 42.44, 71.40, and chance on Path-X; the best
average of the paper's models is 55.01 (BigBird). ``configs/long_range_arena.py`` has the authors' models and recipes,
``python -m benchmarks.long_range_arena`` compares mixers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suggestions import unknown
from tasks.registry import register
from tasks.sequence_classification import SequenceClassification

PARTS: Mapping[str, Mapping[str, Any]] = {
    "listops": {"dataset": {"name": "listops"}},
    "text": {"dataset": {"name": "tfds", "builder": "imdb_reviews"}, "length": 1001},
    "retrieval": {
        # The authors' files: label, id1, id2, text1, text2, without a line of names.
        "dataset": {"name": "tsv", "label": 0, "text": 3, "text2": 4, "header": False},
        "length": 4000,
        "pair": "dual",
    },
    "image": {"dataset": {"name": "images", "images": {"name": "tfds", "builder": "cifar10"}}},
    "pathfinder": {"dataset": {"name": "pathfinder", "size": 32}, "class_token": False},
    "pathfinder_64": {"dataset": {"name": "pathfinder", "size": 64}},
    "path_x": {"dataset": {"name": "pathfinder", "size": 128}, "class_token": False},
    "path_256": {"dataset": {"name": "pathfinder", "size": 256}},
}
"""Arguments of :class:`tasks.SequenceClassification` by the name of the part."""


@register("long_range_arena")
class LongRangeArena(SequenceClassification):
    """A part of Long Range Arena.

    Args:
      part: a key of :data:`PARTS`.
      dataset: options of its data set that replace those of the part (``path``, ``cache``, ``seed``, ...), or with
        "name" another one in its place.
      length, inputs, class_token: as in :class:`tasks.SequenceClassification`; None uses the setting of the part.

    Raises:
      ValueError: an unknown part or option (similar names are suggested), or data that can't be used.
    """

    paper = (132,)

    def __init__(
        self,
        part: str = "listops",
        dataset: Mapping[str, Any] | None = None,
        length: int | None = None,
        inputs: str = "tokens",
        class_token: bool | None = None,
    ):
        if part not in PARTS:
            raise ValueError(unknown("part of Long Range Arena", part, PARTS))
        given = dict(dataset or {})
        own = dict(PARTS[part])
        own["dataset"] = given if "name" in given else {**own["dataset"], **given}
        own |= {"inputs": inputs} | ({} if length is None else {"length": length})
        if class_token is not None or inputs == "linear":
            own["class_token"] = bool(class_token)
        super().__init__(**own)
