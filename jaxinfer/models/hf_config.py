"""Reading a Hugging Face `config.json`: typed settings, and groups of them that families share.

Two layouts exist and both are read: the older one (rope_theta beside rope_scaling, whose kind is
"type" or "rope_type") and that of transformers 5 (one rope_parameters). What a file leaves out is
what transformers assumes: a family passes its defaults through `with_defaults`. It knows nothing of
tensors.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.config import Activation, LayerConfig, Rope
from jaxinfer.models.family import require

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
SCALINGS = {
    "default": "none",
    "linear": "linear",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "llama3": "llama3",
    "longrope": "longrope",
    "su": "longrope",
}
LAYER_TYPES = ("full_attention", "sliding_attention")


def with_defaults(hf: Mapping, defaults: Mapping) -> dict[str, Any]:
    """`hf` with what it leaves out filled in."""
    return {**defaults, **hf}


def integer(hf: Mapping, key: str) -> int:
    """hf[key], a positive integer."""
    value = require(hf, key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"config.json needs {key} to be a positive integer, got {value!r}")
    return value


def whole_number(hf: Mapping, key: str) -> int:
    """hf[key], an integer that may be zero."""
    value = require(hf, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"config.json needs {key} to be an integer from 0, got {value!r}")
    return value


def number(hf: Mapping, key: str) -> float:
    """hf[key], a positive finite number."""
    value = require(hf, key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"config.json needs {key} to be a positive finite number, got {value!r}")
    return float(value)


def flag(hf: Mapping, key: str) -> bool:
    """hf[key], true or false."""
    value = require(hf, key)
    if not isinstance(value, bool):
        raise ValueError(f"config.json needs {key} to be true or false, got {value!r}")
    return value


def optional(read: Callable, hf: Mapping, key: str):
    """read(hf, key), or None where the key is absent or null."""
    return None if hf.get(key) is None else read(hf, key)


def only(hf: Mapping, key: str, *allowed) -> None:
    """ValueError where hf holds `key` with a value that is not `allowed`; null always is."""
    value = hf.get(key)
    if value is not None and value not in allowed:
        wanted = " or ".join(["absent", *map(repr, allowed)])
        raise ValueError(
            f"config.json of a {hf.get('model_type', '?')!r} model needs {key} to be {wanted}, got "
            f"{value!r}, which is not supported"
        )


def activation(hf: Mapping, key: str) -> Activation:
    """hf[key], the name of an activation, as `ModelConfig` spells it."""
    value = require(hf, key)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(
            f"config.json needs {key} to be one of {', '.join(ACTIVATIONS)}, got {value!r}"
        )
    return ACTIVATIONS[value]


def sizes(hf: Mapping) -> dict[str, Any]:
    """The fields of `ModelConfig` that all families but GPT-2 name alike."""
    only(hf, "quantization_config")
    d_model, heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    head_dim = optional(integer, hf, "head_dim")
    if head_dim is None:
        if d_model % heads:
            raise ValueError(
                "config.json without head_dim needs hidden_size to be a multiple of "
                f"num_attention_heads, got {d_model} and {heads}"
            )
        head_dim = d_model // heads
    return dict(
        vocab_size=integer(hf, "vocab_size"),
        d_model=d_model,
        d_ff=integer(hf, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=optional(integer, hf, "num_key_value_heads") or heads,
        head_dim=head_dim,
        max_position=integer(hf, "max_position_embeddings"),
        tied=flag(hf, "tie_word_embeddings"),
    )


def same_layers(
    hf: Mapping, rope: Rope | None, window: int | None = None
) -> tuple[LayerConfig, ...]:
    """num_hidden_layers times one layer; ValueError where layer_types says otherwise."""
    L = integer(hf, "num_hidden_layers")
    only(hf, "layer_types", ["full_attention" if window is None else "sliding_attention"] * L)
    return (LayerConfig(window=window, rope=rope),) * L


def mixed_layers(
    hf: Mapping, slides: Callable[[int], bool], ropes: Callable[[int, bool], Rope | None]
) -> tuple[LayerConfig, ...]:
    """The layers of a model of which some see a window: as layer_types says, else where slides(i).

    ropes(i, whether layer i slides) -> its rotary embedding.
    """
    L, types = integer(hf, "num_hidden_layers"), hf.get("layer_types")
    if types is None:
        types = ["sliding_attention" if slides(i) else "full_attention" for i in range(L)]
    if (
        not isinstance(types, (list, tuple))
        or len(types) != L
        or any(kind not in LAYER_TYPES for kind in types)
    ):
        raise ValueError(
            f"config.json needs layer_types to be a list of {L} (num_hidden_layers), each one of "
            f"{', '.join(LAYER_TYPES)}, got {types!r}"
        )
    sliding = [kind == "sliding_attention" for kind in types]
    window = integer(hf, "sliding_window") if any(sliding) else None
    return tuple(
        LayerConfig(window=window if slid else None, rope=ropes(i, slid))
        for i, slid in enumerate(sliding)
    )


def rope(hf: Mapping, head_dim: int, *, partial: bool = False) -> Rope:
    """The model's one rotary embedding. partial: whether the family rotates part of a head."""
    found = hf.get("rope_scaling") or hf.get("rope_parameters")
    parameters = {
        "rope_theta": hf.get("rope_theta", 10000.0),
        "partial_rotary_factor": hf.get("partial_rotary_factor"),
        **_mapping(found, "rope_scaling or rope_parameters"),
    }
    if not partial:
        only(parameters, "partial_rotary_factor", 1.0)
    return _rope_of(hf, parameters, head_dim)


def rope_by_layer_type(
    hf: Mapping, head_dim: int, thetas: Mapping[str, tuple[str, float]]
) -> dict[str, Rope]:
    """The rotary embedding of each layer type (Gemma 3).

    thetas: per layer type, the older layout's key and the default of its base. In the older layout
    rope_scaling concerns full attention alone.
    """
    nested = _mapping(hf.get("rope_parameters"), "rope_parameters")
    if nested and not any(kind in nested for kind in thetas):
        raise ValueError(
            f"config.json of a {hf.get('model_type', '?')!r} model needs rope_parameters by layer "
            f"type ({', '.join(thetas)}), got keys {', '.join(map(str, nested))}"
        )
    found = {}
    for kind, (key, default) in thetas.items():
        scaling = hf.get("rope_scaling") if kind == "full_attention" else None
        parameters = {
            "rope_theta": hf.get(key, default),
            **_mapping(nested.get(kind), f"rope_parameters[{kind!r}]"),
            **_mapping(scaling, "rope_scaling"),
        }
        only(parameters, "partial_rotary_factor", 1.0)
        found[kind] = _rope_of(hf, parameters, head_dim)
    return found


def _mapping(value, name: str) -> Mapping:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"config.json needs {name} to be an object or null, got {value!r}")
    return value


def _rope_of(hf: Mapping, parameters: Mapping, head_dim: int) -> Rope:
    """A `Rope` from one set of parameters; `hf` gives the lengths, which lie outside it."""
    by_type = [key for key in parameters if key in LAYER_TYPES]
    if by_type:
        raise ValueError(
            f"config.json of a {hf.get('model_type', '?')!r} model needs one rope for all layers, "
            f"got rope_parameters by layer type ({', '.join(by_type)})"
        )
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ValueError(
            f"config.json needs rope_type to be one of {', '.join(SCALINGS)}, got {kind!r}"
        )
    scaling = SCALINGS[kind]
    fraction = optional(number, parameters, "partial_rotary_factor") or 1.0
    maximum = integer(hf, "max_position_embeddings")
    original = (
        optional(integer, hf, "original_max_position_embeddings")
        or optional(integer, parameters, "original_max_position_embeddings")
        or maximum
    )
    shared: dict[str, Any] = dict(
        theta=number(parameters, "rope_theta"), rotary_dim=int(head_dim * fraction), scaling=scaling
    )
    match scaling:
        case "none":
            return Rope(**shared)
        case "linear":
            return Rope(**shared, factor=number(parameters, "factor"))
        case "dynamic":
            return Rope(
                **shared, factor=number(parameters, "factor"), original_max_position=maximum
            )
        case "llama3":
            keys = ("factor", "low_freq_factor", "high_freq_factor")
            factors: dict[str, Any] = {key: number(parameters, key) for key in keys}
            return Rope(**shared, original_max_position=original, **factors)
        case "yarn":
            return Rope(
                **shared, original_max_position=original, **_yarn(parameters, maximum / original)
            )
        case _:  # longrope
            return Rope(
                **shared, original_max_position=original, **_longrope(parameters, maximum, original)
            )


def _yarn(parameters: Mapping, ratio: float) -> dict[str, Any]:
    """YaRN (Peng et al. 2023); the attention factor is theirs, or a quotient of two mscales."""
    require(parameters, "factor")
    factor = optional(number, parameters, "factor") or ratio
    attention = optional(number, parameters, "attention_factor")
    if attention is None:
        mscale, all_dim = (parameters.get(key) or 0.0 for key in ("mscale", "mscale_all_dim"))
        both = bool(mscale and all_dim)
        attention = (
            _mscale(factor, mscale) / _mscale(factor, all_dim) if both else _mscale(factor, 1.0)
        )
    return dict(
        factor=factor,
        attention_factor=attention,
        beta_fast=optional(number, parameters, "beta_fast") or 32.0,
        beta_slow=optional(number, parameters, "beta_slow") or 1.0,
        truncate=flag({"truncate": True, **parameters}, "truncate"),
    )


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(parameters: Mapping, maximum: int, original: int) -> dict[str, Any]:
    """LongRoPE (Ding et al. 2024), with Phi-3's attention factor."""
    factor = optional(number, parameters, "factor") or maximum / original
    attention = optional(number, parameters, "attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    factors = {}
    for key in ("short_factor", "long_factor"):
        values = require(parameters, key)
        if not isinstance(values, (list, tuple)):
            raise ValueError(
                f"config.json needs {key} to be a list of positive numbers, got {values!r}"
            )
        factors[key] = tuple(number({key: value}, key) for value in values)
    return dict(attention_factor=attention, **factors)
