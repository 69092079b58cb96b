"""Image folders: every layout, and every way in which a folder can be wrong."""

import shutil

import numpy as np
import pytest
from PIL import Image

import tasks
from tasks.datasets.folder import Folder


def write(path, size=(24, 20), value=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    noise = np.random.default_rng(value).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(noise).save(path)


def fill(root, classes=("cat", "dog"), count=10, suffix=".png"):
    for c, name in enumerate(classes):
        for i in range(count):
            write(root / name / f"{i}{suffix}", value=100 * c + i)
    return root


def members(folder):
    return {
        split: {p.relative_to(folder._root).as_posix() for p in folder.source(split).paths} for split in folder.splits
    }


def test_a_plain_folder_is_divided_by_a_fixed_rule(tmp_path):
    one = Folder(str(fill(tmp_path / "a", count=20)))
    other = Folder(str(fill(tmp_path / "elsewhere", count=20)))
    assert one.splits == ("train", "validation", "test")
    assert {split: len(one.source(split)) for split in one.splits} == {"train": 32, "validation": 4, "test": 4}
    assert members(one) == members(other)
    assert len(set.union(*members(one).values())) == 40
    assert all(sorted(one.source(split).labels) == [0, 0, 1, 1] for split in ("validation", "test"))
    assert one.class_names == ("cat", "dog")


def test_added_images_move_few_others(tmp_path):
    before = members(Folder(str(fill(tmp_path, count=40))))
    write(tmp_path / "cat" / "new.png", value=999)
    after = members(Folder(str(tmp_path)))
    assert len(after["train"] ^ before["train"]) <= 5


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val"), ("train", "validation")),
        (("train", "validation", "test"), ("train", "validation", "test")),
        (("train",), ("train", "validation")),
        (("train", "test"), ("train", "validation", "test")),
    ],
)
def test_folders_of_splits_are_taken_as_they_are(tmp_path, folders, splits):
    for name in folders:
        fill(tmp_path / name, count=10)
    folder = Folder(str(tmp_path))
    assert folder.splits == splits
    given = {"train": len(folder.source("train")), "validation": len(folder.source("validation"))}
    assert given == (
        {"train": 20, "validation": 20} if len(folders) > 1 and folders[1] != "test" else {"train": 18, "validation": 2}
    )
    if "test" in splits:
        assert all(path.startswith("test/") for path in members(folder)["test"])


def test_a_class_may_be_called_train(tmp_path):
    assert Folder(str(fill(tmp_path, classes=("car", "train")))).class_names == ("car", "train")


def test_modes_formats_and_orientation(tmp_path):
    fill(tmp_path)
    for name, image in {
        "gray.png": Image.fromarray(np.full((20, 24), 51, np.uint8)),
        "deep.png": Image.fromarray(np.full((20, 24), 51 * 256, np.uint16)),
        "palette.png": Image.fromarray(np.full((20, 24, 3), 51, np.uint8)).convert("P"),
        "alpha.PNG": Image.fromarray(np.full((20, 24, 4), 51, np.uint8)),
        "cmyk.JPEG": Image.fromarray(np.full((20, 24, 3), 51, np.uint8)).convert("CMYK"),
    }.items():
        image.save(tmp_path / "cat" / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "dog" / "turned.jpg", exif=exif)
    folder = Folder(str(tmp_path))
    seen = {p.name: folder.source(s)[i][0] for s in folder.splits for i, p in enumerate(folder.source(s).paths)}
    assert {name: seen[name].mode for name in ("gray.png", "deep.png", "palette.png", "alpha.PNG", "cmyk.JPEG")} == {
        "gray.png": "L",
        "deep.png": "L",
        "palette.png": "RGB",
        "alpha.PNG": "RGB",
        "cmyk.JPEG": "RGB",
    }
    assert all((np.asarray(seen[name]) == 51).all() for name in ("gray.png", "deep.png", "palette.png", "alpha.PNG"))
    assert seen["turned.jpg"].size == (20, 24)


def test_missing(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        Folder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "make", [lambda root: None, lambda root: write(root / "a.png"), lambda root: (root / "cat").mkdir()]
)
def test_empty(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ValueError, match="holds no images: it needs one folder per class"):
        Folder(str(tmp_path))


def classification(root, preprocess, **options):
    return tasks.create(
        "classification", dataset={"name": "folder", "path": str(root)}, preprocess=preprocess, **options
    )


def test_one_class(tmp_path, preprocess):
    with pytest.raises(ValueError, match="one class only, 'cat'"):
        classification(fill(tmp_path, classes=("cat",)), preprocess)


def test_labels_are_those_of_the_run_whatever_the_folder_holds(tmp_path, preprocess):
    """A class that goes, or comes in front of others, moves no label; one that the run did not know is refused."""
    fill(tmp_path, classes=("bee", "cat", "dog"))
    run = classification(tmp_path, preprocess).class_names
    shutil.rmtree(tmp_path / "bee")
    task = classification(tmp_path, preprocess, class_names=run)
    assert task.class_names == run
    assert task.model_options()["num_classes"] == 3
    labels = {
        int(examples.get(i, None)["label"])
        for examples in map(task.examples, task.splits)
        for i in range(len(examples))
    }
    assert labels == {1, 2}
    shutil.rmtree(tmp_path / "dog")
    only = classification(tmp_path, preprocess, class_names=run).examples("train")
    assert {int(only.get(i, None)["label"]) for i in range(len(only))} == {1}
    fill(tmp_path, classes=("ant",))
    with pytest.raises(ValueError, match=r"classes that the model was not trained on: ant. It knows bee, cat, dog"):
        classification(tmp_path, preprocess, class_names=run)


def test_what_is_not_used_is_counted(tmp_path):
    fill(tmp_path)
    assert Folder(str(tmp_path)).report == ""
    for name in ("notes.txt", "cat/a.heic", "cat/b.HEIC", "cat/c.heic", ".hidden", "dog/.DS_Store", "text/more.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "loose.png")
    folder = Folder(str(tmp_path))
    assert folder.report == (
        f"not used in {tmp_path}: images outside of the folders of classes: 1, such as loose.png; "
        "files of formats that are not read: 5 (3 .heic, 2 .txt); empty folders: 1, such as empty"
    )
    assert folder.class_names == ("cat", "dog")


def test_folders_beside_those_of_splits_are_not_used(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "more", count=3)
    assert "images outside of the folders of classes: 6, such as more/cat/0.png" in Folder(str(tmp_path)).report


def test_a_class_that_train_lacks(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", classes=("cat", "cow"))
    with pytest.raises(ValueError, match=r"validation folder .* has classes that train/ lacks: cow"):
        Folder(str(tmp_path))


def test_an_empty_split_folder(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"validation folder .* holds no images"):
        Folder(str(tmp_path))


def test_too_few_to_divide(tmp_path):
    with pytest.raises(ValueError, match="too few usable images for a test split: 4 in train"):
        Folder(str(fill(tmp_path, count=2)))


def spoil(path, how):
    data = path.read_bytes()
    if how == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif how == "no image":
        path.write_bytes(b"hello")
    elif how == "empty":
        path.write_bytes(b"")
    else:
        write(path, size=(15, 300))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("how", ["cut short", "no image", "empty", "too small"])
def test_a_corrupt_image_is_refused_or_skipped_and_counted(tmp_path, how, suffix):
    fill(tmp_path, suffix=suffix)
    spoil(tmp_path / "cat" / f"3{suffix}", how)
    with pytest.raises(ValueError, match=rf"1 of 20 images .*cat/3\{suffix} \(.*corrupt=skip"):
        Folder(str(tmp_path))
    folder = Folder(str(tmp_path), corrupt="skip")
    assert sum(len(folder.source(split)) for split in folder.splits) == 19
    assert folder.report.startswith("left out 1 of 20 images")
    assert f"cat/3{suffix}" in folder.report
    for split in folder.splits:
        assert all(folder.source(split)[i] for i in range(len(folder.source(split))))


def test_damage_inside_a_file_is_named_when_it_is_read(tmp_path):
    fill(tmp_path)
    path = tmp_path / "cat" / "3.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    folder = Folder(str(tmp_path))
    with pytest.raises(ValueError, match=r"cat/3.png can't be decoded: .*corrupt=skip"):
        [folder.source(split)[i] for split in folder.splits for i in range(len(folder.source(split)))]
    assert Folder(str(tmp_path), corrupt="skip").report.startswith("left out 1 of 20")


def test_a_jpeg_with_bytes_after_its_end_is_sound(tmp_path):
    fill(tmp_path, suffix=".jpg")
    path = tmp_path / "cat" / "3.jpg"
    path.write_bytes(path.read_bytes() + bytes(5000))
    assert sum(map(len, members(Folder(str(tmp_path))).values())) == 20


def test_a_class_all_of_whose_images_are_left_out(tmp_path):
    fill(tmp_path)
    for i in range(10):
        spoil(tmp_path / "cat" / f"{i}.png", "no image")
    with pytest.raises(ValueError, match=r"class 'cat' .* has no usable image"):
        Folder(str(tmp_path), corrupt="skip")


def test_options_are_checked(tmp_path, preprocess):
    with pytest.raises(ValueError, match="corrupt is 'refuse' or 'skip'"):
        Folder(str(fill(tmp_path)), corrupt="maybe")
    with pytest.raises(ValueError, match="needs path="):
        tasks.create("classification", dataset="folder", preprocess=preprocess)
    with pytest.raises(ValueError, match="'pth': did you mean 'path'"):
        tasks.create("classification", dataset={"name": "folder", "pth": "x"}, preprocess=preprocess)
