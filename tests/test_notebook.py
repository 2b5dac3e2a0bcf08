"""The quickstart notebook runs as it is and prints what it is stored with."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "quickstart.ipynb"


def printed(notebook) -> list[str]:
    """What the cells print, one text a cell with output; pictures by their kind."""
    return [
        output["text"] if output["output_type"] == "stream" else " ".join(sorted(output["data"]))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(fresh, timeout=300, resources=resources).execute()
    assert printed(fresh) == printed(stored)
    assert len(printed(stored)) >= 5
