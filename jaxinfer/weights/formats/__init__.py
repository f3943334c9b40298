"""Quantized checkpoints of other projects: a file for each format, behind one interface (`packed`).

Each has read(quantization_config) -> `Format`; those that are written too, write(settings) -> `Writer`.
"""

from collections.abc import Callable, Mapping

from jaxinfer.weights.formats import (
    awq,
    bitsandbytes,
    compressed_tensors,
    compressed_tensors_writer,
    fp8,
    gptq,
)
from jaxinfer.weights.formats.packed import Format, Packed, Rows, Tensors
from jaxinfer.weights.formats.settings import WHERE, mapping
from jaxinfer.weights.formats.writing import Settings, Writer

READERS: dict[str, Callable[[Mapping], Format]] = {
    "awq": awq.read,
    "gptq": gptq.read,
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "fbgemm_fp8": fp8.read_fbgemm,
    "bitsandbytes": bitsandbytes.read,
}
WRITERS: dict[str, Callable[[Settings], Writer]] = {
    "awq": awq.write,
    "gptq": gptq.write,
    "compressed-tensors": compressed_tensors_writer.write,
}

__all__ = ["READERS", "WRITERS", "Format", "Packed", "Rows", "Tensors", "Writer", "split"]


def split(hf: Mapping) -> tuple[dict, Format | None]:
    """config.json without what it says of quantization, and the format that it names, if any.

    ValueError: an unknown method, settings that are not supported.
    """
    plain = {key: value for key, value in hf.items() if key != WHERE}
    config = hf.get(WHERE)
    nested = hf.get("text_config")
    if isinstance(nested, Mapping) and WHERE in nested:
        plain["text_config"] = {key: value for key, value in nested.items() if key != WHERE}
        config = nested[WHERE] if config is None else config
    if config is None:
        return plain, None
    found = mapping(config, WHERE)
    older = any(found.get(key) is True for key in ("load_in_8bit", "load_in_4bit"))
    method = found.get("quant_method", "bitsandbytes" if older else None)
    if not isinstance(method, str) or method not in READERS:
        raise ValueError(
            f"{WHERE} needs quant_method to be one of {', '.join(READERS)}, got {method!r}; use a "
            "checkpoint in one of these formats, or the unquantized one with --quantize"
        )
    return plain, READERS[method](found)
