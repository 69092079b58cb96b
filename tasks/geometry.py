"""Geometry with pointer networks: the answer is a sequence of indices of the given points, which are uniform in the
unit square (Vinyals et al., 2015, arXiv:1506.03134, section 3).

    convex_hull   2 4 3 5 6 7 2 0    the corners counter-clockwise from the lowest position, closed
    tsp           1 5 3 2 4 1 0      the shortest tour from the first point, closed
    delaunay      1 2 4 1 3 4 0      the triangles of the Delaunay triangulation

Positions count from 1, and 0 ends an answer. Of the two directions of a tour we take the one in which the second
position is less than the last one before the closing (our choice). Positions ascend within a triangle, and triangles
are sorted by the center of their inscribed circle, first coordinate first.

The examples are computed: each is a function of (seed, split, index) alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from suggestions import unknown
from tasks.procedural import NUM_TRAIN, SPLITS
from tasks.registry import register
from tasks.task import Batch, Metrics, Model

END = 0
"""Ends an answer."""
MOST_CITIES = 12
"""Maximum number of points of a tour: the table of Held and Karp has 2^n n entries."""


def convex_hull(points: np.ndarray) -> list[int]:
    """Corners (from 0) of the hull of (n, 2) points, counter-clockwise from the lowest index: monotone chains (Andrew,
    1979). Points on an edge are not corners.
    """
    order = np.lexsort((points[:, 1], points[:, 0])).tolist()
    at = points.astype(np.float64).tolist()

    def chain(indices: list[int]) -> list[int]:
        found: list[int] = []
        for index in indices:
            while len(found) > 1 and _turn(at[found[-2]], at[found[-1]], at[index]) <= 0:
                found.pop()
            found.append(index)
        return found[:-1]

    corners = chain(order) + chain(order[::-1])
    first = corners.index(min(corners))
    return corners[first:] + corners[:first]


def shortest_tour(points: np.ndarray) -> list[int]:
    """The shortest tour (from 0) through (n, 2) points, from the first: dynamic programming over subsets (Held and
    Karp, 1962), 2^n n^2 operations.
    """
    count = len(points) - 1
    distance = _distances(points)
    between = distance[1:, 1:]
    length = np.full((1 << count, count), np.inf)  # length of the shortest path through a subset that ends at a point
    before = np.zeros((1 << count, count), np.int64)
    length[1 << np.arange(count), np.arange(count)] = distance[0, 1:]
    for subset in range(1, 1 << count):
        ways = length[subset][:, None] + between
        best, least = ways.argmin(0), ways.min(0)
        for point in range(count):
            if not subset >> point & 1 and least[point] < length[larger := subset | 1 << point, point]:
                length[larger, point], before[larger, point] = least[point], best[point]
    subset = (1 << count) - 1
    point = int((length[subset] + distance[1:, 0]).argmin())
    path = []
    while subset:
        path.append(point + 1)
        subset, point = subset ^ 1 << point, int(before[subset, point])
    return [0, *(path if path[0] < path[-1] else path[::-1])]


def delaunay(points: np.ndarray) -> list[tuple[int, int, int]]:
    """Triangles (from 0) of the Delaunay triangulation of (n, 2) points, no four of which lie on a circle: the
    triangles whose circumcircle contains no other point. All n^3 / 6 triples are tested against all points.
    """
    at = points.astype(np.float64)
    triples = _triples(len(at))
    a, b, c = (at[triples[:, corner]] for corner in range(3))
    doubled = _turn(a.T, b.T, c.T)
    # A point is inside the circle of the counter-clockwise a, b, c if this determinant is positive.
    rows = [corner[:, None] - at for corner in (a, b, c)]
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = ((r[..., 0], r[..., 1], (r**2).sum(-1)) for r in rows)
    inside = ax * (by * cz - bz * cy) - ay * (bx * cz - bz * cx) + az * (bx * cy - by * cx)
    inside = inside * np.sign(doubled)[:, None]
    np.put_along_axis(inside, triples, 0, 1)
    kept = triples[(inside <= 0).all(1) & (doubled != 0)]
    a, b, c = (at[kept[:, corner]] for corner in range(3))
    sides = np.stack([np.linalg.norm(p - q, axis=1) for p, q in ((b, c), (c, a), (a, b))])
    center = (sides[..., None] * np.stack([a, b, c])).sum(0) / sides.sum(0)[:, None]
    return [tuple(kept[i].tolist()) for i in np.lexsort((center[:, 1], center[:, 0]))]


def is_simple(polygon: np.ndarray) -> bool:
    """Whether no two sides of a polygon (corners, 2) cross."""
    at = polygon.astype(np.float64).tolist()
    sides = [(at[i - 1], at[i]) for i in range(len(at))]
    return not any(
        _turn(p, q, r) * _turn(p, q, s) < 0 and _turn(r, s, p) * _turn(r, s, q) < 0
        for (p, q), (r, s) in itertools.combinations(sides, 2)
    )


def area(polygon: np.ndarray) -> float:
    """The area inside a simple polygon (corners, 2)."""
    x, y = polygon.astype(np.float64).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _turn(a: Any, b: Any, c: Any) -> Any:
    """Twice the area of a triangle, positive where a, b, c are counter-clockwise."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _distances(points: np.ndarray) -> np.ndarray:
    at = points.astype(np.float64)
    return np.linalg.norm(at[:, None] - at, axis=-1)


@functools.cache
def _triples(count: int) -> np.ndarray:
    return np.asarray(list(itertools.combinations(range(count), 3)))


def _cycle(answer: list[int], size: int) -> list[int] | None:
    """The positions of a closed answer, from 0, each once; None if it is not a cycle of real points."""
    cycle = answer[:-1]
    if len(cycle) < 3 or answer[-1] != answer[0] or len(set(cycle)) < len(cycle) or max(cycle) > size:
        return None
    return [position - 1 for position in cycle]


def _same_cycle(a: list[int], b: list[int]) -> bool:
    """Whether two cycles are equal up to their start and direction."""
    if set(a) != set(b) or len(a) != len(b):
        return False
    first = a.index(b[0])
    a = a[first:] + a[:first]
    return a in (b, [b[0], *b[:0:-1]])


def _hull_figures(points: np.ndarray, answer: list[int] | None, target: list[int]) -> dict[str, float]:
    cycle = None if answer is None else _cycle(answer, len(points))
    if cycle is None or not is_simple(points[cycle]):
        return {"exact": 0.0, "simple": 0.0, "area": 0.0}
    hull = [position - 1 for position in target[:-1]]
    covered = area(points[cycle]) / area(points[hull])
    return {"exact": float(_same_cycle(cycle, hull)), "simple": 1.0, "area": covered}


def _tour_figures(points: np.ndarray, answer: list[int] | None, target: list[int]) -> dict[str, float]:
    cycle = None if answer is None else _cycle(answer, len(points))
    if cycle is None or len(cycle) < len(points):
        return {"exact": 0.0, "valid": 0.0}
    best = [position - 1 for position in target[:-1]]
    distance = _distances(points)
    length, least = (sum(distance[tour[i - 1], tour[i]] for i in range(len(tour))) for tour in (cycle, best))
    return {"exact": float(_same_cycle(cycle, best)), "valid": 1.0, "length": length / least}


def _triangle_figures(points: np.ndarray, answer: list[int] | None, target: list[int]) -> dict[str, float]:
    found, true = ({frozenset(given[i : i + 3]) for i in range(0, len(given), 3)} for given in (answer or [], target))
    return {"exact": float(found == true), "triangles": len(found & true) / len(true)}


def _closed(cycle: list[int]) -> list[int]:
    return [*cycle, cycle[0]]


Solve = Callable[[np.ndarray], list[int]]
PROBLEMS: Mapping[str, tuple[Solve, Callable[..., dict[str, float]], Callable[[int], int]]] = {
    "convex_hull": (lambda points: _closed(convex_hull(points)), _hull_figures, lambda n: n + 2),
    "tsp": (lambda points: _closed(shortest_tour(points)), _tour_figures, lambda n: n + 2),
    "delaunay": (lambda points: [p for triple in delaunay(points) for p in triple], _triangle_figures, lambda n: 6 * n),
}
"""For each name: the function from (n, 2) points to the answer, counted from 0; the metrics of an answer; the maximum
length for n points, including the end (a triangulation has at most 2 n - 5 triangles).
"""


class GeometryExamples:
    """Computed examples: "points" (n, 2) float32 and "target" (length,) int32, padded with the end position, and "size"
    and "target_size" () int32, the numbers of real entries; the target includes the end.
    """

    def __init__(self, task: Geometry, split: str, count: int, fewest: int, most: int):
        self._task, self._split, self._count, self._range = task, SPLITS.index(split), count, (fewest, most)

    def __len__(self) -> int:
        return self._count

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example; there is nothing to augment."""
        del rng
        own = np.random.Generator(np.random.Philox(key=[self._task.seed, self._split], counter=[0, 0, 0, index]))
        fewest, most = self._range
        solve, _, longest = PROBLEMS[self._task.problem]
        size = int(own.integers(fewest, most + 1))
        points, target = np.zeros((most, 2), np.float32), np.full(longest(most), self._task.end_position, np.int32)
        points[:size] = own.random((size, 2), np.float32)
        answer = [position + 1 for position in solve(points[:size])]
        target[: len(answer)] = answer
        counts = {"size": np.asarray(size, np.int32), "target_size": np.asarray(len(answer) + 1, np.int32)}
        return {"points": points, "target": target, **counts}


@register("geometry")
class Geometry:
    """Convex hulls, shortest tours and triangulations, for models that point at their input.

    Args:
      problem: "convex_hull", "tsp" or "delaunay".
      points, fewest: number of points of the largest and of the smallest examples; sizes are uniform.
      test_points: number of points of every example of the test split; None for sizes as in training.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.
      end_position: ends an answer, and is the decoder's first input; points are counted from 1.

    Raises:
      ValueError: an unknown problem (similar names are suggested), a number out of range, or tours of too many points.
    """

    paper = (80,)
    needs: tuple[str, ...] = ("end_position",)
    monitor = "exact"
    higher_is_better = True
    splits = SPLITS

    def __init__(
        self,
        problem: str = "convex_hull",
        points: int = 8,
        fewest: int = 5,
        test_points: int | None = None,
        num_eval: int = 512,
        seed: int = 0,
        *,
        end_position: int = END,
    ):
        if problem not in PROBLEMS:
            raise ValueError(unknown("problem", problem, PROBLEMS))
        if not 3 <= fewest <= points:
            raise ValueError(f"fewest is from 3 to points={points}, not {fewest}")
        if (test_points is not None and test_points < 3) or num_eval < 1:
            raise ValueError(f"test_points is at least 3 and num_eval at least 1, not {test_points} and {num_eval}")
        if problem == "tsp" and (most := max(points, test_points or 0)) > MOST_CITIES:
            raise ValueError(f"shortest tours can have at most {MOST_CITIES} points, not {most}: take fewer points")
        self.problem, self.points, self.fewest, self.test_points = problem, points, fewest, test_points
        self.num_eval, self.seed, self.end_position = num_eval, seed, end_position

    def model_options(self) -> dict[str, Any]:
        """Returns in_features."""
        return {"in_features": 2}

    def examples(self, split: str) -> GeometryExamples:
        """Returns the examples of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        sizes = (self.fewest, self.points)
        if split == "test" and self.test_points is not None:
            sizes = (self.test_points,) * 2
        return GeometryExamples(self, split, NUM_TRAIN if split == "train" else self.num_eval, *sizes)

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy of a position given the true positions before it (teacher forcing), nats."""
        del rngs
        metrics = self._forced(model, batch, jnp.ones(batch["target"].shape[0], jnp.float32))
        total, count = metrics["loss"]
        return total / count, metrics

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss" (nats per position) and "accuracy" (of the most probable one), both with teacher forcing."""
        return self._forced(model, batch, batch["weight"])

    def evaluate_rows(self, model: Model, batch: Batch) -> tuple[Metrics, dict[str, jax.Array]]:
        """Returns the metrics of ``evaluate``, and for each row the points, the target, and "answer" (rows, length)
        int32, the model's own answer by greedy decoding.
        """
        steps = batch["target"].shape[1]
        logits = model(batch["points"], None, self._real(batch), steps=steps)
        rows = {name: batch[name] for name in ("points", "size", "target")}
        return self.evaluate(model, batch), {**rows, "answer": jnp.argmax(logits, -1).astype(jnp.int32)}

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns metrics of the answers of greedy decoding.

        For hulls "exact" (the same polygon), "simple" (a polygon whose sides don't cross) and "area" (the fraction of
        the hull's area that it covers, 0 if it is not simple: the paper's is area / simple); for tours "exact" (the
        same tour), "valid" (each point once) and "length" (relative to the shortest tour, averaged over the valid ones,
        if any); for triangulations "exact" (the same triangles) and "triangles" (the fraction found).
        """
        figures = PROBLEMS[self.problem][1]
        found: dict[str, list[float]] = {}
        names = ("points", "size", "target", "answer")
        for points, size, target, answer in zip(*(rows[name] for name in names), strict=True):
            given = figures(points[: int(size)], self._ended(answer), self._ended(target))
            for name, value in given.items():
                found.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in found.items()}

    def describe(self, split: str) -> str:
        """Returns the number of examples of a split."""
        return f"{len(self.examples(split)):,} sets of points"

    @staticmethod
    def _real(batch: Batch) -> jax.Array:
        return jnp.arange(batch["points"].shape[1]) < batch["size"][:, None]

    def _forced(self, model: Model, batch: Batch, weight: jax.Array) -> Metrics:
        target = batch["target"]
        real = jnp.arange(target.shape[1]) < batch["target_size"][:, None]
        read = jnp.concatenate([jnp.full_like(target[:, :1], self.end_position), target[:, :-1]], 1)
        logits = model(batch["points"], read, self._real(batch), real).astype(jnp.float32)
        losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        counted = real * weight[:, None]
        count = jnp.sum(counted)
        right = jnp.argmax(logits, -1) == target
        return {
            "loss": (jnp.sum(jnp.where(real, losses, 0) * counted), count),
            "accuracy": (jnp.sum(right * counted), count),
        }

    def _ended(self, row: np.ndarray) -> list[int] | None:
        """The positions before the end; None without an end or without positions before it."""
        listed = row.tolist()
        return listed[: listed.index(self.end_position)] or None if self.end_position in listed else None
