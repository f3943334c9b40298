"""Run by test_mesh.py in a process with eight fake devices: loading and restoring on meshes."""

import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxinfer import quantize, sharding, weights
from jaxinfer.models import decoder
from jaxinfer.weights import orbax, placement
from tests.weights import checkpoints, packing

MESHES = ("model=8", "data=2,model=4", "data=8", "data=4,model=2")
SIZES = {
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def check(params, config, canonical, mesh, recipe) -> None:
    """Every parameter has the values of the slow assembly, and lies where its letters say."""
    shards = sharding.model_shards(mesh)
    described = decoder.leaves(config, shards)
    values = jax.tree.leaves(params, is_leaf=decoder.is_leaf)
    wanted = jax.tree.leaves(decoder.assemble(config, canonical, shards))
    assert params.shards == shards
    for leaf, value, whole in zip(described, values, wanted, strict=True):
        parts = [(leaf.letters, value, whole)]
        if recipe is not None and leaf.quantizable:
            form = placement.form_of(leaf, recipe, mesh)
            assert value.method == form.method
            rounder = quantize.Rounder(recipe, form)
            if rounder.surveys:
                survey(rounder, leaf, canonical)
            if form.outliers:
                assert np.array_equal(rounder.columns, value.columns)
            rows = slowly(rounder, leaf, np.asarray(whole))
            letters = form.parts(whole.shape, leaf.letters)
            parts = [(getattr(letters, n).letters, getattr(value, n), x) for n, x in rows.items()]
        for letters, array, truth in parts:
            assert array.sharding.is_equivalent_to(sharding.place(letters, mesh), array.ndim), leaf
            assert array.dtype == truth.dtype, leaf
            assert np.array_equal(array, truth), leaf


def survey(rounder, leaf, canonical) -> None:
    for name in {piece.name for piece in leaf.pieces if piece.name is not None}:
        rounder.survey(name, 0, canonical[name])


def slowly(rounder, leaf, whole) -> dict[str, np.ndarray]:
    """Every row of a leaf rounded on its own."""
    rows, at = [], 0
    for piece in leaf.pieces:
        for row in range(piece.start, piece.stop):
            rows.append(rounder.round(piece.name, row, whole[at : at + 1]))
            at += 1
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


RECIPES = {
    "plain": None,
    "int8": quantize.Recipe("int8"),
    "int4": quantize.Recipe("int4", group=8, symmetric=False),
    "fp8": quantize.Recipe("fp8", shared="tensor"),
    "blocks": quantize.Recipe("fp8", shared="block", group=8),
    "llm_int8": quantize.Recipe("llm_int8"),
}
GROUP = quantize.Recipe("int4", group=32)  # more than an eighth of the feed-forward's columns


def refusals(folder, config) -> None:
    """Groups that a mesh would cut are refused, while loading and while restoring."""
    mesh = sharding.make_mesh(MESHES[0])
    orbax.save(folder / "groups", weights.load(folder / "hf", quantize=GROUP).params, config)
    for name, recipe in (("hf", GROUP), ("groups", None)):
        with pytest.raises(weights.CheckpointError, match="group"):
            weights.load(folder / name, mesh=mesh, quantize=recipe)


def packed(folder: Path):
    """Weights that others packed, cut over devices: groups are split, act-order columns become floats."""
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    fp8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    hf = checkpoints.LLAMA | {"intermediate_size": 128}

    def shuffled(rng, stem, shape):
        index = np.random.default_rng(shape[1]).permutation(np.arange(shape[1]) // 16)
        return packing.gptq(rng, stem, shape, index=index)

    for i, (described, pack) in enumerate(
        [(gptq, packing.gptq), (gptq, shuffled), (fp8, packing.fp8)]
    ):
        config, wanted = packing.fresh(folder / f"packed-{i}", described, pack, hf=hf)
        mesh = sharding.make_mesh({"model": 2})
        params = weights.load(folder / f"packed-{i}", mesh=mesh, dtype="float32").params
        held = params.layers[0].mlp.down.w
        assert isinstance(held, quantize.QTensor) == (pack is not shuffled)
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(params)} == {2}
        plain = jax.tree.map(quantize.dequantize, params, is_leaf=decoder.is_leaf)
        found = decoder.canonical(config, plain)
        for name, value in wanted.items():
            assert np.array_equal(found[name], value), name


def main(folder: Path) -> None:
    assert jax.device_count() == 8
    _, config, stored = checkpoints.fresh(folder / "hf", ml_dtypes.bfloat16, shards=2, **SIZES)
    canonical = {name: value.astype(np.float32) for name, value in stored.items()}
    for method, recipe in RECIPES.items():
        meshes = MESHES if method in ("plain", "int8") else MESHES[:2]
        one = weights.load(folder / "hf", quantize=recipe)
        name = f"one-{method}"
        orbax.save(folder / name, one.params, config)
        for axes in meshes:
            mesh = sharding.make_mesh(axes)
            loaded = weights.load(folder / "hf", mesh=mesh, quantize=recipe)
            check(loaded.params, config, canonical, mesh, recipe)
            restored = weights.load(folder / name, mesh=mesh)
            check(restored.params, config, canonical, mesh, recipe)
        mesh = sharding.make_mesh(MESHES[0])
        eight = weights.load(folder / "hf", mesh=mesh, quantize=recipe)
        name = f"eight-{method}"
        orbax.save(folder / name, eight.params, config)
        back = weights.load(folder / name)
        assert checkpoints.equal(back.params, one.params)
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(back.params)} == {1}
        for axes in meshes:
            mesh = sharding.make_mesh(axes)
            restored = weights.load(folder / name, mesh=mesh)
            check(restored.params, config, canonical, mesh, recipe)
    refusals(folder, config)
    mesh = sharding.make_mesh(MESHES[0])
    eight = weights.load(folder / "hf", mesh=mesh, dtype="bfloat16")
    hf, family, _ = weights.read_config(folder / "hf")
    weights.save(folder / "again", eight.params, config, family, hf)
    again = weights.load(folder / "again", dtype="bfloat16")
    assert checkpoints.equal(again.params, decoder.assemble(config, stored))
    packed(folder)
    print("every parameter is in place")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
