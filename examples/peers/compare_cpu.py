"""jaxinfer beside transformers and llama.cpp on this machine's CPU: prefill, decode, and start-up.

python -m examples.peers.compare_cpu [--model pico-20m,smollm2-360m] [--what speed,startup]
[--repeats 3]

Every engine reads the same weights in a process of its own; runs are interleaved, so that a busy
moment hits all alike, and medians are shown with their spread. The last line of stdout is one JSON
document.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from rich.console import Console
from rich.table import Table

from examples.peers import checkpoint
from jaxinfer import shipped

PEERS = {
    "jaxinfer": ("f32", "bf16", "w8a8"),
    "transformers": ("f32", "bf16", "f32-compiled", "bf16-compiled"),
    "llamacpp": ("f32", "bf16", "q8_0"),
}
NEEDS = {"jaxinfer": "jax", "transformers": "transformers", "llamacpp": "llama_cpp"}
WHAT = ("speed", "startup")
ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    batch: int
    context: int
    new: int


class Worker:
    """A peer in its process, loaded and waiting."""

    def __init__(self, peer: str, variant: str, folder: Path, scratch: Path, log: IO[str]):
        self.name = f"{peer} {variant}"
        self._log = log
        command = [
            sys.executable,
            "-m",
            "examples.peers.worker",
            peer,
            variant,
            str(folder),
            str(scratch),
        ]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment, cwd=ROOT
        )
        self._answer()

    def run(self, case: Case, seed: int) -> dict:
        """The fields of a `timing.Timing`."""
        self._process.stdin.write(json.dumps(case._asdict() | {"seed": seed}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"{self.name} failed:\n{self._log.read()[-3000:]}")
        return line


def installed() -> list[str]:
    """The peers whose packages are here."""
    return [peer for peer, package in NEEDS.items() if importlib.util.find_spec(package)]


def speed(
    folder: Path, scratch: Path, names: Sequence[str], cases: Sequence[Case], repeats: int, log
) -> list[dict]:
    """A record per peer and case: median, least and most tokens per second of prefill and decode."""
    workers, found = [], {}
    with contextlib.ExitStack() as stack:
        for name in names:
            log(f"{folder.name}: loading {name}")
            noise = stack.enter_context(tempfile.TemporaryFile("w+"))
            workers.append(Worker(*name.split(), folder, scratch, noise))
            stack.callback(workers[-1].close)
            for case in cases:  # compiles, and touches every page
                workers[-1].run(case, seed=0)
        for repeat in range(1, repeats + 1):
            for case in cases:
                log(
                    f"{folder.name}: repetition {repeat} of {repeats}, batch {case.batch}, context {case.context}"
                )
                for worker in workers:
                    timed = worker.run(case, seed=repeat)
                    found.setdefault((worker.name, case), []).append(timed)
    return [
        _record(name, case, timed, found[names[0], case]) for (name, case), timed in found.items()
    ]


def _record(name: str, case: Case, timed: list[dict], reference: list[dict]) -> dict:
    prompt_tokens = case.batch * case.context
    both = [
        zip(x["tokens"], y["tokens"], strict=True) for x, y in zip(timed, reference, strict=True)
    ]
    pairs = [pair for rows in both for pair in rows]
    return {
        "peer": name,
        **case._asdict(),
        "prefill_tok_s": _spread(prompt_tokens / t["prefill_s"] for t in timed),
        "decode_tok_s": _spread(t["decode_tokens"] / t["decode_s"] for t in timed),
        "first_tokens_as_reference": statistics.mean(a[0] == b[0] for a, b in pairs),
    }


def _spread(values: Iterator[float]) -> dict:
    values = sorted(round(value, 2) for value in values)
    return {"median": statistics.median(values), "least": values[0], "most": values[-1]}


def startup(scratch: Path, repeats: int, log, model: str | None = None) -> dict:
    """Seconds from the start of `python -m jaxinfer generate` to its first text, programs already
    in the cache.
    """
    command = [
        sys.executable,
        "-m",
        "jaxinfer",
        "generate",
        "--prompt=def fibonacci(n):",
        "--max_new_tokens=32",
        "--seed=1",
        f"--compile_cache={scratch / 'programs'}",
        *([f"--model={model}"] if model else []),
    ]
    seconds = []
    for repeat in range(repeats + 1):
        log(
            f"start-up: {'filling the compile cache' if not repeat else f'repetition {repeat} of {repeats}'}"
        )
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        process.stdout.read(1)
        seconds.append(time.perf_counter() - began)
        _, error = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{error.decode()}")
    return {"first_text_s": _spread(iter(seconds[1:])), "empty_cache_s": round(seconds[0], 2)}


def ratios(records: Sequence[dict]) -> list[dict]:
    """Our best against each peer's best, and f32 against f32: above 1 means jaxinfer is faster."""
    rows = []
    for case in dict.fromkeys(Case(r["batch"], r["context"], r["new"]) for r in records):
        for what in ("decode_tok_s", "prefill_tok_s"):
            rate = {
                r["peer"]: r[what]["median"]
                for r in records
                if (r["batch"], r["context"]) == case[:2]
            }

            def best(peer, rate=rate):
                return max((value, name) for name, value in rate.items() if name.startswith(peer))

            for peer in ("transformers", "llamacpp"):
                pairs = []
                if any(name.startswith(peer) for name in rate):
                    pairs.append((best("jaxinfer"), best(peer)))
                if {"jaxinfer f32", f"{peer} f32"} <= set(rate):
                    pairs.append(
                        (
                            (rate["jaxinfer f32"], "jaxinfer f32"),
                            (rate[f"{peer} f32"], f"{peer} f32"),
                        )
                    )
                rows += [
                    {
                        "what": what,
                        "batch": case.batch,
                        "context": case.context,
                        "ours": a[1],
                        "theirs": b[1],
                        "ratio": round(a[0] / b[0], 3),
                    }
                    for a, b in pairs
                ]
    return rows


def show(console: Console, model: str, records: Sequence[dict], compared: Sequence[dict]) -> None:
    """Two tables: tokens per second (median, spread), and the ratios."""
    cases = list(dict.fromkeys((r["batch"], r["context"]) for r in records))
    for what in ("decode", "prefill"):
        table = Table(
            "engine",
            *(f"batch {b}, context {c}" for b, c in cases),
            title=f"{model}: {what}, tokens/s",
        )
        for name in dict.fromkeys(r["peer"] for r in records):
            mine = {
                (r["batch"], r["context"]): r[f"{what}_tok_s"] for r in records if r["peer"] == name
            }
            cells = [
                f"{mine[c]['median']:.1f} ({mine[c]['least']:.1f} .. {mine[c]['most']:.1f})"
                for c in cases
            ]
            table.add_row(name, *cells)
        console.print(table)
    table = Table(
        "what", "batch", "context", "ours", "theirs", "ratio", title=f"{model}: ours / theirs"
    )
    for row in compared:
        cells = [str(row[key]) for key in ("batch", "context", "ours", "theirs", "ratio")]
        table.add_row(row["what"].split("_")[0], *cells)
    console.print(table)


def _choose(given: str, known: Sequence[str], flag: str) -> list[str]:
    chosen = given.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"--{flag} needs some of {', '.join(known)}, got {', '.join(unknown)}")
    return chosen


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    every = [f"{peer} {variant}" for peer in installed() for variant in PEERS[peer]]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="pico-20m,smollm2-360m", help="shapes, the shipped model, or both"
    )
    parser.add_argument("--what", default=",".join(WHAT))
    parser.add_argument(
        "--peers", default=",".join(every), help="such as 'jaxinfer f32,llamacpp f32'"
    )
    parser.add_argument("--batches", default="1,8")
    parser.add_argument(
        "--contexts", default="16,512", help="prompt lengths; prefill is timed at each"
    )
    parser.add_argument("--tokens", type=int, default=64, help="decoded after each prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--scratch", type=Path, help="keeps checkpoints and programs for the next run"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON document here")
    values = parser.parse_args(argv)
    values.what = _choose(values.what, WHAT, "what")
    values.peers = _choose(values.peers, every, "peers")
    values.model = _choose(
        values.model, [shipped.TARGET, shipped.DRAFT, *checkpoint.SHAPES], "model"
    )
    return values


def compare(values: argparse.Namespace, scratch: Path, console: Console) -> dict:
    def log(text):
        print(text, file=sys.stderr, flush=True)

    batches, contexts = (
        [int(x) for x in text.split(",")] for text in (values.batches, values.contexts)
    )
    cases = [Case(b, c, values.tokens + 1) for b in batches for c in contexts]
    document = {"cpus": os.cpu_count(), "repeats": values.repeats, "models": {}}
    for model in values.model if "speed" in values.what else ():
        folder = scratch / model
        if model not in checkpoint.SHAPES:
            folder = shipped.folder(model)
        elif not (folder / "model.safetensors").exists():
            log(f"writing random weights: {model}")
            checkpoint.write(folder, checkpoint.SHAPES[model])
        records = speed(folder, scratch, values.peers, cases, values.repeats, log)
        compared = ratios(records)
        show(console, model, records, compared)
        document["models"][model] = {"records": records, "ratios": compared}
    if "startup" in values.what:
        document["startup"] = startup(scratch, values.repeats, log)
        console.print(
            f"process start to first text: {document['startup']['first_text_s']['median']} s"
        )
    return document


def main(argv: Sequence[str] | None = None) -> dict:
    values = parse(argv)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = values.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        document = compare(values, scratch, Console())
    text = json.dumps(document)
    if values.output:
        values.output.parent.mkdir(parents=True, exist_ok=True)
        values.output.write_text(json.dumps(document, indent=1) + "\n")
    print(text)
    return document


if __name__ == "__main__":
    main()
