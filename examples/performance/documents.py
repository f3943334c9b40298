"""Committed result files: where they are, and what each must say about itself."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "examples/performance/results",
    "examples/peers/results",
    "examples/quantization/results",
)
HEAD = ("kind", "date", "commit", "command", "hardware", "rows")
KINDS = (
    "bench decode",
    "bench prefill",
    "bench throughput",
    "bench startup",
    "peers",
    "quantization",
)
PLATFORMS = ("gpu", "tpu", "cpu")


def read(root: Path = ROOT) -> list[dict]:
    """Every result, with its `path` below `root`: by kind, platform, device, date and path.

    ValueError names a file that is no result, or does not say where its numbers come from.
    """
    paths = [path for folder in FOLDERS for path in (root / folder).glob("*.json")]
    documents = [_read(path, root) for path in paths]
    return sorted(documents, key=_order)


def _read(path: Path, root: Path) -> dict:
    name = path.relative_to(root).as_posix()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} needs to be JSON: {error}") from error
    lacking = [key for key in HEAD if not isinstance(document, dict) or not document.get(key)]
    if lacking:
        raise ValueError(
            f"{name} needs {', '.join(HEAD)}, lacks {', '.join(lacking)}; measure it again"
        )
    if document["kind"] not in KINDS:
        raise ValueError(f"{name} needs a kind among {', '.join(KINDS)}, got {document['kind']!r}")
    return {**document, "path": name}


def _order(document: dict):
    hardware = document["hardware"]
    platform = hardware["platform"]
    place = PLATFORMS.index(platform) if platform in PLATFORMS else len(PLATFORMS)
    return (
        KINDS.index(document["kind"]),
        place,
        hardware["device"],
        document["date"][:10],
        document["path"].removesuffix(".json"),
    )
