"""Training tasks: data, loss and metrics, independent of any model.

``tasks.create(name, **options)`` makes one, ``tasks.list_tasks()`` lists them.
"""

from tasks.addition import Addition
from tasks.algorithmic import Algorithmic
from tasks.backcopy import BigramBackcopy
from tasks.classification import Classification
from tasks.denoising import Denoising
from tasks.dynamic_programming import DynamicProgramming
from tasks.geometry import Geometry
from tasks.language_modeling import LanguageModeling
from tasks.long_range_arena import LongRangeArena
from tasks.position_identification import PositionIdentification
from tasks.procedural import Procedural
from tasks.recall import Copying, InductionHeads, MultiQueryRecall, Passkey, SelectiveCopying
from tasks.registry import create, list_tasks, lookup, register
from tasks.sensors import SensorSequences
from tasks.sequence_classification import SequenceClassification
from tasks.sequence_to_sequence import SequenceToSequence
from tasks.state_tracking import Parity, PermutationTracking
from tasks.task import Aligns, DerivesFigures, Describes, Examples, Explains, KeepsRows, Metrics, Scores, Streams, Task

__all__ = [
    "Addition",
    "Algorithmic",
    "Aligns",
    "BigramBackcopy",
    "Classification",
    "Copying",
    "Denoising",
    "DerivesFigures",
    "Describes",
    "DynamicProgramming",
    "Examples",
    "Explains",
    "Geometry",
    "InductionHeads",
    "KeepsRows",
    "LanguageModeling",
    "LongRangeArena",
    "Metrics",
    "MultiQueryRecall",
    "Parity",
    "Passkey",
    "PermutationTracking",
    "PositionIdentification",
    "Procedural",
    "Scores",
    "SelectiveCopying",
    "SensorSequences",
    "SequenceClassification",
    "SequenceToSequence",
    "Streams",
    "Task",
    "create",
    "list_tasks",
    "lookup",
    "register",
]
