"""What a family file supplies: how to read its `config.json`, and where its tensors lie in a
checkpoint.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxinfer.config import ModelConfig


@dataclass(frozen=True)
class Source:
    """Where a canonical tensor `[out, in]` (or `[n]`) lies: rows first .. of the file's tensor
    `name`.

    transposed: the file holds `[in, out]` (GPT-2), rows counted along its second axis. rows: how
    many rows the file's tensor has in all (None: as many as the canonical one), for fused tensors.
    """

    name: str
    first: int = 0
    rows: int | None = None
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """architectures: the names in `config.json`. read: the parsed file -> ModelConfig. tensors:
    canonical -> Source.

    ignored: file tensors that may be present and are not parameters (suffixes). foreign: those of
    other modalities than text, which are not read (prefixes).
    """

    name: str
    architectures: tuple[str, ...]
    read: Callable[[Mapping], ModelConfig]
    tensors: Callable[[ModelConfig], dict[str, Source]]
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    foreign: tuple[str, ...] = ()

    def ignores(self, name: str) -> bool:
        """Whether a file tensor that is no parameter may be there."""
        return name.endswith(self.ignored) or (bool(self.foreign) and name.startswith(self.foreign))


def require(hf: Mapping, key: str):
    """hf[key], or a ValueError that names what is missing."""
    if key not in hf:
        raise ValueError(
            f"config.json of a {hf.get('model_type', '?')!r} model needs {key!r}, got keys {sorted(hf)}"
        )
    return hf[key]
