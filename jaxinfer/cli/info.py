"""jaxinfer info: what a checkpoint is, from its headers alone."""

import math

from absl.flags import FlagValues

from jaxinfer import shipped, weights
from jaxinfer.cli import model, output
from jaxinfer.cli.flags import Command, Flags
from jaxinfer.weights.loaded import DTYPES

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def define(flags: Flags) -> None:
    flags.group("Model")
    model.define_name(flags)
    flags.choice(
        "dtype",
        "what the weights are loaded in, for the sizes; without it what loading here takes",
        DTYPES,
    )
    flags.group("Output")
    flags.switch("json", "one JSON object on stdout in place of a table")


def run(values: FlagValues) -> None:
    folder = shipped.target() if values.model is None else weights.resolve(values.model)
    found = {"folder": str(folder), **weights.describe(folder, dtype=values.dtype)}
    if values.json:
        output.write_json(found)
    else:
        output.table(_words(found))


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    power = min(int(math.log2(count)) // 10, len(UNITS) - 1) if count >= 1 else 0
    return f"{count:g} bytes" if power == 0 else f"{count / 1024**power:.1f} {UNITS[power]}"


def _words(found: dict) -> dict[str, str]:
    files = found["files"]
    rows = {
        "folder": found["folder"],
        "layout": found["layout"],
        "family": f"{found['family']} ({found['architecture']})",
        "parameters": f"{found['parameters']:,}",
        "weights": f"{size(found['bytes'])} as {found.get('quantize') or found['dtype']}",
        "stored": ", ".join(
            f"{size(count)} {kind}" for kind, count in found["stored_bytes"].items()
        ),
        "kv cache": f"{size(found['kv_bytes_per_token'])} a token ({found['kv_dtype']})",
        "layers": str(found["layers"]),
        "width": f"{found['d_model']}, feed-forward {found['d_ff']}",
        "heads": f"{found['heads']} query, {found['kv_heads']} key-value, of {found['head_dim']}",
        "context": f"{found['context']:,} tokens",
        "vocabulary": f"{found['vocabulary']:,}"
        + (", output head tied to the embedding" if found["tied"] else ""),
        "files": f"{len(files)}, {size(sum(files.values()))}",
    }
    if found["windows"]:
        windows, windowed = (
            ", ".join(map(str, found["windows"])),
            size(found["kv_windowed_bytes_per_token"]),
        )
        rows["windows"] = f"{windows} tokens, in layers with {windowed} of the kv cache of a token"
    return rows


COMMAND = Command(
    name="info",
    summary="what a checkpoint is: family, parameters, bytes, cache per token",
    description="Reads the headers only, so it is quick for a model of any size that lies on disk. Sizes are those "
    "after loading on this machine, or in --dtype.",
    examples=(
        "jaxinfer info",
        "jaxinfer info ~/models/Llama-3.2-1B",
        "jaxinfer info --model ~/models/gemma-2-2b --dtype bfloat16 --json",
    ),
    define=define,
    run=run,
    positional=("model",),
)
