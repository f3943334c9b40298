"""Where the models that ship with the project lie: beside the source tree, or where pip put them."""

import sysconfig
from pathlib import Path

TARGET = "pico-20m"  # the model that commands use when none is named
DRAFT = "pico-2m-draft"  # a tenth of it, distilled from it, with the same tokenizer


def folder(name: str) -> Path:
    """The folder of a shipped checkpoint. FileNotFoundError names the places that were searched."""
    roots = [
        Path(__file__).parents[1] / "checkpoints",
        Path(sysconfig.get_path("data"), "share/jaxinfer/checkpoints"),
    ]
    for root in roots:
        if (root / name / "config.json").exists():
            return root / name
    raise FileNotFoundError(
        f"the shipped checkpoint {name!r} needs to lie in one of {', '.join(map(str, roots))}, and does not; "
        "install again from a full clone, or name another model"
    )


def target() -> Path:
    """The shipped model."""
    return folder(TARGET)


def draft() -> Path:
    """The shipped draft model."""
    return folder(DRAFT)
