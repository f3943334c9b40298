"""Weights as compressed-tensors has them (`compressed_tensors` says how): int4, and int8 that meets
activations as they are, by "pack-quantized"; int8 that meets int8 by "int-quantized"; 8-bit floats by
"float-quantized".

Packed zero points are read by its decompressors; transformers 5.23 with compressed-tensors 0.20 refuses
their shape while loading.
"""

import numpy as np

from jaxinfer.weights.formats import words
from jaxinfer.weights.formats.writing import (
    Described,
    Held,
    Settings,
    Writer,
    check_shape,
    require,
)
from jaxinfer.weights.safetensors_file import FLOATS

DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def write(settings: Settings) -> Writer:
    """Tensors of compressed-tensors."""
    name = "compressed-tensors"
    require(settings, name, ("int4", "int8", "fp8"))
    floats, bits = settings.kind == "fp8", 4 if settings.kind == "int4" else 8
    if floats and settings.group is not None:
        raise ValueError(f"{name} is written with a scale a row for fp8, got groups; use Orbax")
    packs = settings.kind == "int4" or (settings.kind == "int8" and settings.method != "w8a8")
    layout = "float-quantized" if floats else "pack-quantized" if packs else "int-quantized"

    def tensors(stem: str, shape: tuple[int, int]) -> Described:
        out, columns = shape
        groups, word = columns // (settings.group or columns), np.dtype(np.int32)
        found: Described = {f"{stem}.weight_scale": ((out, groups), settings.scale)}
        if not packs:
            kind = np.dtype(FLOATS["F8_E4M3"] if floats else np.int8)
            return found | {f"{stem}.weight": (shape, kind)}
        check_shape(name, stem, shape, 32 // bits)
        if settings.zero:
            found[f"{stem}.weight_zero_point"] = ((out * bits // 32, groups), word)
        return found | {
            f"{stem}.weight_packed": ((out, columns * bits // 32), word),
            f"{stem}.weight_shape": ((2,), np.dtype(np.int64)),
        }

    def arrays(stem: str, held: Held) -> dict[str, np.ndarray]:
        held = settings.regroup(held)
        found = {f"{stem}.weight_scale": held.scale}
        if not packs:
            return found | {f"{stem}.weight": held.values}
        values = held.values if bits == 4 else held.values.view(np.uint8) ^ 128
        if held.zero is not None:
            points = held.zero.astype(np.int32) + (0 if bits == 4 else 128)
            packed = words.pack(points.T.astype(np.uint8), bits).T
            found[f"{stem}.weight_zero_point"] = packed
        return found | {
            f"{stem}.weight_packed": words.pack(values, bits),
            f"{stem}.weight_shape": np.asarray(held.values.shape, np.int64),
        }

    return Writer(_config(settings, layout, bits, floats), tensors, arrays)


def _config(settings: Settings, layout: str, bits: int, floats: bool) -> dict:
    weights = {
        "num_bits": bits,
        "type": "float" if floats else "int",
        "symmetric": not settings.zero,
        "strategy": "channel" if settings.group is None else "group",
        "group_size": settings.group,
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": DYNAMIC if settings.method == "w8a8" else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", *settings.plain],
        "kv_cache_scheme": None,
    }
