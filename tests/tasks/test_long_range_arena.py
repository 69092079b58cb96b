"""Long Range Arena: ListOps by its rules, as its authors compute it, and from their files; Pathfinder by geometry."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import tasks
import zoo
from configs import long_range_arena as config
from tasks.datasets import listops, pathfinder
from tasks.datasets.listops import ListOps, symbols_of
from tasks.datasets.pathfinder import DESIGNS, Pathfinder
from tests.references.listops import PATH as RECORDED
from tests.tiers import tiered

KNOWN = (
    "[MIN 8 [SM 5 9 [MAX 7 2 4 8 2 3 8 8 ] 0 4 5 9 [MAX 3 8 4 2 8"
    " 8 8 ] 0 [MED 8 7 5 6 7 7 5 3 7 ] ] 2 2 1 3 2 [SM 6 1 6 6 1 ] ]"
)


def value_of(text: str) -> tuple[int, int]:
    """What a tree comes to, and the greatest depth of a digit, by Python's own reader of lists."""
    for name in listops.OPERATIONS:
        text = text.replace(f"[{name}", f'["{name}"')
    tree = json.loads(", ".join(text.split()).replace(", ]", "]"))

    def come_to(node: Any) -> tuple[int, int]:
        if isinstance(node, int):
            return node, 1
        operation, *found = node[0], *map(come_to, node[1:])
        values = [value for value, _ in found]
        result = {
            "MIN": min(values), "MAX": max(values), "SM": sum(values) % 10, "MED": math.floor(statistics.median(values))
        }[operation]  # fmt: skip
        assert 2 <= len(values) <= 10
        return result, 1 + max(depth for _, depth in found)

    return come_to(tree)


def test_a_tree_follows_the_rules() -> None:
    source, depths = ListOps().source("train"), []
    for index in range(20):
        symbols, second, label = source[index]
        value, depth = value_of(" ".join(listops.TOKENS[symbol] for symbol in symbols))
        assert (label, second) == (value, None)
        assert 500 < len(symbols) < 2000
        depths.append(depth)
    assert max(depths) == 10
    assert len({bytes(source[index][0]) for index in range(20)}) == 20


def test_a_tree_is_a_function_of_seed_split_and_index() -> None:
    small = {"length": 60, "shortest": 10, "max_depth": 4}
    one, again = (ListOps(**small).source("validation") for _ in range(2))
    for index in (7, 3):
        np.testing.assert_array_equal(one[index][0], again[index][0])
    others = [ListOps(**small).source("test")[3][0], ListOps(**small, seed=1).source("validation")[3][0]]
    assert all(bytes(other) != bytes(one[3][0]) for other in others)
    lengths = [len(one[index][0]) for index in range(100)]
    assert min(lengths) >= 10
    assert max(lengths) <= 60
    depth = max(value_of(" ".join(listops.TOKENS[s] for s in one[index][0]))[1] for index in range(100))
    assert depth == 4
    # The same on every machine and version of Python.
    text = " ".join(listops.TOKENS[symbol] for symbol in one[3][0])
    assert (text, one[3][2]) == (KNOWN, 0)


def test_trees_of_the_authors_come_to_what_they_say() -> None:
    with np.load(RECORDED) as recorded:
        for text, value in zip(recorded["texts"], recorded["values"], strict=True):
            plain = " ".join(listops.TOKENS[symbol] for symbol in symbols_of(text.encode()))
            assert value_of(plain)[0] == value
        theirs = recorded["lengths"]
    source = ListOps().source("train")
    ours = np.array([len(source[index][0]) for index in range(500)])
    error = math.hypot(ours.std(), theirs.std()) / math.sqrt(500)
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert abs((ours < 1000).mean() - (theirs < 1000).mean()) < 4 * math.sqrt(0.5 / 500)


def test_the_authors_files_are_read(tmp_path: Path) -> None:
    with np.load(RECORDED) as recorded:
        rows = [f"{text}\t{value}\n" for text, value in zip(recorded["texts"], recorded["values"], strict=True)]
    for split, some in {"train": rows[:30], "val": rows[30:35], "test": rows[35:]}.items():
        (tmp_path / f"basic_{split}.tsv").write_text("Source\tTarget\r\n" + "".join(some))
    task = tasks.create("long_range_arena", part="listops", dataset={"path": str(tmp_path)})
    assert [len(task.examples(split)) for split in task.splits] == [30, 5, 5]
    for split in task.splits:
        for index in range(len(task.examples(split))):
            row = task.examples(split).get(index, None)
            symbols = row["tokens"][row["mask"]][1:] - 1
            assert value_of(" ".join(listops.TOKENS[symbol] for symbol in symbols))[0] == row["label"]
    (tmp_path / "basic_val.tsv").write_text("Source\tTarget\n( [MAX 1 ) 77\t3\n")
    broken = tasks.create("long_range_arena", dataset={"path": str(tmp_path)})
    with pytest.raises(ValueError, match="'77' is not a token of ListOps"):
        broken.examples("validation").get(0, None)


def gap(a: Any, b: Any) -> float:
    """The distance between two dashes, of many points on each."""
    share = np.linspace(0, 1, 41)[:, None]
    points = [np.array(dash.tail) + share * (np.array(dash.head) - np.array(dash.tail)) for dash in (a, b)]
    return float(np.linalg.norm(points[0][:, None] - points[1][None], axis=-1).min())


@pytest.mark.parametrize(
    ("size", "dashes"), tiered([(16, 6), (32, 14), (64, 14), (128, 14), (256, 9)], lambda c: c[0] < 64)
)
def test_paths_keep_apart_and_marks_say_which_ends_meet(size: int, dashes: int) -> None:
    design, source = DESIGNS[size], Pathfinder(size, dashes).source("train")
    for index in range(4):
        drawing = source.drawing(index)
        assert drawing.pixels.shape == (size, size)
        assert drawing.pixels.max() == 255
        paths = [*drawing.targets, *drawing.distractors]
        assert [len(path) for path in drawing.targets] == [dashes, dashes]
        assert all(len(path) == dashes // 3 for path in drawing.distractors)
        for path in paths:
            for dash, following in itertools.pairwise(path):
                assert math.dist(dash.tail, dash.head) == pytest.approx(design.dash_length)
                # Each goes on for the margin beyond its end, where the next one turns.
                assert math.dist(dash.head, following.tail) <= 2 * drawing.margin + 1e-9
                turn = abs((following.angle - dash.angle + math.pi) % (2 * math.pi) - math.pi)
                assert design.continuity * turn < math.pi / 2
        everything = [(number, place, dash) for number, path in enumerate(paths) for place, dash in enumerate(path)]
        for (path, place, a), (other, later, b) in itertools.combinations(everything, 2):
            if path != other or later - place > 1:
                assert gap(a, b) > design.thickness + 2 * drawing.margin - 1.5, "no pixel is taken by two"
        begin, end = drawing.markers
        starts, ends = [path[0].tail for path in drawing.targets], [path[-1].head for path in drawing.targets]
        assert drawing.label == index % 2 == int(starts.index(begin) == ends.index(end))
        for marker in drawing.markers:
            row, column = (min(max(round(place), 0), size - 1) for place in marker)
            assert drawing.pixels[row, column] >= 255 * min(design.marker_radius + 0.5 - 0.71, 1) * 0.99
        dark = drawing.pixels == 0
        assert dark.mean() > 0.4


def test_an_image_is_a_function_of_its_index_and_is_kept(tmp_path: Path) -> None:
    options = {"size": 16, "dashes": 6, "num_train": 20, "num_validation": 4, "num_test": 4}
    drawn, kept = Pathfinder(**options).source("train"), Pathfinder(**options, cache=str(tmp_path)).source("train")
    order = [13, 2, 13, 19]
    for index in order:
        for once in range(2):
            np.testing.assert_array_equal(drawn[index][0], kept[index][0], err_msg=str(once))
    calls: list[int] = []
    again = Pathfinder(**options, cache=str(tmp_path)).source("train")
    again.drawing = calls.append  # type: ignore[assignment]
    assert [again[index][2] for index in order] == [1, 0, 1, 1]
    assert not calls, "what was drawn once is read"
    assert len({bytes(drawn[index][0]) for index in range(20)}) == 20
    assert bytes(Pathfinder(**options, seed=1).source("train")[2][0]) != bytes(drawn[2][0])
    with pytest.raises(IndexError):
        drawn[20]


@pytest.mark.parametrize("array", [False, True])
def test_the_released_folders_are_read(tmp_path: Path, array: bool) -> None:
    root = tmp_path / "curv_contour_length_14"
    rows = []
    for batch in range(2):
        (root / "imgs" / str(batch)).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((32, 32), 10 * batch + number, np.uint8)
            Image.fromarray(pixels).save(root / "imgs" / str(batch) / f"sample_{number}.png")
            rows.append([f"imgs/{batch}", f"sample_{number}.png", str(number), str(number % 2), "1.0"])
    (root / "imgs" / "1" / "sample_3.png").write_bytes(b"")
    (root / "metadata").mkdir()
    for batch in range(2):
        own, file = rows[10 * batch : 10 * batch + 10], root / "metadata" / f"{batch}.npy"
        np.save(file, np.array(own)) if array else file.write_text("\n".join(map(" ".join, own)) + "\n")
    task = tasks.create("long_range_arena", part="pathfinder", dataset={"path": str(tmp_path)})
    assert task.report == "left out 1 images that are missing or empty"
    assert [len(task.examples(split)) for split in task.splits] == [15, 2, 2]
    row = task.examples("validation").get(0, None)
    assert (row["tokens"].tolist(), int(row["label"])) == ([17] * 1024, 0)


def test_parts_and_their_configs() -> None:
    """Each config names a model with a row for each token and place of its part."""
    for part in config.RECIPES:
        argument = part + (",path=DIR" if part == "retrieval" else "")
        made = config.get_config(argument)
        assert made.task.part == part
        if part in ("listops", "pathfinder", "pathfinder_64", "path_x", "path_256"):
            task = tasks.create(**made.task.to_dict())
            model = zoo.variant(made.model).config
            assert task.model_options() == {"num_classes": model.num_classes, "vocab_size": model.vocab_size}
            assert task._length == model.max_length
    rates = {part: config.RECIPES[part]["optimizer"]["learning_rate"] for part in ("listops", "text", "retrieval")}
    assert rates == pytest.approx(
        {"listops": 0.05 / 1000**0.5, "text": 0.05 / 8000**0.5, "retrieval": 0.05 * 5000 / 8000**1.5}
    )
    assert config.get_config("listops,mixer=mamba2").model_options.mixer == "mamba2"
    assert config.get_config("pathfinder,cache=DIR").task.dataset.cache == "DIR"
    for argument, message in (
        ("listopz", "did you mean 'listops'"),
        ("listops,mixr=a", "did you mean 'mixer'"),
        ("retrieval", "needs path="),
        ("text,variant=nano", "there are small data for listops, image, pathfinder, and not for text"),
    ):
        with pytest.raises(ValueError, match=message):
            config.get_config(argument)


def test_parts_of_tfds_fit_their_models(tmp_path: Path) -> None:
    with tfds.testing.mock_data(num_examples=60):
        for part in ("text", "image"):
            options = config.get_config(part).task.to_dict()
            name = options["dataset"] = {} if part == "text" else {"images": {"name": "tfds", "builder": "cifar10"}}
            (name if part == "text" else name["images"])["data_dir"] = str(tmp_path)
            task = tasks.create(**options)
            model = zoo.variant(config.get_config(part).model).config
            row = task.examples("test").get(0, None)
            assert row["tokens"].shape == (model.max_length,)
            assert row["tokens"][0] == model.vocab_size - 1 == task.model_options()["vocab_size"] - 1
            assert ("mask" in row) == (part == "text")


def test_what_no_tree_has_is_refused() -> None:
    with pytest.raises(ValueError, match="shortest=501: trees of max_depth=3 and max_args=10 have at most 122 tokens"):
        ListOps(max_depth=3)
    with pytest.raises(ValueError, match="size=48: images have 12, 16, 32, 64, 128, 256 pixels a side"):
        Pathfinder(48)
    assert pathfinder.DESIGNS[128].margins == (2, 3)
