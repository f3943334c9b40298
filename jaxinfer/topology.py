"""A model's programs compiled for TPUs that this machine does not have.

libtpu compiles without a device, given settings that have to stand before JAX starts: so `compile_for`
runs this module as a process of its own (`python -m jaxinfer.topology`), which reads a request from
stdin and writes one JSON line a program. What comes back is the compiler's own word on memory and on
collectives. It knows nothing of time: a compiler's cost estimate is none.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxinfer import quantize, sharding
from jaxinfer.config import ModelConfig
from jaxinfer.generate import decode, new_cache, prefill
from jaxinfer.models import decoder
from jaxinfer.weights import description, placement

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
PROGRAMS = ("decode", "prefill")
ROUNDED = ("int8", "w8a8")  # one int8 matrix and a scale for each of its rows
SETTINGS = {  # libtpu asks nobody what machine this is, and shares itself with other processes
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
MEGACORE = ("v4", "v5p")  # whose two cores are one device
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
DEEP = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
# by number of chips, where only that is said
SHAPES = {"v5e": FLAT, "v6e": FLAT, "v4": DEEP, "v5p": DEEP, "tpu7x": DEEP}


@dataclass(frozen=True)
class Request:
    """chip and shape: "v5e" and "2x4". data, model: the mesh, over all devices. batch sequences of
    context positions, all copies of the model together; chunk: prompt tokens that prefill writes for
    one sequence of each copy.
    """

    chip: str
    shape: str
    config: ModelConfig
    data: int
    model: int
    batch: int
    context: int
    chunk: int
    quantize: str | None = None
    kv_dtype: str = "bfloat16"


@dataclass(frozen=True)
class Compiled:
    """Bytes on one device. arguments: weights and cache; aliased: what is updated in place.
    collectives: how many of each kind (empty where the program could not be printed). error: the
    compiler's, where it refused.
    """

    program: str
    seconds: float
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    collectives: dict[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries


def shape_of(chip: str, count: int, shape: str = "") -> str:
    """The shape to compile for; ValueError where the chip is no TPU or the number has no usual one."""
    if chip not in SHAPES:
        raise ValueError(f"compiling ahead of time needs a TPU ({', '.join(SHAPES)}), got {chip}")
    if "x" in shape:
        return shape
    if count not in SHAPES[chip]:
        wanted = ", ".join(f"{chip}:{shape}" for shape in SHAPES[chip].values())
        raise ValueError(
            f"compiling needs the shape of {count} {chip} chips; write it out, like one of {wanted}"
        )
    return SHAPES[chip][count]


def check() -> None:
    """ValueError where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "--compile needs libtpu, TPU's compiler, which is not installed; on Linux x86-64, "
            "pip install libtpu (no TPU is needed)"
        )


def compile_for(request: Request) -> Iterator[Compiled]:
    """Compile decode, then prefill, in a process of its own. RuntimeError: it ended early."""
    check()
    with (
        tempfile.TemporaryFile("w+") as asked,
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [sys.executable, "-m", "jaxinfer.topology"],
            env={**os.environ, **SETTINGS, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=_filled(asked, json.dumps(description.to_json(request))),
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield Compiled(**json.loads(line))
            if process.wait():
                said.seek(0)
                lines = said.read().strip().splitlines()
                raise RuntimeError(f"compiling failed: {lines[-1] if lines else 'no message'}")
        finally:
            process.kill()


def _filled(file, text: str):
    file.write(text)
    file.seek(0)
    return file


def programs(request: Request) -> Iterator[Compiled]:
    """Compile them in this process, which has SETTINGS."""
    options = {"chip_config_name": "megacore"} if request.chip in MEGACORE else {}
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{request.chip}:{request.shape}", **options
    ).devices
    axes = {"data": request.data, "model": request.model}
    mesh = sharding.make_mesh(axes, devices=devices)
    config, B = request.config, request.batch
    with jax.set_mesh(mesh):
        params = _params(config, request.model, request.quantize, mesh)
        place = functools.partial(_array, mesh=mesh)
        rows, one = place((B,), jnp.int32, "B"), place((request.data,), jnp.int32, "B")
        prompt = place((request.data, request.chunk), jnp.int32, "B.")
        cases = {
            "decode": (decode, (rows, _cache(request, params, B, mesh))),
            "prefill": (prefill, (prompt, one, _cache(request, params, request.data, mesh))),
        }
        for name in PROGRAMS:
            function, inputs = cases[name]
            jitted = jax.jit(function, static_argnums=1, donate_argnums=1 + len(inputs))
            yield _compile(name, jitted, params, config, inputs)


def _compile(name, jitted, params, config, inputs) -> Compiled:
    start = time.monotonic()
    try:
        compiled = jitted.lower(params, config, *inputs).compile()
    except jax.errors.JaxRuntimeError as error:
        return Compiled(name, time.monotonic() - start, error=str(error).splitlines()[0])
    seconds, memory = time.monotonic() - start, compiled.memory_analysis()
    return Compiled(
        name,
        seconds,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        _collectives(compiled),
    )


def _collectives(compiled) -> dict[str, int]:
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # an older jaxlib cannot read all that a newer libtpu writes
        return {}
    return {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES}


def _array(shape, dtype, letters, mesh) -> Any:  # stands in an array's place
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.place(letters, mesh))


def _params(config, shards, method, mesh):
    """Parameters in bfloat16, or rounded, as shapes in their places."""
    recipe = quantize.find(method)

    def build(leaf):
        if recipe is None or not leaf.quantizable:
            return _array(leaf.shape, jnp.bfloat16, leaf.letters, mesh)
        form = placement.form_of(leaf, recipe, mesh)
        return placement.build(form, leaf, lambda _, p: _array(p.shape, p.dtype, p.letters, mesh))

    return jax.tree.map(build, decoder.layout(config, shards), is_leaf=decoder.is_leaf)


def _cache(request, params, batch, mesh):
    cache = jax.eval_shape(
        lambda p: new_cache(
            p,
            request.config,
            batch,
            request.context,
            max_chunk=request.chunk,
            dtype=request.kv_dtype,
        ),
        params,
    )
    return cache.replace(
        layers=jax.tree.map(
            lambda x: _array(x.shape, x.dtype, "BK.."[: x.ndim], mesh), cache.layers
        ),
        lengths=_array((batch,), jnp.int32, "B", mesh),
    )


def main() -> int:
    request = description.from_json(Request, json.load(sys.stdin), "request")
    with contextlib.redirect_stdout(sys.stderr):
        for compiled in programs(request):
            print(json.dumps(description.to_json(compiled)), file=sys.__stdout__, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
