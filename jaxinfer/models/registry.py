"""Every model family, found by the architecture that a `config.json` names."""

from collections.abc import Mapping

from jaxinfer.models.family import Family
from jaxinfer.models.gemma import GEMMA
from jaxinfer.models.gemma2 import GEMMA2
from jaxinfer.models.gemma3 import GEMMA3
from jaxinfer.models.gpt2 import GPT2
from jaxinfer.models.granite import GRANITE
from jaxinfer.models.llama import LLAMA
from jaxinfer.models.mistral import MISTRAL
from jaxinfer.models.olmo2 import OLMO2
from jaxinfer.models.phi3 import PHI3
from jaxinfer.models.qwen2 import QWEN2
from jaxinfer.models.qwen3 import QWEN3
from jaxinfer.models.smollm3 import SMOLLM3
from jaxinfer.models.starcoder2 import STARCODER2

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    SMOLLM3,
    GRANITE,
    STARCODER2,
    GPT2,
)


def supported() -> str:
    """The supported architectures, for messages."""
    return ", ".join(name for family in FAMILIES for name in family.architectures)


def family_of(hf: Mapping) -> Family:
    """The family of a parsed config.json, by the first of its architectures.

    ValueError where none is named or supported.
    """
    names = hf.get("architectures")
    if not isinstance(names, (list, tuple)) or not names or not isinstance(names[0], str):
        raise ValueError(
            f"config.json needs architectures, a list that names one of {supported()}; "
            f"got {names!r}"
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
