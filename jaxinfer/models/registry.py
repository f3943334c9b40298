"""Every model family, found by the architecture that a `config.json` names."""

from collections.abc import Mapping

from jaxinfer.models.family import Family
from jaxinfer.models.llama import LLAMA

FAMILIES: tuple[Family, ...] = (LLAMA,)


def supported() -> str:
    """The supported architectures, for messages."""
    return ", ".join(name for family in FAMILIES for name in family.architectures)


def family_of(hf: Mapping) -> Family:
    """The family of a parsed config.json, by the first of its `architectures`; ValueError where there is none."""
    names = hf.get("architectures")
    if not isinstance(names, (list, tuple)) or not names or not isinstance(names[0], str):
        raise ValueError(
            f"config.json needs architectures, a list that names one of {supported()}; got {names!r}"
        )
    for family in FAMILIES:
        if names[0] in family.architectures:
            return family
    raise ValueError(f"architecture {names[0]!r} is not supported; supported are {supported()}")


def by_name(name: str) -> Family:
    """The family called `name`, as `ModelConfig.family` has it; ValueError where there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(
        f"family needs to be one of {', '.join(family.name for family in FAMILIES)}, got {name!r}"
    )
