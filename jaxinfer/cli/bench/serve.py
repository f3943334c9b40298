"""jaxinfer bench serve: load on a server that speaks OpenAI's API, whoever wrote it."""

import asyncio
import sys
from pathlib import Path

from absl.flags import FlagValues
from rich.console import Console

from jaxinfer.bench import environment, history, plots, tables
from jaxinfer.bench.serve import load, pictures, statistics
from jaxinfer.bench.serve.client import Client, httpx
from jaxinfer.bench.serve.workload import Dataset, Lengths, Target
from jaxinfer.cli import output
from jaxinfer.cli.bench.lists import sizes
from jaxinfer.cli.bench.sweep import WIDEST, Say, argv, progress
from jaxinfer.cli.flags import INTEGER, REAL, Command, Flags

URL = "http://127.0.0.1:8000/v1/completions"
CONCURRENCY = "8"


def define(flags: Flags) -> None:
    flags.group("Server")
    flags.text(
        "url",
        "where requests go, and nowhere else; ends in /completions or /chat/completions",
        URL,
        "URL",
    )
    flags.text("model", "the model's name there; without it the first that the server lists")
    flags.text("api_key_file", "a file with the key that opens it", form="FILE")
    flags.group("Arrivals")
    flags.text(
        "concurrency",
        "requests under way all the time; every number is a row "
        f"(default: {CONCURRENCY}, without --rate)",
        form="N,N,...",
    )
    flags.text(
        "rate",
        "requests a second, at random times that do not wait for answers (Poisson); every number "
        "is a row",
        form="X,X,...",
    )
    flags.one("requests", INTEGER, "how many of them, in each row", 100)
    flags.one("warm_up", INTEGER, "requests before the clock starts, in each row", 2)
    flags.one("seconds", REAL, "after so long a row sends nothing more, and cuts off", 600.0, "S")
    flags.one("timeout", REAL, "that one request may take", 120.0, "S")
    flags.group("Requests")
    flags.one("input_tokens", INTEGER, "mean length of a prompt", Lengths.input)
    flags.one("output_tokens", INTEGER, "mean length of an answer", Lengths.output)
    flags.one(
        "vary", REAL, "lengths are uniform in 1 - vary .. 1 + vary of their mean", Lengths.vary, "X"
    )
    flags.one(
        "shared_prefix", REAL, "part of a prompt with which all begin", Lengths.shared, "0..1"
    )
    flags.one(
        "vocab_size",
        INTEGER,
        "prompts are random token ids below it; for a chat they are English words",
        Lengths.vocab_size,
    )
    flags.switch("keep_eos", "answers may end by themselves: ignore_eos is not sent")
    flags.one("temperature", REAL, "of every request", Lengths.temperature, "X")
    flags.one(
        "seed",
        INTEGER,
        "of lengths, prompts and times; a second run with the same one finds its prompts in the "
        "server's cache",
        0,
    )
    flags.text(
        "dataset",
        "JSON lines instead: bodies with prompt (or messages) and max_tokens, and whatever else the "
        "server takes",
        form="FILE.jsonl",
    )
    flags.group("Output")
    flags.text(
        "goodput",
        "limits in ms on any of ttft, tpot, itl (its longest gap) and e2e; shows the requests that "
        "meet all",
        form="ttft:200,tpot:50",
    )
    flags.text(
        "plot",
        "draw how times are spread, and, for several rows, throughput against load",
        form="FILE.png",
    )
    flags.text(
        "output", "keep the JSON document here, and a line of it in history.jsonl", form="FOLDER"
    )
    flags.switch("json", "the JSON document alone on stdout, no table")


def run(values: FlagValues) -> None:
    httpx()
    target = Target.parse(values.url)
    cases, bounds = _cases(values), statistics.limits(values.goodput)
    if not 0 < values.timeout <= 86400 or values.seed < 0:
        raise ValueError(
            "--timeout needs to be above 0 and at most a day, and --seed at least 0, got "
            f"{values.timeout} and {values.seed}"
        )
    work = _work(values, target)
    key = None if values.api_key_file is None else _key(Path(values.api_key_file))
    if values.plot is not None:
        plots.check(Path(values.plot))
    if values.output is not None:
        Path(values.output).mkdir(parents=True, exist_ok=True)
    head = environment.describe("bench serve", argv(values, "serve"), environment.host())
    with progress() as say:
        client = (target, values.model, key, values.timeout)
        model, rows = asyncio.run(_measure(client, work, cases, values.seed, bounds, say))
    server = {"url": target.url, "model": model}
    _show(values, {**head, "server": server, "ceilings": None, "rows": rows})
    if not any(row["completed"] for row in rows):
        words = "; ".join(statistics.failures(rows[0]))
        raise RuntimeError(f"no request was answered: {words}")


def _cases(values: FlagValues) -> list[load.Case]:
    if values.rate is not None and values.concurrency is not None:
        raise ValueError("give one of --concurrency and --rate")
    shared = dict(requests=values.requests, warm_up=values.warm_up, seconds=values.seconds)
    if values.rate is None:
        given = values.concurrency or CONCURRENCY
        return [load.Case(concurrency=n, **shared) for n in sizes("concurrency", given)]
    try:
        rates = [float(part) for part in values.rate.split(",")]
    except ValueError:
        raise ValueError(f"--rate needs numbers separated by commas, got {values.rate!r}") from None
    return [load.Case(rate=rate, **shared) for rate in rates]


def _work(values: FlagValues, target: Target) -> Lengths | Dataset:
    if values.dataset is not None:
        return Dataset.read(Path(values.dataset), chat=target.chat)
    return Lengths(
        input=values.input_tokens,
        output=values.output_tokens,
        vary=values.vary,
        shared=values.shared_prefix,
        vocab_size=values.vocab_size,
        ignore_eos=not values.keep_eos,
        temperature=values.temperature,
    )


def _key(path: Path) -> str:
    """The first line of a file."""
    lines = path.read_text(encoding="utf-8").split()
    if len(lines) != 1 or not lines[0].isascii():
        raise ValueError(f"--api_key_file needs one key in {path}, got {len(lines)} words")
    return lines[0]


async def _measure(
    client: tuple[Target, str | None, str | None, float],
    work: Lengths | Dataset,
    cases: list[load.Case],
    seed: int,
    bounds: dict[str, float] | None,
    say: Say,
) -> tuple[str, list[dict]]:
    """The model's name and a row for each case. Rows share a prefix and nothing else."""
    rows = []
    async with Client(*client) as connections:
        model = await connections.find_model()
        for number, case in enumerate(cases):
            asked = f"{case.rate:g} a second" if case.rate else f"{case.concurrency:,} at once"
            say(f"{case.requests:,} requests, {asked}")
            done = await load.run(connections, work, case, (seed, number))
            rows.append(statistics.row(done, model, bounds))
    return model, rows


def _show(values: FlagValues, document: dict) -> None:
    if values.output is not None:
        output.note(f"wrote {history.save(Path(values.output), document)}")
    if values.plot is not None and any(row["completed"] for row in document["rows"]):
        pictures.draw(document, Path(values.plot))
        output.note(f"wrote {values.plot}")
    for row in document["rows"]:
        for words in statistics.warnings(row):
            output.note(words)
    if not values.json:
        console = Console(file=sys.stdout, highlight=False)
        console.width = max(console.width, WIDEST)
        server = document["server"]
        console.print(f"bench serve: {server['model']} at {server['url']}")
        console.print(tables.results("serve", document["rows"]))
    output.write_json(document)


COMMAND = Command(
    name="bench serve",
    summary="latency, throughput and goodput of a server under load, ours or any other",
    description="Sends streaming requests to an OpenAI-compatible URL and to nowhere else, and takes "
    "their times as a client sees them. TTFT: to the first text. TPOT: time per token after the first, "
    "of one answer. ITL: between neighbouring chunks of text, of all answers. whole: to the last text. "
    "Times are medians and 90th and 99th percentiles of whole answers; errors are counted by kind. "
    "Tokens are counted by the server's usage where it sends it. The last line of stdout is one JSON "
    "document.",
    examples=(
        "jaxinfer bench serve --concurrency=1,8,64 --plot=load.png",
        "jaxinfer bench serve --rate=2,4,8 --requests=500 --goodput=ttft:200,tpot:50",
        "jaxinfer bench serve --shared_prefix=0.9 --input_tokens=2048 --output=results",
        "jaxinfer bench serve --url=http://127.0.0.1:8001/v1/chat/completions --dataset=chats.jsonl",
    ),
    define=define,
    run=run,
)
