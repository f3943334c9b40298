"""Recipes and forms: what fits, what is refused, which arrays there are."""

import numpy as np
import pytest

from jaxinfer import quantize
from jaxinfer.quantize import Recipe


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(method="int3"), "one of int8, int4, .* gptq, got 'int3'"),
        (dict(method="int8", bits=4), "int8 needs 8 bits, got 4"),
        (dict(method="gptq", bits=3), "gptq needs 4 or 8 bits, got 3"),
        (dict(method="int8", group=128), "a group needs four-bit weights"),
        (dict(method="int4", group=4), "multiple of 8"),
        (dict(method="int4", group=0), "multiple of 8"),
        (dict(method="gptq", bits=8, group=64), "8 bits"),
        (dict(method="w8a8", symmetric=False), "zero points need four-bit weights"),
        (dict(method="int8", shared="tensor"), "only fp8 has a choice"),
        (dict(method="fp8", shared="row"), "one of tensor, channel, block"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Recipe(**settings)


def test_names():
    assert quantize.find("int4") == Recipe("int4")
    assert quantize.find(None) is None
    with pytest.raises(ValueError, match=r"got 'gptq' \(jaxinfer quantize makes"):
        quantize.find("gptq")
    with pytest.raises(ValueError, match="one of int8, int4, fp8, w8a8, llm_int8 or None"):
        quantize.check_method("int3")


@pytest.mark.parametrize(
    ("columns", "shards", "group"),
    [(4096, 1, 128), (1088, 1, 64), (1088, 4, 16), (48, 1, 16), (72, 1, 8), (256, 8, 32)],
)
def test_a_group_that_nobody_chose_divides_every_shard(columns, shards, group):
    assert Recipe("awq").form(columns, shards=shards).group == group


@pytest.mark.parametrize(
    ("settings", "columns", "shards"),
    [
        (dict(method="int4", group=128), 1088, 1),
        (dict(method="int4", group=64), 256, 8),
        (dict(method="int4"), 100, 1),
        (dict(method="int4"), 64, 16),
        (dict(method="fp8", shared="block", group=128), 192, 1),
    ],
)
def test_groups_are_whole_on_every_shard_or_refused(settings, columns, shards):
    with pytest.raises(ValueError, match="whole groups"):
        Recipe(**settings).form(columns, shards=shards)


def test_the_head_keeps_eight_bits():
    assert Recipe("gptq").form(128, head=True) == Recipe("int8").form(128)
    assert Recipe("llm_int8").form(128, head=True).outliers == 0


def test_bytes(rng):
    shape = 16, 256
    assert Recipe("int4").form(256).nbytes(shape) == 16 * (256 // 2 + 2 * 2)
    assert Recipe("int4", symmetric=False).form(256).nbytes(shape) == 16 * (256 // 2 + 4 * 2)
    assert Recipe("int8").form(256).nbytes(shape) == 16 * (256 + 4)
    assert Recipe("llm_int8").form(256).nbytes(shape) == 16 * (256 + 4 + 8 * 2) + 8 * 4


@pytest.mark.parametrize("method", [*quantize.METHODS, *quantize.CALIBRATED])
@pytest.mark.parametrize("head", [False, True])
def test_a_form_is_known_by_its_arrays(method, head):
    form = Recipe(method).form(64, head=head)
    held = form.parts((8, 64))
    names = ("values", "scale", "zero", "smooth", "columns", "outliers")
    found = {name: getattr(held, name) for name in names}
    shapes = {name: (p.shape, p.dtype) for name, p in found.items() if p is not None}
    assert quantize.form_of(method, shapes) == form


def test_arrays_that_make_no_weight_are_refused():
    values, scale = ((8, 64), np.dtype(np.int8)), ((8, 7), np.dtype(np.float32))
    with pytest.raises(ValueError, match="equal groups"):
        quantize.form_of("int8", {"values": values, "scale": scale})
    with pytest.raises(ValueError, match="needs an array scale"):
        quantize.form_of("int8", {"values": values})
    with pytest.raises(ValueError, match="need a type among"):
        quantize.form_of("int8", {"values": ((8, 64), np.dtype(bool)), "scale": scale})
