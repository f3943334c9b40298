"""Writing a checkpoint folder so that it appears whole or not at all, and the small files that
travel with weights.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxinfer.weights.safetensors_file import CheckpointError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it becomes `folder` at the end, and vanishes if anything
    fails.

    CheckpointError where `folder` already holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder}: needs a folder that is new or empty, got one with files; choose another "
            "name"
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's and the generation defaults' files that `source` has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
