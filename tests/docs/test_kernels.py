"""The page of compiled kernels says what the file says, and the file knows every op, shape and device, on two versions
of JAX.
"""

from __future__ import annotations

import itertools
import json

from benchmarks.kernels import RESULTS
from docs import kernels
from pallas_kernels.compilers import DEVICES
from pallas_kernels.dispatch import OPS


def test_the_page_is_fresh() -> None:
    assert kernels.PAGE.read_text() == kernels.page(), "run: python -m docs.kernels"


def test_every_shape_was_compiled_for_every_device() -> None:
    rows = json.loads(RESULTS.read_text())
    wanted = {
        (op.name, shape.name, device) for op in OPS.values() for shape, device in itertools.product(op.shapes, DEVICES)
    }
    versions = {row["jax"] for row in rows}
    assert len(versions) >= 2
    for version in versions:
        assert {(row["op"], row["shape"], row["device"]) for row in rows if row["jax"] == version} == wanted, (
            "run: python -m benchmarks.kernels"
        )


def test_every_row_names_its_kernels_or_the_reason() -> None:
    for row in json.loads(RESULTS.read_text()):
        assert row.get("kernels") or row["refused"], row


def test_what_ran_on_a_gpu_is_shown_with_its_failures() -> None:
    """Every wrong row, every peer and every row without a time stands on the page."""
    page = kernels.page()
    for folder in kernels.GPU_RESULTS:
        if not (folder / "correctness.json").exists():
            continue
        for row in json.loads((folder / "correctness.json").read_text())["correctness"]:
            if row.get("right") is False:
                assert (row.get("problem") or row["case"]) in page, row
        for row in json.loads((folder / "attention.json").read_text())["attention"]:
            assert row["problem"] in page
            for way in ("forward", "gradient"):
                if "ms" in row[way]:
                    assert f"{row[way]['ms']['ours']:.3g}" in page


def test_a_peer_that_is_missing_is_named_with_the_reason() -> None:
    reasons = {"fla": "RuntimeError: wrong on Hopper", "flex": "NotImplementedError: no"}
    row = {"problem": "gated", "forward": {"absent": {}}, "gradient": {"absent": reasons}}
    assert (
        kernels.absent([{"delta_rule": [row]}])
        == "\nNot in delta_rule gated gradient: fla: RuntimeError: wrong on Hopper\n"
    )
