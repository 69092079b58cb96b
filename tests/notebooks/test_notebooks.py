"""The notebooks run from the first cell to the last, and are committed as they ran.

They share one process, which has its imports and programs once; what a notebook names is forgotten before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import costs

nbformat = pytest.importorskip("nbformat", reason="reading notebooks needs nbformat")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def execute() -> Iterator[Callable[[Any], None]]:
    """Executes the cells of a notebook, and gives them their outputs."""
    nbclient = pytest.importorskip("nbclient", reason="executing notebooks needs nbclient")
    pytest.importorskip("ipykernel", reason="executing notebooks needs ipykernel")
    pytest.importorskip("matplotlib", reason="the notebooks draw with matplotlib")

    def cells(*sources: str) -> Any:
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])

    forget = cells("%reset -f", "import time; print(time.process_time())")
    resources = {"metadata": {"path": str(FOLDER)}}
    client = nbclient.NotebookClient(cells(), timeout=900, kernel_name="python3", resources=resources)
    seconds = 0.0  # CPU seconds of that process

    def run(notebook: Any) -> None:
        nonlocal seconds
        for client.nb in (notebook, forget):
            client.execute(cleanup_kc=False)
        before, seconds = seconds, float(forget.cells[-1].outputs[0].text)
        costs.elsewhere += seconds - before

    yield run
    costs.elsewhere -= seconds  # from now on it is one of the processes that have ended
    client.nb = cells()
    client.execute(cleanup_kc=True)


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, execute: Callable[[Any], None]) -> None:
    notebook = nbformat.read(path, as_version=4)
    execute(notebook)
    drawn = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert drawn, "no figure was drawn"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_as_it_ran(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), (
        f"run: jupyter execute --inplace notebooks/{path.name}"
    )
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
