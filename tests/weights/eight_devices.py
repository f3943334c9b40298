"""Run by test_mesh.py in a process with eight fake devices: loading and restoring on meshes."""

import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from jaxinfer import quantize, sharding, weights
from jaxinfer.models import decoder
from jaxinfer.weights import orbax
from tests.weights import checkpoints

MESHES = ("model=8", "data=2,model=4", "data=8", "data=4,model=2")
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}


def check(params, config, canonical, mesh, method) -> None:
    """Every parameter has the values of the slow assembly, and lies where its letters say."""
    shards = sharding.model_shards(mesh)
    described = decoder.leaves(config, shards)
    values = jax.tree.leaves(params, is_leaf=decoder.is_leaf)
    wanted = jax.tree.leaves(decoder.assemble(config, canonical, shards))
    assert params.shards == shards
    for leaf, value, whole in zip(described, values, wanted, strict=True):
        parts = [(leaf.letters, value, whole)]
        if method is not None and leaf.quantizable:
            rounded, scale = quantize.round_rows(np.asarray(whole))
            assert value.method == method
            parts = [(leaf.letters, value.values, rounded), (leaf.letters[0], value.scale, scale)]
        for letters, array, truth in parts:
            assert array.sharding.is_equivalent_to(sharding.place(letters, mesh), array.ndim), leaf
            assert array.dtype == truth.dtype, leaf
            assert np.array_equal(array, truth), leaf


def main(folder: Path) -> None:
    assert jax.device_count() == 8
    _, config, stored = checkpoints.fresh(folder / "hf", ml_dtypes.bfloat16, shards=2, **SIZES)
    canonical = {name: value.astype(np.float32) for name, value in stored.items()}
    for method in (None, "int8"):
        one = weights.load(folder / "hf", quantize=method)
        name = f"one-{method}"
        orbax.save(folder / name, one.params, config)
        for axes in MESHES:
            mesh = sharding.make_mesh(axes)
            loaded = weights.load(folder / "hf", mesh=mesh, quantize=method)
            check(loaded.params, config, canonical, mesh, method)
            restored = weights.load(folder / name, mesh=mesh)
            check(restored.params, config, canonical, mesh, method)
        mesh = sharding.make_mesh(MESHES[0])
        eight = weights.load(folder / "hf", mesh=mesh, quantize=method)
        name = f"eight-{method}"
        orbax.save(folder / name, eight.params, config)
        back = weights.load(folder / name)
        assert checkpoints.equal(back.params, one.params)
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(back.params)} == {1}
        for axes in MESHES:
            mesh = sharding.make_mesh(axes)
            restored = weights.load(folder / name, mesh=mesh)
            check(restored.params, config, canonical, mesh, method)
    mesh = sharding.make_mesh(MESHES[0])
    eight = weights.load(folder / "hf", mesh=mesh, dtype="bfloat16")
    hf, family, _ = weights.read_config(folder / "hf")
    weights.save(folder / "again", eight.params, config, family, hf)
    again = weights.load(folder / "again", dtype="bfloat16")
    assert checkpoints.equal(again.params, decoder.assemble(config, stored))
    print("every parameter is in place")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
