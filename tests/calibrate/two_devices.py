"""Run by test_calibrate_mesh.py in a process with two fake devices: calibrated on one, served by two.

Usage: python -m tests.calibrate.two_devices FOLDER
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer
from jaxinfer import sharding, weights
from jaxinfer.calibrate import calibrate
from jaxinfer.quantize import Recipe
from jaxinfer.weights import orbax
from tests.weights import checkpoints

RECIPES = {
    "awq": Recipe("awq", group=8, symmetric=False),
    "llm_int8": Recipe("llm_int8"),
}


def main(folder: Path) -> None:
    assert jax.device_count() == 2
    checkpoints.fresh(folder / "hf")
    rng = np.random.default_rng()
    ids = (259 * rng.uniform(size=600) ** 3).astype(int).tolist()
    tokens = jnp.asarray(ids[:40], jnp.int32)[None]
    mesh = sharding.make_mesh("model=2")
    for name, recipe in RECIPES.items():
        one = calibrate(folder / "hf", recipe, ids, window=50)
        orbax.save(folder / name, one.params, one.config, method=recipe.method)
        two = weights.load(folder / name, mesh=mesh)
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(two.params)} == {2}
        parts = two.params.layers[1].mlp.down.w.values.addressable_shards
        assert len({str(part.index) for part in parts}) == 2
        with jax.set_mesh(mesh):
            found = jax.jit(jaxinfer.logits, static_argnums=1)(two.params, two.config, tokens)
        expected = jaxinfer.logits(one.params, one.config, tokens)
        top = float(jnp.abs(expected).max())
        difference = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
        assert difference < 0.02 * top, (name, difference, top)
    print("two devices give what one does")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
