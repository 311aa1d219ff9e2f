"""Executes every notebook from its plain-text twin and saves it with outputs: `python notebooks/execute.py`.

Notebooks are edited as `NAME.py` (jupytext's percent format). Cell ids, metadata and outputs of `NAME.ipynb`
carry no time, path or version, so that executing again changes no more than the results.
"""

import pathlib
import sys

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent
CELL_TIME_LIMIT = 600  # Seconds.


def read_twin(path: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook without outputs that a twin describes."""
    notebook = jupytext.read(path)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = {}
    return notebook


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path) -> None:
    """Runs all cells in `folder`, in a fresh kernel; an exception or a warning in a cell is an error."""
    metadata = notebook.metadata.copy()
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_TIME_LIMIT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # Else the timing of prints shows in the file.
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata = metadata  # Without the version of Python.
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{cell.id} wrote to standard error: {output.text}")


def main() -> None:
    """Executes the twins named on the command line, or all."""
    names = sys.argv[1:]
    for twin in sorted(FOLDER.glob("*.py")):
        if twin == pathlib.Path(__file__) or (names and twin.stem not in names):
            continue
        notebook = read_twin(twin)
        execute(notebook, FOLDER)
        nbformat.write(notebook, twin.with_suffix(".ipynb"))
        print(f"executed {twin.stem}.ipynb")


if __name__ == "__main__":
    main()
