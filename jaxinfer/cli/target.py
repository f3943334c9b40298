"""The folder that a command writes a checkpoint to."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxinfer import weights
from jaxinfer.cli.flags import Flags
from jaxinfer.weights import orbax
from jaxinfer.weights.loaded import DTYPES, Loaded
from jaxinfer.weights.safetensors_file import FLOATS

CONFIG = "config.json"


def define(flags: Flags) -> None:
    flags.text("output", "the folder to write", form="FOLDER")


def define_overwrite(flags: Flags) -> None:
    flags.switch("overwrite", "replace a checkpoint that lies in --output")


def given(output: str | None) -> Path:
    """What --output names; ValueError where it is not there."""
    if output is None:
        raise ValueError("needs --output, the folder to write, got none")
    return Path(output).expanduser().absolute()


def check(target: Path, source: Path, overwrite: bool) -> None:
    """ValueError where something is in the way of what is made of `source`."""
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


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A name beside `target` to write a folder to; at the end it takes target's place, and if
    anything fails it vanishes.
    """
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield new
        if target.exists():
            shutil.rmtree(target)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def save_orbax(folder: Path, loaded: Loaded, config_file: Path, method: str | None = None) -> None:
    """Our own layout, with the tokenizer's files and config.json along: it names the EOS ids, and
    the way back needs it.
    """
    orbax.save(folder, loaded.params, loaded.config, method=method, tokenizer_from=loaded.folder)
    if config_file.is_file():
        shutil.copyfile(config_file, folder / CONFIG)


def stored_dtype(source: Path) -> str:
    """The dtype of most of the checkpoint's bytes, as weights can be held in it."""
    if orbax.is_checkpoint(source):
        return orbax.read_description(source).dtype
    stored = weights.describe(source)["stored_bytes"]
    floats = [kind for kind in stored if kind in FLOATS]  # packed integers are kept as they are
    dtype = FLOATS[max(floats, key=stored.__getitem__)]
    return dtype.name if dtype.name in DTYPES else "bfloat16" if dtype.itemsize == 1 else "float32"
