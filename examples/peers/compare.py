"""jaxinfer beside the engines that are installed, on the same weights and the same machine: prefill,
decode, and start-up.

python -m examples.peers.compare --platform=gpu --model=llama-3.1-8b --cases=1x1024,64x1024
python -m examples.peers.compare --platform=cpu --model=pico-20m --peers='jaxinfer f32,llamacpp f32'

Every engine reads the same weights in a process of its own; medians are shown with their spread.
An engine that is not installed is named, one that fails is shown with its error; the others go on.
The last line of stdout is one JSON document.
"""

import argparse
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from examples.peers import checkpoint, engines, machine, speed, startup, tables
from examples.peers.process import Case
from jaxinfer import shipped

WHAT = ("speed", "startup")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--platform", choices=engines.PLATFORMS, default="cpu")
    parser.add_argument(
        "--model", default=shipped.TARGET, help="shapes (random weights) and shipped models"
    )
    parser.add_argument("--what", default="speed", help="some of " + ", ".join(WHAT))
    parser.add_argument(
        "--peers", help="such as 'jaxinfer f32,llamacpp f32'; without it all that are installed"
    )
    parser.add_argument(
        "--cases", default="1x512,8x512", help="batch x prompt length, with commas between"
    )
    parser.add_argument("--tokens", type=int, default=64, help="decoded after each prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--loading",
        type=int,
        help="engines that load at once, and are then timed in turns; 0: one after another, each "
        "alone; without it 1 on cpu and 0 on gpu",
    )
    parser.add_argument(
        "--scratch", type=Path, help="keeps checkpoints and programs for the next run"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON document here")
    parser.add_argument("--commit", help="of the source, where it is not a git repository")
    values = parser.parse_args(argv)
    known = engines.names(values.platform)
    values.peers = engines.choose(values.peers or ",".join(known), known, "peers")
    models = [shipped.TARGET, shipped.DRAFT, *checkpoint.SHAPES]
    values.model = engines.choose(values.model, models, "model")
    values.what = engines.choose(values.what, WHAT, "what")
    values.cases = [_case(text, values.tokens) for text in values.cases.split(",")]
    if values.loading is None:
        values.loading = 1 if values.platform == "cpu" else 0
    return values


def _case(text: str, tokens: int) -> Case:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found or tokens < 1:
        raise SystemExit(
            f"--cases needs batch x prompt length like 1x512 and --tokens at least 1, got {text!r} "
            f"and {tokens}"
        )
    return Case(int(found[1]), int(found[2]), tokens + 1)


def compare(values: argparse.Namespace, scratch: Path, console: Console) -> dict:
    """The document of a run, without its head."""
    share = 0.9 / (len(values.peers) if values.loading else 1)
    host = engines.Host(values.platform, share, scratch)
    document: dict = {
        "repeats": values.repeats,
        "missing": engines.missing(values.platform),
        "rows": [],
        "ratios": {},
    }
    for name in document["missing"]:
        console.print(f"{name}: not installed")
    for model in values.model if "speed" in values.what else ():
        rows = speed.measure(
            _folder(model, scratch),
            values.peers,
            values.cases,
            host,
            repeats=values.repeats,
            loading=values.loading,
            log=_log,
        )
        document["ratios"][model] = tables.ratios(rows)
        document["rows"] += rows
        tables.show(console, model, rows, document["ratios"][model])
    if "startup" in values.what:
        document["startup"] = startup.measure(scratch, values.repeats, _log)
        seconds = document["startup"]["first_text_s"]["median"]
        console.print(f"process start to first text: {seconds} s")
    return document


def _folder(model: str, scratch: Path) -> Path:
    if model not in checkpoint.SHAPES:
        return shipped.folder(model)
    folder = scratch / model
    if not (folder / "config.json").exists():
        _log(f"writing random weights: {model}")
        checkpoint.write(folder, checkpoint.SHAPES[model])
    return folder


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> dict:
    given = sys.argv[1:] if argv is None else list(argv)
    values = parse(given)
    head = {"kind": "peers", **machine.describe(values.platform), "command": _command(given)}
    if values.commit:
        head["commit"] = values.commit
    with tempfile.TemporaryDirectory() as temporary:
        scratch = values.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        document = head | compare(values, scratch, Console())
    if values.output:
        values.output.parent.mkdir(parents=True, exist_ok=True)
        values.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return document


def _command(given: Sequence[str]) -> str:
    """What was asked for, each flag once (the last one counts), without the places of files."""
    words = [
        part for word in given for part in (word.split("=", 1) if word[:2] == "--" else [word])
    ]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    places = ("--scratch", "--output", "--commit")
    asked = [f"{name}={value}" for name, value in flags.items() if name not in places]
    return shlex.join(["python", "-m", "examples.peers.compare", *asked])


if __name__ == "__main__":
    main()
