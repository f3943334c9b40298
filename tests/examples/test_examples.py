"""Every example runs, on the shipped model as a user would run it, and shows what it says it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from examples import batch, endless_stream, rollout_in_jit, streaming
from jaxinfer import shipped

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "colab_quickstart.ipynb"


@pytest.fixture(scope="module")
def draft() -> str:
    """The quicker of the shipped models."""
    return str(shipped.draft())


def test_streaming_prints_the_text(capsys, draft):
    completion = streaming.main(draft)
    assert completion.text in capsys.readouterr().out
    assert len(completion.token_ids) > 1


def test_batch_rows_do_not_depend_on_their_neighbours(capsys, draft):
    completions = batch.main(draft)
    out = capsys.readouterr().out
    assert all(completion.text in out for completion in completions)
    assert "the same text: True" in out


def test_endless_stream_goes_beyond_its_window(capsys, draft):
    completion = endless_stream.main(draft, tokens=400)
    assert len(completion.token_ids) == 400 > 128 + 4
    assert completion.text in capsys.readouterr().out


def test_rollout_is_scored_as_it_was_sampled_and_learns(draft):
    found = rollout_in_jit.main(draft, steps=6)
    assert max(gap for _, gap in found) < 1e-3
    assert found[-1][0] > found[0][0]


def test_sharded_gives_the_tokens_of_one_device():
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    script = [sys.executable, str(ROOT / "examples" / "sharded.py")]
    ran = subprocess.run(
        script, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "4 devices give the tokens of one: True" in ran.stdout
    assert "P('model', None)" in ran.stdout


def test_every_script_is_run_here():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {
        "batch",
        "endless_stream",
        "rollout_in_jit",
        "sharded",
        "streaming",
        "train_tiny_model",
    }


def test_notebook(draft, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source, count = re.subn(r"^MODEL = None", f"MODEL = {draft!r}", first.source)
    assert count == 1
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    shown = "".join(output.get("text", "") for output in outputs)
    for words in (
        "million parameters",
        "def read_json(path):",
        "perplexity",
        "first token after",
        "norm of its gradient",
    ):
        assert words in shown
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_notebook_ships_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(
        not cell.outputs and cell.execution_count is None
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
