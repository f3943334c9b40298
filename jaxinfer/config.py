"""What a model is: small, frozen, hashable descriptions that serve as static jit arguments.

A `ModelConfig` says which layers there are and how each is built; it knows nothing of files, arrays
or devices. Family files in `jaxinfer.models` make one from a Hugging Face `config.json`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
RopeScaling = Literal["none", "linear", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, section 3.4) of one layer and its length
    extension.

    rotary_dim: how many leading dimensions of a head rotate (even; less than head_dim is "partial
    rotary").
    original_max_position: the context of pre-training, which yarn, llama3, longrope and dynamic
    scale from.
    """

    theta: float = 10000.0
    rotary_dim: int = 64
    scaling: RopeScaling = "none"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self):
        if self.rotary_dim <= 0 or self.rotary_dim % 2:
            raise ValueError(f"rope needs a positive even rotary_dim, got {self.rotary_dim=}")
        if self.scaling == "longrope":
            half = self.rotary_dim // 2
            if len(self.short_factor) != half or len(self.long_factor) != half:
                raise ValueError(
                    f"longrope needs {half} short and long factors (rotary_dim / 2), got "
                    f"{len(self.short_factor)} and {len(self.long_factor)}"
                )
        extended = self.scaling in ("dynamic", "yarn", "llama3", "longrope")
        if extended and self.original_max_position <= 0:
            raise ValueError(
                f"rope scaling {self.scaling!r} needs original_max_position > 0, got "
                f"{self.original_max_position=}"
            )


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One layer: how it mixes positions and what follows.

    window: how many latest positions a query sees, itself included (None: all).
    rope: None means no rotation (NoPE, or learned positions).
    mixer, mlp: the kind of each half; a list of mixed kinds is the normal case.
    """

    mixer: Literal["attention"] = "attention"
    mlp: Literal["dense"] = "dense"
    window: int | None = None
    rope: Rope | None = None

    def __post_init__(self):
        if self.window is not None and self.window <= 0:
            raise ValueError(f"window needs to be positive or None, got {self.window=}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer. Sizes in elements; every scale is a plain multiplier.

    norm_style: "pre" (Llama), "post" (OLMo 2: the norm follows the sublayer, before the residual is
    added) or
      "sandwich" (Gemma 2 and 3: both).
    norm_offset: added to a norm's scale (1.0 for Gemma, whose files hold scale - 1).
    qk_norm: "head" normalizes each head's q and k (Qwen 3), "full" all heads together (OLMo 2).
    """

    family: str
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    max_position: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    norm_style: Literal["pre", "post", "sandwich"] = "pre"
    qk_norm: Literal["none", "head", "full"] = "none"
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    learned_positions: int = 0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    logits_scale: float = 1.0
    attention_softcap: float | None = None
    final_softcap: float | None = None

    def __post_init__(self):
        sizes = (
            "vocab_size",
            "d_model",
            "d_ff",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position",
        )
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or value <= 0:
                raise ValueError(f"{name} needs a positive integer, got {value!r}")
        if not self.layers:
            raise ValueError("a model needs at least one layer, got layers=()")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads needs to be a multiple of num_kv_heads, got {self.num_heads=} and "
                f"{self.num_kv_heads=}"
            )

    @property
    def scale(self) -> float:
        """The multiplier of q . k (1 / sqrt(head_dim) unless the family says otherwise)."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def replace(self, **changes) -> "ModelConfig":
        """A copy with the given fields changed, validated again."""
        return dataclasses.replace(self, **changes)
