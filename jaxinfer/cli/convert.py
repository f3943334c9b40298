"""jaxinfer convert: a checkpoint from one layout or dtype to another."""

import shutil
import time
from pathlib import Path

from absl.flags import FlagValues

from jaxinfer import shipped, weights
from jaxinfer.cli import model, output
from jaxinfer.cli.flags import Command, Flags
from jaxinfer.cli.info import size
from jaxinfer.models import registry
from jaxinfer.quantize import METHODS
from jaxinfer.weights import orbax
from jaxinfer.weights.loaded import DTYPES
from jaxinfer.weights.safetensors_file import FLOATS

LAYOUTS = ("orbax", "huggingface")
CONFIG = "config.json"


def define(flags: Flags) -> None:
    flags.group("Conversion")
    model.define_name(flags)
    flags.text("output", "the folder to write", form="FOLDER")
    flags.choice(
        "to", "the layout to write; without it, the one that the model does not have", LAYOUTS
    )
    flags.choice("dtype", "of the weights; without it, as they are", DTYPES)
    flags.choice("quantize", "round matrices to integers (needs --to=orbax)", METHODS)
    flags.text(
        "config",
        "the model's config.json, where an Orbax checkpoint has none beside it",
        form="FILE",
    )
    flags.switch("overwrite", "replace a checkpoint that lies in --output")
    flags.group("Output")
    flags.switch("json", "one JSON object on stdout in place of text")


def run(values: FlagValues) -> None:
    if values.output is None:
        raise ValueError("needs --output, the folder to write, got none")
    begin = time.perf_counter()
    source = (
        shipped.target() if values.model is None else weights.resolve(values.model)
    ).absolute()
    target = Path(values.output).expanduser().absolute()
    saved_by_orbax = orbax.is_checkpoint(source)
    layout = values.to or ("huggingface" if saved_by_orbax else "orbax")
    if values.quantize is not None and layout != "orbax":
        raise ValueError(
            "--quantize needs --to=orbax: the Hugging Face layout holds unquantized weights"
        )
    config_file = source / CONFIG if values.config is None else Path(values.config)
    if layout == "huggingface" and not config_file.is_file():
        raise ValueError(
            f"{config_file}: needs the model's config.json, which is missing; name it with --config"
        )
    _check_target(source, target, values.overwrite)
    output.note(f"reading {source}")
    dtype = values.dtype or _stored_dtype(source)
    loaded = weights.load(source, dtype=dtype, quantize=values.quantize, show_progress=True)
    output.note(f"writing {target}")
    new = target.with_name(f".{target.name}.new")
    try:
        _write(layout, new, loaded, config_file)
        if target.exists():
            shutil.rmtree(target)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    found = {
        "folder": str(target),
        **weights.describe(target),
        "seconds": time.perf_counter() - begin,
    }
    if values.json:
        output.write_json(found)
    else:
        stored = size(sum(found["files"].values()))
        output.write(
            f"{target}: {layout}, {found['parameters']:,} parameters, {stored} in {found['seconds']:.1f} s\n"
        )


def _write(layout: str, folder: Path, loaded: weights.Loaded, config_file: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if layout == "orbax":
        orbax.save(folder, loaded.params, loaded.config, tokenizer_from=loaded.folder)
        if config_file.is_file():  # it names the EOS ids, and the way back needs it
            shutil.copyfile(config_file, folder / CONFIG)
        return
    family = registry.by_name(loaded.config.family)
    hf_config, _, _ = weights.read_config(config_file.parent)
    weights.save(
        folder, loaded.params, loaded.config, family, hf_config, tokenizer_from=loaded.folder
    )


def _stored_dtype(source: Path) -> str:
    """The dtype of most of the checkpoint's bytes, as weights can be held in it."""
    if orbax.is_checkpoint(source):
        return orbax.read_description(source).dtype
    stored = weights.describe(source)["stored_bytes"]
    dtype = FLOATS[max(stored, key=stored.__getitem__)]
    return dtype.name if dtype.name in DTYPES else "bfloat16" if dtype.itemsize == 1 else "float32"


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise ValueError(
            f"{target}: needs a folder that is new or empty, got one with files; choose another, or pass --overwrite"
        )
    if not (target / CONFIG).is_file() and not orbax.is_checkpoint(target):
        raise ValueError(
            f"{target}: --overwrite replaces checkpoints only, and this is none; choose another folder"
        )
    if target in source.parents:
        raise ValueError(f"{target}: holds the model that is read, {source}; choose another folder")


COMMAND = Command(
    name="convert",
    summary="write a checkpoint in another layout or dtype",
    description="From the Hugging Face layout to Orbax (restores onto any mesh, can hold rounded weights) and "
    "back. The dtype stays unless --dtype says otherwise. The output appears whole or not at all.",
    examples=(
        "jaxinfer convert ~/models/Llama-3.2-1B ~/models/Llama-3.2-1B-orbax",
        "jaxinfer convert --model ~/models/Llama-3.2-1B --output ~/models/Llama-3.2-1B-int8 --quantize int8",
        "jaxinfer convert ~/models/Llama-3.2-1B-orbax ~/models/again --to huggingface --dtype bfloat16",
    ),
    define=define,
    run=run,
    positional=("model", "output"),
)
