"""Result documents as Markdown: a line about where the numbers come from, and a table."""

from collections.abc import Callable, Sequence

from examples.peers.tables import WHAT, case_of
from jaxinfer.bench.tables import si

Column = tuple[str, Callable[[dict], str]]
TITLES = {
    "bench decode": "Decode",
    "bench prefill": "Prefill",
    "bench throughput": "Throughput",
    "bench startup": "Start-up",
    "peers": "Beside other engines",
    "quantization": "Quantization",
}
NAMES = {"llamacpp": "llama.cpp", "vllm": "vLLM"}


def three(value: float) -> str:
    """Three significant digits, more only where the number is larger: 0.612, 5.70, 12.3, 6,188."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def percent(value: float) -> str:
    return f"{value * 100:.0f}%"


def _number(name: str) -> Callable[[dict], str]:
    return lambda row: three(row[name])


def _count(name: str) -> Callable[[dict], str]:
    return lambda row: f"{row[name]:,}"


def _part(name: str) -> Callable[[dict], str]:
    return lambda row: percent(row[name])


MODEL: tuple[Column, ...] = (
    ("model", lambda row: row["model"]),
    ("weights", lambda row: row["quantize"] or row["dtype"]),
)
SHAPE: tuple[Column, ...] = (*MODEL, ("batch", _count("batch")), ("context", _count("context")))
SPREAD: Column = ("spread", _part("spread"))
READ: Column = ("useful bytes", lambda row: si(row["bytes_per_s"], "B/s"))
COMPUTED: Column = ("useful work", lambda row: si(row["flop_per_s"], "FLOP/s"))
FLOOR: tuple[Column, ...] = (
    ("floor, ms", _number("floor_ms")),
    ("floor / time", _part("of_floor")),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "bench decode": (
        *SHAPE,
        ("ms a step", _number("step_ms")),
        SPREAD,
        ("tokens/s", _number("tokens_per_s")),
        READ,
        ("of read ceiling", _part("of_read_ceiling")),
        *FLOOR,
    ),
    "bench prefill": (
        *SHAPE,
        ("TTFT, ms", _number("ttft_ms")),
        SPREAD,
        ("tokens/s", _number("tokens_per_s")),
        COMPUTED,
        ("of matmul ceiling", _part("of_matmul_ceiling")),
        *FLOOR,
    ),
    "bench throughput": (
        *MODEL,
        ("requests", _count("requests")),
        ("slots", _count("slots")),
        ("tokens in", _count("input_tokens")),
        ("tokens out", _count("output_tokens")),
        ("seconds", _number("seconds")),
        SPREAD,
        ("out tokens/s", _number("output_tokens_per_s")),
        ("all tokens/s", _number("total_tokens_per_s")),
        ("floor / time", _part("of_floor")),
    ),
    "bench startup": (
        *MODEL,
        ("compile cache", lambda row: row["cache"]),
        ("import, s", _number("import_s")),
        ("device, s", _number("device_s")),
        ("load, s", _number("load_s")),
        ("trace, s", _number("trace_s")),
        ("compile, s", _number("compile_s")),
        ("first token, s", _number("first_token_s")),
        SPREAD,
    ),
}
QUANTIZATION: tuple[Column, ...] = (
    ("weights", lambda row: row["name"]),
    ("MB", lambda row: f"{row['candidate']['weight_bytes'] / 1e6:.1f}"),
    ("KV bytes/token", lambda row: f"{row['candidate']['kv_bytes_per_token']:,}"),
    ("perplexity", lambda row: f"{row['candidate']['perplexity']:.3f}"),
    ("change", lambda row: _change(row["perplexity_rise"], row["perplexity_rise_error"])),
    ("KL, nats", lambda row: f"{row['kl']['mean']:.2g}"),
    ("top-1 agreement", lambda row: f"{row['top1_agreement']:.1%}"),
    ("tokens/s", lambda row: three(row["candidate"]["decode_tokens_per_s"])),
)
TEXT = ("model", "weights", "compile cache", "engine")


def page(documents: Sequence[dict]) -> str:
    """The whole section."""
    parts, title = [], ""
    for document in documents:
        if TITLES[document["kind"]] != title:
            title = TITLES[document["kind"]]
            parts.append(f"### {title}")
        parts += [_origin(document), *_tables(document)]
        parts += [document["note"]] if "note" in document else []
    return "\n\n".join(parts)


def _origin(document: dict) -> str:
    hardware, commit = document["hardware"], document["commit"]
    device = hardware["device"]
    if hardware["platform"] == "cpu":
        device += f", {hardware['cores']} cores"
    elif hardware["devices"] > 1:
        device = f"{hardware['devices']} x {device}"
    short = commit.removesuffix("+")[:7] + ("+" if commit.endswith("+") else "")
    jax = document.get("versions", {}).get("jax")
    words = [device, document["date"][:10], f"commit {short}", *([f"JAX {jax}"] if jax else [])]
    line = f"{', '.join(words)} ([file]({document['path']})):"
    return f"{line}\n`{document['command']}`"


def _tables(document: dict) -> list[str]:
    if document["kind"] == "peers":
        return _peers(document)
    if document["kind"] == "quantization":
        return _quantization(document)
    ceilings = document.get("ceilings")
    found = [_table(COLUMNS[document["kind"]], document["rows"])]
    return [*found, _ceilings(ceilings)] if ceilings else found


def _quantization(document: dict) -> list[str]:
    """A row for the reference and one for each way to hold the model; a picture; the bars."""
    reference = document["reference"]
    nothing = {"perplexity_rise": 0.0, "perplexity_rise_error": 0.0, "kl": {"mean": 0.0}}
    first = {
        "name": "bfloat16 (reference)",
        "candidate": reference,
        "top1_agreement": 1.0,
        **nothing,
    }
    picture = document["path"].removesuffix(".json") + ".png"
    about = (
        f"{document['model']} on {document['tokens']:,} tokens of held-out text; calibration on "
        f"{document['calibration_tokens']:,} tokens of training text; decoding of one sequence, "
        f"median of {document['repeats']} runs ([picture]({picture})):"
    )
    bars = [
        f"{bar['bar']}: {'met' if bar['met'] else 'missed'} "
        f"({bar['best']}, {_change(bar['perplexity_rise'], bar['error'])})"
        for bar in document["bars"]
    ]
    found = [about, _table(QUANTIZATION, [first, *document["rows"]]), f"{'; '.join(bars)}."]
    tried = [row for row in document["rows"] if "tried" in row]
    return [*found, _tried(tried, document["choosing_tokens"])] if tried else found


def _tried(rows: Sequence[dict], tokens: int) -> str:
    """What a setting was chosen by."""
    words = []
    for row in rows:
        changes = {each["clip"]: f"{each['perplexity_rise']:+.2%}" for each in row["tried"]}
        chosen = "clipped" if row["clip"] else "whole"
        words.append(f"{row['name']}: {changes[True]} and {changes[False]}, {chosen}")
    return (
        "Whether GPTQ's grids leave out a group's largest weights (clipped) or cover all (whole) was chosen by "
        f"the perplexity of {tokens:,} tokens of other training text, the one then the other: {'; '.join(words)}."
    )


def _change(rise: float, error: float) -> str:
    return f"{rise:+.2%} ± {error:.2%}" if error else "0"


def _ceilings(found: dict) -> str:
    rates = [
        f"{name} products {si(rate, 'op/s' if name.startswith('int') else 'FLOP/s')}"
        for name, rate in found["matmul_flop_per_s"].items()
    ]
    return f"Ceilings measured in the same run: reading {si(found['read_bytes_per_s'], 'B/s')}, {', '.join(rates)}."


def _table(columns: Sequence[Column], rows: Sequence[dict]) -> str:
    """A row that was not measured says why in its last cell."""
    lines = []
    for row in rows:
        if "error" not in row:
            lines.append([read(row) for _, read in columns])
            continue
        known = [read(row) for name, read in columns if name in (*TEXT, "batch", "context")]
        reason = row["error"].split(":")[0]
        lines.append([*known, reason, *[""] * (len(columns) - len(known) - 1)])
    return table([name for name, _ in columns], lines)


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rules = ["---" if name in TEXT else "---:" for name in names]
    rows = [names, rules, *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _peers(document: dict) -> list[str]:
    """A table a model: engines down, cases across, our best over theirs below."""
    found = []
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["model"] == model]
        cases = [
            (what, *case) for what in WHAT for case in dict.fromkeys(case_of(row) for row in rows)
        ]
        names = ["engine", *(f"{what} {b}x{c}" for what, b, c in cases)]
        lines = [
            _engine(name, [row for row in rows if row["peer"] == name], cases)
            for name in dict.fromkeys(row["peer"] for row in rows)
        ]
        lines += _ratios(document["ratios"][model], cases)
        repeats = document["repeats"]
        runs = f"medians of {repeats} runs" if repeats > 1 else "one run"
        found += [f"{model}, tokens/s (prompts x tokens), {runs}:", table(names, lines)]
    if document.get("missing"):
        found.append(f"Not installed there: {', '.join(map(_name, document['missing']))}.")
    if "startup" in document:
        warm, cold = document["startup"]["first_text_s"], document["startup"]["empty_cache_s"]
        found.append(
            f"From process start to the first text of the shipped model: {warm['median']:.1f} s with a "
            f"warm compile cache, {cold:.1f} s with an empty one."
        )
    return found


def _engine(name: str, rows: Sequence[dict], cases) -> list[str]:
    mine = {case_of(row): row for row in rows}
    cells = []
    for what, *case in cases:
        row = mine.get(tuple(case))
        cells.append(
            ""
            if row is None
            else "failed"
            if "error" in row
            else three(row[f"{what}_tok_s"]["median"])
        )
    return [_name(name), *cells]


def _ratios(ratios: Sequence[dict], cases) -> list[list[str]]:
    """Our best variant over each peer's best, and equal types."""
    lines: dict[str, dict[tuple, str]] = {}
    for row in ratios:
        case = (row["what"], row["batch"], row["context"])
        peer, _, theirs = row["theirs"].partition(" ")
        ours = row["ours"].partition(" ")[2]
        best = f"best jaxinfer / best {_name(peer)}"
        if case not in lines.setdefault(best, {}):  # the first of a case is best against best
            lines[best][case] = f"{row['ratio']:.2f}"
        if ours == theirs:
            lines.setdefault(f"jaxinfer {ours} / {_name(peer)} {ours}", {})[case] = (
                f"{row['ratio']:.2f}"
            )
    return [
        [f"*{name}*", *(found.get(case, "") for case in cases)] for name, found in lines.items()
    ]


def _name(peer: str) -> str:
    first, space, variant = peer.partition(" ")
    return NAMES.get(first, first) + space + variant
