"""How many examples fit is what direct traces and the compiler say too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import zoo
from benchmarks import step_memory
from docs import step_memory as page
from zoo.registry import variant


def test_the_page_is_fresh_and_tells_what_is_missing() -> None:
    report = json.loads(step_memory.RESULTS.read_text())
    assert page.PAGE.read_text() == page.page(report), "run: python -m docs.step_memory"
    name = next(iter(report["models"]))
    text = page.page({**report, "models": {name: report["models"][name]}})
    assert f"1 of {len(step_memory.published())} models are counted" in text
    assert text.count("\n## ") == 1 + bool(report["compiled"])


def test_the_greatest_number_is_found() -> None:
    for greatest in (0, 1, 2, 3, 7, 8, 1000):
        assert step_memory.most(lambda n, greatest=greatest: n <= greatest) == greatest


def test_each_family_comes_before_seconds_of_any() -> None:
    names = step_memory.published()
    families = [variant(name).family for name in names]
    assert sorted(names) == sorted(name for name in zoo.list_models() if variant(name).published)
    assert len(set(families[: len(set(families))])) == len(set(families))


@pytest.mark.full
@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "t5_nano"])
def test_what_fits_is_what_a_trace_of_so_many_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of devices so small that the state and few examples fill them."""
    monkeypatch.setattr(step_memory, "GIB", 1 << 25)
    row, step = step_memory.count(name), step_memory.Step(variant(name))
    assert row["fits"] == sorted(row["fits"])
    assert row["fits"][0]
    for limit, fits in zip(step_memory.DEVICES, row["fits"], strict=True):
        assert step.needed(fits) <= limit << 25 < step.needed(fits + 1)
        assert row["traced_bytes"].get(str(fits), step.needed(fits)) == step.needed(fits)


@pytest.mark.full
def test_the_compiler_agrees_within_a_factor_of_two() -> None:
    assert 0.5 < step_memory.compiled("vit_nano_patch4_32", 16)["ratio"] < 2


def test_a_model_that_is_not_published_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step_memory.main([f"--output={tmp_path / 'x.json'}", "--only=vit_nano_patch4_32"])
    assert "no published model is vit_nano_patch4_32" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
