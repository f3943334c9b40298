"""jaxinfer convert: a checkpoint from one layout or dtype to another."""

import time
from pathlib import Path

from absl.flags import FlagValues

from jaxinfer import shipped, weights
from jaxinfer.cli import model, output, target
from jaxinfer.cli.flags import Command, Flags
from jaxinfer.cli.info import size
from jaxinfer.models import registry
from jaxinfer.quantize import METHODS
from jaxinfer.weights import orbax
from jaxinfer.weights.formats import WRITERS
from jaxinfer.weights.loaded import DTYPES

LAYOUTS = ("orbax", "huggingface")


def define(flags: Flags) -> None:
    flags.group("Conversion")
    model.define_name(flags)
    target.define(flags)
    flags.choice(
        "to", "the layout to write; without it, the one that the model does not have", LAYOUTS
    )
    flags.choice("dtype", "of the weights; without it, as they are", DTYPES)
    flags.choice("quantize", "round matrices to integers (needs --to=orbax or --format)", METHODS)
    flags.choice(
        "format",
        "write quantized matrices as another project does, for transformers and others to read",
        tuple(WRITERS),
    )
    flags.text(
        "config",
        "the model's config.json, where an Orbax checkpoint has none beside it",
        form="FILE",
    )
    target.define_overwrite(flags)
    flags.group("Output")
    flags.switch("json", "one JSON object on stdout in place of text")


def run(values: FlagValues) -> None:
    begin, folder = time.perf_counter(), target.given(values.output)
    source = (
        shipped.target() if values.model is None else weights.resolve(values.model)
    ).absolute()
    saved_by_orbax = orbax.is_checkpoint(source)
    other = "huggingface" if saved_by_orbax or values.format is not None else "orbax"
    layout = values.to or other
    if values.format is not None and layout == "orbax":
        raise ValueError(f"--format={values.format} needs --to=huggingface, got --to=orbax")
    if values.quantize is not None and layout != "orbax" and values.format is None:
        raise ValueError(
            f"--quantize needs --to=orbax, or --format, one of {', '.join(WRITERS)}, got neither"
        )
    config_file = source / target.CONFIG if values.config is None else Path(values.config)
    if layout == "huggingface" and not config_file.is_file():
        raise ValueError(
            f"{config_file}: needs the model's config.json, which is missing; name it with --config"
        )
    target.check(folder, source, values.overwrite)
    output.note(f"reading {source}")
    dtype = values.dtype or target.stored_dtype(source)
    loaded = weights.load(source, dtype=dtype, quantize=values.quantize, show_progress=True)
    output.note(f"writing {folder}")
    with target.replaced(folder) as new:
        _write(layout, new, loaded, config_file, values.format)
    found = {
        "folder": str(folder),
        **weights.describe(folder),
        "seconds": time.perf_counter() - begin,
    }
    if values.json:
        output.write_json(found)
    else:
        stored = size(sum(found["files"].values()))
        output.write(
            f"{folder}: {layout}, {found['parameters']:,} parameters, {stored} in {found['seconds']:.1f} s\n"
        )


def _write(
    layout: str, folder: Path, loaded: weights.Loaded, config_file: Path, format: str | None
) -> None:
    if layout == "orbax":
        target.save_orbax(folder, loaded, config_file)
        return
    family = registry.by_name(loaded.config.family)
    hf_config, _, _ = weights.read_config(config_file.parent)
    weights.save(
        folder,
        loaded.params,
        loaded.config,
        family,
        hf_config,
        tokenizer_from=loaded.folder,
        format=format,
    )


COMMAND = Command(
    name="convert",
    summary="write a checkpoint in another layout or dtype",
    description="From the Hugging Face layout to Orbax (restores onto any mesh, can hold rounded weights) and "
    "back. The dtype stays unless --dtype says otherwise. The output appears whole or not at all. With --format, "
    "quantized matrices (of an Orbax checkpoint, of --quantize, or of the model's own format) are written in the "
    "layout of AWQ, GPTQ or compressed-tensors, number for number; embeddings and the output head become floats.",
    examples=(
        "jaxinfer convert ~/models/Llama-3.2-1B ~/models/Llama-3.2-1B-orbax",
        "jaxinfer convert --model ~/models/Llama-3.2-1B --output ~/models/Llama-3.2-1B-int8 --quantize int8",
        "jaxinfer convert ~/models/Llama-3.2-1B-orbax ~/models/again --to huggingface --dtype bfloat16",
        "jaxinfer convert ~/models/Llama-3.2-1B ~/models/Llama-3.2-1B-gptq --quantize int4 --format gptq",
    ),
    define=define,
    run=run,
    positional=("model", "output"),
)
