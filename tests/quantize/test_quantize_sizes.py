"""What an 8B model takes in few bits, from its shapes alone."""

import jax
import jax.numpy as jnp
import pytest

from jaxinfer.generate import logits
from jaxinfer.models import decoder, presets
from jaxinfer.quantize import Recipe

LLAMA = presets.find("llama-3.1-8b")


def shapes(recipe) -> decoder.Params:
    """Parameters without values, as a load makes them."""

    def array(part):
        return jax.ShapeDtypeStruct(part.shape, part.dtype)

    def build(leaf):
        if not leaf.quantizable:
            return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
        form = recipe.form(leaf.shape[1], head=leaf.head)
        return jax.tree.map(array, form.parts(leaf.shape, leaf.letters))

    return jax.tree.map(build, decoder.layout(LLAMA), is_leaf=decoder.is_leaf)


@pytest.mark.parametrize(
    ("recipe", "least", "most"),
    [
        (Recipe("int8"), 8.0e9, 8.2e9),
        (Recipe("fp8"), 8.0e9, 8.2e9),
        (Recipe("smoothquant"), 8.0e9, 8.2e9),
        (Recipe("int4"), 4.2e9, 4.6e9),
        (Recipe("gptq", symmetric=False), 4.2e9, 4.6e9),
    ],
    ids=str,
)
def test_weights_of_8b(recipe, least, most):
    params = shapes(recipe)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    assert least < size <= most
    tokens = jax.ShapeDtypeStruct((1, 5), jnp.int32)
    found = jax.eval_shape(lambda p, t: logits(p, LLAMA, t), params, tokens)
    assert found.shape == (1, 5, LLAMA.vocab_size)
