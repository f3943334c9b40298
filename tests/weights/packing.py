"""Fresh random weights packed as other projects pack them: slow, one number after the other, written from
the formats' published descriptions.
"""

import json

import ml_dtypes
import numpy as np

from jaxinfer.models import registry
from tests.weights import checkpoints

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
GROUP = 16


def bits_into_words(numbers, bits: int) -> np.ndarray:
    """Each row's numbers one after the other in int32 words, from the lowest bit up."""
    rows, count = numbers.shape
    words = [[0] * -(-count * bits // 32) for _ in range(rows)]
    for r in range(rows):
        for i in range(count):
            words[r][i * bits // 32] |= int(numbers[r, i]) << (i * bits % 32)
    return np.asarray(words, np.uint32).view(np.int32)


def awq_words(numbers) -> np.ndarray:
    """Each row's nibbles eight to a word, in the order 0 2 4 6 1 3 5 7."""
    order = np.asarray([[8 * w + k for k in (0, 2, 4, 6, 1, 3, 5, 7)] for w in range(10**4)])
    return bits_into_words(numbers[:, order[: numbers.shape[1] // 8].reshape(-1)], 4)


def scales(rng, shape, dtype=np.float16) -> np.ndarray:
    return (rng.uniform(0.5, 2.0, shape) / 64).astype(dtype)


def gptq(
    rng,
    stem,
    shape,
    *,
    bits=4,
    group=GROUP,
    symmetric=False,
    index=None,
    version="gptq",
    dtype=np.float16,
):
    """(tensors, the weight) of one linear map."""
    out, columns = shape
    group = columns if group == -1 else group
    groups, middle = columns // group, 1 << (bits - 1)
    numbers = rng.integers(0, 1 << bits, shape)
    scale = scales(rng, (groups, out), dtype) * np.asarray(2.0 ** (4 - bits), dtype)
    zero = rng.integers(0, 1 << bits, (groups, out))
    zero = np.full_like(zero, middle) if symmetric else zero
    index = np.arange(columns) // group if index is None else index
    stored = (zero - (version == "gptq")) % (1 << bits)
    tensors = {
        f"{stem}.qweight": np.ascontiguousarray(bits_into_words(numbers.T.T, bits).T),
        f"{stem}.qzeros": bits_into_words(stored, bits),
        f"{stem}.scales": scale,
        f"{stem}.g_idx": index.astype(np.int32),
    }
    weight = (numbers - zero[index].T).astype(np.float32) * scale[index].T.astype(np.float32)
    return tensors, weight


def awq(rng, stem, shape, group=GROUP, dtype=np.float16):
    """(tensors, the weight) of one linear map."""
    out, columns = shape
    numbers, groups = rng.integers(0, 16, (columns, out)), columns // group
    zero, scale = rng.integers(0, 16, (groups, out)), scales(rng, (groups, out), dtype)
    tensors = {
        f"{stem}.qweight": awq_words(numbers),
        f"{stem}.qzeros": awq_words(zero),
        f"{stem}.scales": scale,
    }
    index = np.arange(columns) // group
    weight = (numbers - zero[index]).astype(np.float32) * scale[index].astype(np.float32)
    return tensors, np.ascontiguousarray(weight.T)


def fp8(rng, stem, shape, block=(16, 16), name="weight_scale_inv"):
    """(tensors, the weight) of one linear map; block None: one scale."""
    out, columns = shape
    values = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    if block is None:
        scale = scales(rng, (), np.float32) * np.float32(4)
        wide = np.broadcast_to(scale, shape)
    else:
        scale = scales(
            rng, (-(-out // block[0]), -(-columns // block[1])), np.float32
        ) * np.float32(4)
        wide = scale[np.arange(out)[:, None] // block[0], np.arange(columns)[None] // block[1]]
    tensors = {f"{stem}.weight": values, f"{stem}.{name}": np.asarray(scale)}
    return tensors, values.astype(np.float32) * wide


def int8(rng, stem, shape):
    """bitsandbytes' LLM.int8(): (tensors, the weight)."""
    values = rng.integers(-127, 128, shape).astype(np.int8)
    top = rng.uniform(0.2, 0.6, shape[0]).astype(np.float32)
    tensors = {
        f"{stem}.weight": values,
        f"{stem}.SCB": top,
        f"{stem}.weight_format": np.asarray(0, np.uint8),
    }
    return tensors, values.astype(np.float32) * (top / np.float32(127))[:, None]


def four_bit(rng, stem, shape, *, double=True, block=32, kind="nf4"):
    """bitsandbytes' nf4 or fp4, with levels of any value: (tensors, the weight)."""
    count = shape[0] * shape[1]
    levels = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    codes = rng.integers(0, 16, count)
    packed = np.asarray([codes[i] << 4 | codes[i + 1] for i in range(0, count, 2)], np.uint8)
    state = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": list(shape)}
    name, blocks = f"{stem}.weight", -(-count // block)
    tensors = {name: packed[:, None], f"{name}.quant_map": levels}
    if double:
        each, fine = 256, np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        coarse = rng.uniform(0.05, 0.1, -(-blocks // each)).astype(np.float32)
        octets = rng.integers(0, 256, blocks).astype(np.uint8)
        absmax = fine[octets] * coarse[np.arange(blocks) // each] + np.float32(0.25)
        state |= {"nested_blocksize": each, "nested_dtype": "float32", "nested_offset": 0.25}
        tensors |= {
            f"{name}.absmax": octets,
            f"{name}.nested_absmax": coarse,
            f"{name}.nested_quant_map": fine,
        }
    else:
        absmax = rng.uniform(0.2, 0.6, blocks).astype(np.float32)
        tensors[f"{name}.absmax"] = absmax
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors[f"{name}.quant_state.bitsandbytes__{kind}"] = text
    return tensors, (levels[codes] * absmax[np.arange(count) // block]).reshape(shape)


def fresh(folder, config: dict, pack, *, plain=np.float16, shards=1, hf=checkpoints.LLAMA):
    """Write a checkpoint whose linear maps are packed: pack(rng, stem, shape) -> (tensors, weight).

    Returns the model's config and its canonical tensors, float32.
    """
    rng = np.random.default_rng()
    family = registry.family_of(hf)
    model = family.read(hf)
    canonical = checkpoints.random_tensors(model, plain)
    files = checkpoints.file_tensors(family, model, canonical)
    weights = {}
    for name, value in list(files.items()):
        if name.endswith("_proj.weight"):
            del files[name]
            tensors, weights[name] = pack(rng, name.removesuffix(".weight"), value.shape)
            files |= tensors
    checkpoints.write(folder, {**hf, "quantization_config": config}, files, shards)
    for ours, source in family.tensors(model).items():
        if source.name in weights:
            rows = canonical[ours].shape[0]
            canonical[ours] = weights[source.name][source.first : source.first + rows]
    return model, {name: value.astype(np.float32) for name, value in canonical.items()}
