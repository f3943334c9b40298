"""Run by test_tpu_operations.py in its own process: compile the cache's operations for TPUs that this
machine does not have.

Usage: python -m tests.pallas_kernels.tpu_operations TOPOLOGY...; one line of JSON for each case.
"""

import json
import math
import re
import sys

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.ragged_attention import ragged_attention
from pallas_kernels.ring_write import ring_write

LLAMA_8B, LLAMA_70B = dict(N=32, K=8, H=128), dict(N=64, K=8, H=128)
DECODE = dict(B=64, T=64, max_count=1, slots=8192)
MIXED = dict(B=32, T=2048, max_count=2048, slots=8192, page_size=64)
NARROW_MIXED = dict(B=32, T=1024, max_count=1024, slots=8192, page_size=128, narrow="int8")
CASES = {
    "8B decode": LLAMA_8B | DECODE,
    "8B mixed": LLAMA_8B | MIXED,
    "70B decode": LLAMA_70B | DECODE,
    "70B mixed": LLAMA_70B | MIXED,
    "8B decode, int8": LLAMA_8B | DECODE | dict(narrow="int8"),
    "8B mixed, int8": LLAMA_8B | NARROW_MIXED,
    "8B decode, fp8": LLAMA_8B | DECODE | dict(narrow="uint8"),
}
ODD = {  # compiled for one chip only
    "heads of 64": DECODE | dict(N=14, K=2, H=64),
    "heads of 80": MIXED | dict(N=32, K=32, H=80, page_size=128),
    "heads of 96": MIXED | dict(N=32, K=8, H=96, page_size=256),
    "heads of 256": MIXED | dict(N=8, K=4, H=256, window=1024, softcap=50.0),
    "one head, float32": MIXED | dict(N=7, K=1, H=128, dtype="float32"),
    "stream": DECODE | dict(N=32, K=8, H=64, window=8000, sinks=4),
    "heads of 64, int8": DECODE | dict(N=14, K=2, H=64, narrow="int8"),
    "one head, int8": NARROW_MIXED | dict(N=8, K=1, H=128),
    "heads of 64, mixed, fp8": MIXED | dict(N=32, K=8, H=64, page_size=256, narrow="uint8"),
}


def copies_of(shape, text: str) -> list[str]:
    """Instructions of an optimized HLO that make an array of as many elements as `shape`, whatever
    its axes: a copy of the cache, a relayout, a scatter through another layout.
    """
    made = re.findall(r" = \(?\w+\[([\d,]+)\]\S* (?:\S+ )*?([a-z][\w-]*)\(", text)
    kept = ("parameter", "bitcast", "get-tuple-element", "custom-call", "tuple")
    size = math.prod(shape)
    return [
        f"{kind} [{dims}]"
        for dims, kind in made
        if kind not in kept and math.prod(map(int, dims.split(","))) == size
    ]


def kernels_in(text: str) -> dict[str, int]:
    """How often an optimized HLO calls each of our kernels."""
    return {
        name: len(re.findall(rf"%{name}\S* = .* custom-call\(.*tpu_custom_call", text))
        for name in ("ragged_attention", "ring_write")
    }


def report(place, *, B, T, N, K, H, max_count, slots, page_size=None, **rules) -> dict:
    dtype = rules.pop("dtype", "bfloat16")
    kept = rules.pop("narrow", dtype)
    sinks = rules.get("sinks", 0)

    def array(*shape, dtype="int32"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    slots_of = (B, K, slots) if page_size is None else (B * slots // page_size, K, page_size)
    pages = [array(*slots_of, H, dtype=kept)] * 2
    scaled = kept != dtype
    pages += [array(*slots_of, dtype="float32")] * 2 * scaled
    table = None if page_size is None else array(B, slots // page_size)
    q = array(T, N, H, dtype=dtype)
    new = [array(T, K, H, dtype=kept)] * 2 + [array(T, K, dtype="float32")] * 2 * scaled
    row = array(B)

    def operations(pages, q, q_far, new, *places):
        shape = dict(capacity=slots, max_count=max_count)
        pages = ring_write(pages, new, *places, sinks=sinks, **shape)
        shape |= dict(span=slots, packed=page_size is not None, scale=H**-0.5)
        k_pages, v_pages, *scales = pages
        scales = dict(zip(("k_scale", "v_scale"), scales, strict=False))
        given = dict(q_far=q_far, **shape, **rules, **scales)
        return ragged_attention(q, k_pages, v_pages, *places, **given), pages

    inputs = (pages, q, q if sinks else None, new, table, row, row, row)
    compiled = jax.jit(operations, donate_argnums=0).lower(*inputs).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return {
        "pages": sum(math.prod(x.shape) * x.dtype.itemsize for x in pages),
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "kernels": kernels_in(text),
        "copies": [copy for x in pages[::2] for copy in copies_of(x.shape, text)],
    }


def main(names):
    for index, topology in enumerate(names):
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        mesh = Mesh(np.asarray(devices[:1]), ("chip",))
        place = NamedSharding(mesh, PartitionSpec())
        with jax.set_mesh(mesh):
            for name, case in (CASES if index else CASES | ODD).items():
                found = report(place, **case)
                print(json.dumps({"topology": topology, "case": name, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
