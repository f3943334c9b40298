"""What `jaxinfer quality` shows in a terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table


def show(described: dict, console: Console) -> None:
    """Two tables and the verdict."""
    sides = [described["reference"], described["candidate"]]
    table = Table(
        f"{described['tokens']:,} tokens", "reference", "candidate", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_row("setting", *(side["setting"] for side in sides))
    for name in ("perplexity", "bits_per_byte"):
        cells = (f"{side[name]:.4f} ± {side[f'{name}_error']:.4f}" for side in sides)
        table.add_row(name.replace("_", " "), *cells)
    table.add_row("weights", *(f"{side['weight_bytes'] / 1e6:,.1f} MB" for side in sides))
    if sides[0]["decode_tokens_per_s"] is not None:
        table.add_row(
            "decoding", *(f"{side['decode_tokens_per_s']:,.1f} tokens/s" for side in sides)
        )
    table.add_row("KV a token", *(f"{side['kv_bytes_per_token']:,} bytes" for side in sides))
    console.print(table)
    console.print(_distances(described))
    console.print(described["sentence"], highlight=False, soft_wrap=True)


def _distances(described: dict) -> Table:
    kl, parted = described["kl"], described["continuations"]
    table = Table("candidate against reference", "", box=SIMPLE_HEAD, pad_edge=False)
    rise = f"{described['perplexity_rise']:+.3%} ± {described['perplexity_rise_error']:.3%}"
    table.add_row("perplexity", rise)
    table.add_row("KL a token, nats", f"{kl['mean']:.3g} ± {kl['error']:.1g}")
    table.add_row("KL: median, p99, max", f"{kl['median']:.3g}, {kl['p99']:.3g}, {kl['max']:.3g}")
    table.add_row("top-1 agreement", f"{described['top1_agreement']:.2%}")
    table.add_row("top-5 overlap", f"{described['top5_overlap']:.2%}")
    table.add_row("accepted as a draft", f"{described['acceptance']:.2%}")
    delta = f"{described['mean_delta_logprob']:.3g}, {described['max_delta_logprob']:.3g}"
    table.add_row("change of log-probability: mean, max", delta)
    if parted["prompts"]:
        same = f"{parted['identical']} of {parted['prompts']} for {parted['tokens']} tokens"
        table.add_row("identical greedy continuations", same)
    if parted["least"] is not None:
        where = f"{parted['least']} .. {parted['most']}, median {parted['median']:g}"
        table.add_row("others part at token", where)
    return table


def show_several(described: dict, console: Console) -> None:
    """A row for the reference and one for each candidate, numbers whole where 80 characters fit; then
    the verdicts. What all have of a model's name is left out.
    """
    reference = described["reference"]
    model, _, _ = reference["setting"].partition(",")
    names = ("MB", "perplexity", "change, %", "KL, nats", "top-1", "tokens/s")
    table = Table(
        Column(f"{described['tokens']:,} tokens", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in names),
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_row(_setting(model, reference), *_cells(reference, "", "", ""))
    for row in described["candidates"]:
        rise, error = row["perplexity_rise"], row["perplexity_rise_error"]
        change = f"{100 * rise:+.3f} ± {100 * error:.3f}"
        cells = _cells(
            row["candidate"], change, f"{row['kl']['mean']:.3g}", f"{row['top1_agreement']:.2%}"
        )
        table.add_row(_setting(model, row["candidate"]), *cells)
    console.print(table)
    for row in described["candidates"]:
        words = f"{_setting(model, row['candidate'])}: {row['verdict']}"
        console.print(words, highlight=False, soft_wrap=True)


def _setting(model: str, side: dict) -> str:
    setting = side["setting"]
    if model.startswith("model=") and (setting == model or setting.startswith(f"{model},")):
        setting = setting.removeprefix(model).removeprefix(",") or "as loaded"
    return setting


def _cells(side: dict, change: str, kl: str, agreement: str) -> list[str]:
    speed = side["decode_tokens_per_s"]
    return [
        f"{side['weight_bytes'] / 1e6:,.1f}",
        f"{side['perplexity']:.4f}",
        change,
        kl,
        agreement,
        "" if speed is None else f"{speed:,.1f}",
    ]
