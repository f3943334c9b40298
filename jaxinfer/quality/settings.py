"""One side of a comparison: which model, held how. A new way to run a model is a new field of
`Setting`, and its place in `load`.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import jax
from jax.sharding import Mesh

from jaxinfer import quantize
from jaxinfer.cache import kv_dtype_of, vector_bytes
from jaxinfer.generate import cache_dtype
from jaxinfer.model import Model
from jaxinfer.model import load as load_model
from jaxinfer.weights.loaded import check_dtype
from pallas_kernels.backend import kernels_allowed


@dataclass(frozen=True)
class Setting:
    """model: a folder or hub id, None: the shipped one. dtype, quantize, kv_dtype: as `jaxinfer.load`
    takes them. kernels: "off" for plain XLA in the place of kernels and of the forms that suit a
    device.
    """

    model: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    kv_dtype: str | None = None
    kernels: str | None = None

    def __post_init__(self):
        check_dtype(self.dtype)
        if self.kv_dtype is not None:
            kv_dtype_of(self.kv_dtype)
        if self.kernels not in (None, "on", "off"):
            raise ValueError(f"kernels needs on or off, got {self.kernels!r}")
        quantize.check_method(self.quantize)

    @classmethod
    def parse(cls, text: str, model: str | None = None) -> "Setting":
        """Read "key=value,key=value"; what it does not say is the default, with `model` in place of
        the shipped model. ValueError names a key or value that cannot be.
        """
        keys = [field.name for field in dataclasses.fields(cls)]
        given: dict[str, str | None] = {"model": model}
        seen = set()
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals or not value or key not in keys:
                raise ValueError(
                    f"a setting needs {', '.join(f'{k}=...' for k in keys)} with commas between, "
                    f"got {part!r}"
                )
            if key in seen:
                raise ValueError(f"a setting needs each key once, got {key!r} twice in {text!r}")
            seen.add(key)
            given[key] = value
        return cls(**given)

    def __str__(self):
        said = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return ",".join(f"{k}={v}" for k, v in said.items()) or "as loaded"


@dataclass(frozen=True)
class Side:
    """A setting and its model, loaded. decode_s: seconds of one decoding step of one sequence, where
    it was measured.
    """

    setting: Setting
    model: Model
    decode_s: float | None = None

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """What the setting and the model's mesh say of programs, for those that run inside."""
        with contextlib.ExitStack() as stack:
            if self.setting.kernels is not None:
                stack.enter_context(kernels_allowed(self.setting.kernels == "on"))
            if self.model.mesh is not None:
                stack.enter_context(jax.set_mesh(self.model.mesh))
            yield

    @property
    def weight_bytes(self) -> int:
        """What the parameters take on the device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.model.params))

    @property
    def kv_bytes_per_token(self) -> int:
        """What one position costs in the caches of all layers."""
        config = self.model.config
        vector = vector_bytes(
            config.head_dim, self.model.kv_dtype or cache_dtype(self.model.params)
        )
        return 2 * len(config.layers) * config.num_kv_heads * vector


def load(setting: Setting, *, mesh: Mesh | str | None = None, progress: bool = True) -> Side:
    """A model on the device."""
    return Side(setting, _model(setting, mesh, progress))


def load_beside(
    reference: Side, candidate: Setting, *, mesh: Mesh | str | None = None, progress: bool = True
) -> Side:
    """A second model on the device; one of equal settings is the first, and one that differs in
    kernels alone shares its parameters.

    ValueError unless they read text alike: the same vocabulary and the same tokenizer.
    """
    if candidate == reference.setting:
        return reference
    if dataclasses.replace(candidate, kernels=reference.setting.kernels) == reference.setting:
        model = reference.model
        return Side(candidate, Model(model.params, model.config, model.tokenizer, mesh=model.mesh))
    second = load(candidate, mesh=mesh, progress=progress)
    check_alike(reference, second)
    return second


def _model(setting: Setting, mesh, progress: bool) -> Model:
    method = cast("quantize.Method | None", setting.quantize)
    return load_model(
        setting.model,
        dtype=setting.dtype,
        quantize=method,
        kv_dtype=setting.kv_dtype,
        mesh=mesh,
        progress=progress,
    )


def check_alike(first: Side, second: Side) -> None:
    """ValueError unless the two models read text alike."""
    sizes = first.model.config.vocab_size, second.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"a comparison needs two models of one vocabulary, got {sizes[0]} and {sizes[1]} tokens "
            f"({first.setting} and {second.setting})"
        )
    words = [
        None if side.model.tokenizer is None else side.model.tokenizer.backend.get_vocab()
        for side in (first, second)
    ]
    if words[0] != words[1]:
        raise ValueError(
            "a comparison needs two models of one tokenizer, got different ones "
            f"({first.setting} and {second.setting})"
        )
