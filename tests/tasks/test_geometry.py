"""Answers of geometric problems beside those of other methods, their figures, and losses of padded rows."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import spatial

import tasks
from tasks.geometry import area, convex_hull, delaunay, is_simple, shortest_tour


def sets(count: int, fewest: int = 3, most: int = 16) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((rng.integers(fewest, most + 1), 2), np.float32) for _ in range(count)]


def inside(point: np.ndarray, corners: np.ndarray) -> bool:
    """Whether a point is in a triangle, by the signs of its three areas."""
    turns = [np.linalg.det([corners[i] - point, corners[i - 1] - point]) for i in range(3)]
    return bool(np.all(np.sign(turns) == np.sign(turns[0])))


def test_hulls() -> None:
    """A corner is in no triangle of other points; the order is Qhull's, from the lowest position."""
    for points in sets(20, most=9):
        hull, wide = convex_hull(points), points.astype(np.float64)
        for index, point in enumerate(wide):
            others = [i for i in range(len(points)) if i != index]
            hidden = any(inside(point, wide[list(three)]) for three in itertools.combinations(others, 3))
            assert hidden == (index not in hull)
        theirs = spatial.ConvexHull(wide).vertices.tolist()
        assert hull == [*theirs[(first := theirs.index(min(theirs))) :], *theirs[:first]]
        assert area(points[hull]) == pytest.approx(spatial.ConvexHull(wide).volume)
    square = np.asarray([[0, 0], [1, 0], [2, 0], [2, 2], [0, 2], [1, 2], [1, 1]])
    assert convex_hull(square) == [0, 2, 3, 4]  # none of what is on an edge


def test_triangulations() -> None:
    """Those of Qhull, in the order of their inscribed circles."""
    for points in sets(40):
        found = delaunay(points)
        assert {frozenset(t) for t in found} == set(map(frozenset, spatial.Delaunay(points.astype(float)).simplices))
        assert all(a < b < c for a, b, c in found)
        centers = []
        for three in points[np.asarray(found)].astype(float):
            sides = np.linalg.norm(np.roll(three, 1, 0) - np.roll(three, -1, 0), axis=1)
            centers.append(tuple(sides @ three / sides.sum()))
        assert centers == sorted(centers)


def test_tours() -> None:
    """The shortest of all orders."""
    for points in sets(6, 3, 7):
        distance = spatial.distance.cdist(points, points)
        orders = [(0, *rest) for rest in itertools.permutations(range(1, len(points))) if rest[0] < rest[-1]]
        best = min(orders, key=lambda order: sum(distance[a, b] for a, b in zip(order, (*order[1:], 0), strict=True)))
        assert tuple(shortest_tour(points)) == best


@pytest.mark.parametrize("problem", ["convex_hull", "tsp", "delaunay"])
def test_examples(problem: str) -> None:
    """Of every size, the same whenever they are asked for, in other splits others; their own answers are right."""
    task: Any = tasks.create("geometry", problem=problem, points=7, fewest=5, test_points=9, num_eval=40)
    rows = []
    for index in range(40):
        example = task.examples("train").get(index, np.random.default_rng(index))
        again = task.examples("train").get(index, None)
        assert all(np.array_equal(example[name], again[name]) for name in example)
        size, length = int(example["size"]), int(example["target_size"])
        assert not example["points"][size:].any()
        assert not example["target"][length - 1 :].any()
        assert example["target"][: length - 1].min() >= 1
        assert example["target"].max() <= size
        rows.append(example)
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    assert set(batch["size"].tolist()) == {5, 6, 7}
    figures = task.scores({**batch, "answer": batch["target"]})
    assert set(figures.values()) == {1.0}
    assert task.examples("test").get(0, None)["points"].shape == (9, 2)
    assert not np.array_equal(task.examples("validation").get(0, None)["points"], rows[0]["points"])
    assert len(task.examples("test")) == 40


SQUARE = np.asarray([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.4]], np.float32)


def scores(problem: str, target: list[int], answer: list[int], points: np.ndarray = SQUARE) -> dict[str, float]:
    rows = {"points": points[None], "size": np.asarray([len(points)]), "target": np.asarray([target])}
    return tasks.create("geometry", problem=problem).scores({**rows, "answer": np.asarray([answer])})


@pytest.mark.parametrize(
    ("answer", "exact", "simple", "covered"),
    [
        ([1, 2, 3, 4, 1, 0, 5], 1, 1, 1),
        ([3, 2, 1, 4, 3, 0, 0], 1, 1, 1),  # the same polygon
        ([1, 2, 3, 1, 0, 0, 0], 0, 1, 0.5),
        ([1, 2, 3, 4, 5, 1, 0], 0, 1, 0.75),
        ([1, 3, 2, 4, 1, 0, 0], 0, 0, 0),  # sides cross
        ([1, 2, 3, 4, 0, 0, 0], 0, 0, 0),  # is not closed
        ([1, 2, 2, 4, 1, 0, 0], 0, 0, 0),
        ([1, 2, 3, 4, 1, 2, 3], 0, 0, 0),  # does not end
        ([0, 1, 2, 3, 4, 1, 0], 0, 0, 0),
    ],
)
def test_figures_of_hulls(answer: list[int], exact: float, simple: float, covered: float) -> None:
    found = scores("convex_hull", [1, 2, 3, 4, 1, 0, 0], answer)
    assert found == {"exact": exact, "simple": simple, "area": pytest.approx(covered)}


def test_figures_of_tours_and_triangles() -> None:
    target, square = [1, 2, 3, 4, 1, 0], SQUARE[:4]
    crossed = scores("tsp", target, [1, 3, 2, 4, 1, 0], square)
    assert crossed == {"exact": 0, "valid": 1, "length": pytest.approx((2 + 2 * 2**0.5) / 4)}
    assert scores("tsp", target, [1, 2, 3, 1, 0, 0], square) == {"exact": 0, "valid": 0}
    assert scores("tsp", target, [2, 1, 4, 3, 2, 0], square)["exact"] == 1
    triangles = [1, 2, 5, 2, 3, 5, 3, 4, 5, 1, 4, 5, 0]
    assert scores("delaunay", triangles, [5, 2, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0]) == {"exact": 0, "triangles": 0.25}
    assert not is_simple(SQUARE[[0, 2, 1, 3]])


def test_losses_and_own_answers() -> None:
    """Padding counts nothing, whatever the model makes of it; the model reads the target a position late."""
    task: Any = tasks.create("geometry", points=6, fewest=4)
    examples = [task.examples("train").get(i, None) for i in range(4)]
    batch: Any = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    length = batch["target"].shape[1]
    real = np.arange(length) < batch["target_size"][:, None]
    logits = np.random.default_rng(0).standard_normal((4, length, 7)).astype(np.float32)
    read: list[Any] = []

    def model(source: Any, target: Any, mask: Any, target_mask: Any = None, steps: int | None = None) -> jax.Array:
        np.testing.assert_array_equal(mask.sum(1), batch["size"])
        if target is None:
            assert steps == length
            return jnp.asarray(logits)
        read[:] = target, target_mask
        return jnp.where(jnp.asarray(real)[..., None], logits, jnp.nan)

    weight = np.asarray([1, 1, 1, 0], np.float32)
    metrics, rows = task.evaluate_rows(model, {**batch, "weight": weight})
    wide = logits.astype(np.float64)
    losses = np.log(np.exp(wide).sum(-1)) - np.take_along_axis(wide, batch["target"][..., None], -1)[..., 0]
    assert float(metrics["loss"][0] / metrics["loss"][1]) == pytest.approx(losses[:3][real[:3]].mean(), rel=1e-5)
    right = (logits.argmax(-1) == batch["target"])[:3][real[:3]].mean()
    assert float(metrics["accuracy"][0] / metrics["accuracy"][1]) == pytest.approx(right, rel=1e-6)
    np.testing.assert_array_equal(read[0], np.concatenate([np.zeros((4, 1), int), batch["target"][:, :-1]], 1))
    np.testing.assert_array_equal(read[1], real)
    np.testing.assert_array_equal(rows["answer"], logits.argmax(-1))
    assert float(task.loss(model, batch, jax.random.key(0))[0]) == pytest.approx(losses[real].mean(), rel=1e-5)


def test_what_is_refused() -> None:
    for options, message in (
        ({"problem": "convex_hul"}, "unknown problem 'convex_hul': did you mean 'convex_hull'"),
        ({"fewest": 9}, "fewest is from 3 to points=8, not 9"),
        ({"problem": "tsp", "test_points": 20}, "can have at most 12 points, not 20: take fewer points"),
        ({"num_eval": 0}, "num_eval at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.create("geometry", **options)
    with pytest.raises(ValueError, match="unknown split 'tests': did you mean 'test'"):
        tasks.create("geometry").examples("tests")
