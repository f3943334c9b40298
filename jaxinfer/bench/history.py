"""Results kept on disk: a JSON document per run, and one line per run in a history file."""

import json
import re
from pathlib import Path

HISTORY = "history.jsonl"


def append(path: Path, document: dict) -> None:
    """Add a run as one JSON line; without its rows' kernels, which its own file holds."""
    rows = [{k: v for k, v in row.items() if k != "kernels"} for row in document["rows"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(_text({**document, "rows": rows}) + "\n")


def read(path: Path) -> list[dict]:
    """Every run in a history file, oldest first. ValueError names a line that is no JSON object."""
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            run = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} needs to be JSON: {error}") from error
        if not isinstance(run, dict):
            raise ValueError(f"{path} line {number} needs a JSON object, got {line[:60]!r}")
        runs.append(run)
    return runs


def save(folder: Path, document: dict) -> Path:
    """Write a run as a file of its own into `folder`, and add it to the folder's history.

    The file is named by kind, model and date. Returns its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_stem(document)}.json"
    path.write_text(_text(document, indent=1) + "\n", encoding="utf-8")
    append(folder / HISTORY, document)
    return path


def file_stem(document: dict) -> str:
    """A file name for a run, without its ending: decode-llama-3.1-8b-20260131T120000Z."""
    rows = document["rows"] or [{}]
    words = [document["kind"].split()[-1], str(rows[0].get("model", "")), document["date"]]
    words = [re.sub(r"[^a-z0-9.]+", "-", word.lower()).strip("-") for word in words[:2]]
    date = re.sub(r"[-:]", "", document["date"])
    return "-".join(word for word in (*words, date) if word)


def _text(document: dict, indent: int | None = None) -> str:
    return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
