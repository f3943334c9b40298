"""The Hopper decode kernel over int8 pages: equals its specification on a GPU and in the interpreter
over what the pages say, lowers for a GPU, and stays off until it is asked for.
"""

import copy
import functools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import ragged_attention as package
from pallas_kernels.ragged_attention import mosaic_gpu, mosaic_gpu_decode, ragged_attention
from pallas_kernels.ragged_attention.cases import DECODE, Case, places
from tests.pallas_kernels.decode_cases import SMALL, assert_near, drawn, expected_of, narrow_of

NEW_ENOUGH = jax.__version_info__ >= (0, 11)
TAKEN = [case for case in SMALL if case.page_size != 16 and case.H % 32 == 0]
FEW = mosaic_gpu_decode.Blocks(warpgroups=2, stages=2, merged=2, processors=3)
CLUSTER = mosaic_gpu_decode.Blocks(warpgroups=2, stages=2, merged=3, cluster=2)
RULES = ("capacity", "scale", "window", "softcap", "sinks")


def drawn_narrow(rng, case):
    (q, far, k, v, *_), table = drawn(rng, case, poisoned_newest=False)
    (k, k_scale, wide_k), (v, v_scale, wide_v) = narrow_of(k), narrow_of(v)
    far = far if case.sinks else None
    expected = expected_of(case, q, far, wide_k, wide_v, table)
    return (q, k, v, table), (k_scale, v_scale), far, expected


@pytest.mark.gpu
@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
@pytest.mark.parametrize("blocks", [mosaic_gpu_decode.Blocks(), CLUSTER], ids=["ranges", "cluster"])
def test_equals_the_specification(rng, case, blocks):
    given, scales, far, expected = drawn_narrow(rng, case)
    blocks = mosaic_gpu_decode.fitting(blocks, case.H, case.N // case.K, 1)
    rules = {name: case.rules[name] for name in RULES}
    run = jax.jit(functools.partial(mosaic_gpu_decode.attend, **rules, blocks=blocks))
    found = run(*given, *places(case)[1:], q_far=far, scales=scales)
    assert_near(found, expected)
    again = run(*given, *places(case)[1:], q_far=far, scales=scales)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(again))


@pytest.mark.parametrize(
    ("case", "blocks"),
    [(SMALL[1], FEW), (SMALL[4], CLUSTER), (SMALL[6], FEW)],
    ids=lambda x: getattr(x, "name", ""),
)
def test_is_right_in_the_interpreter(rng, case, blocks):
    given, scales, far, expected = drawn_narrow(rng, case)
    if not NEW_ENOUGH:
        assert "jax 0.11" in str(mosaic_gpu_decode.why_not(given[0], *given[1::2], blocks=blocks))
        return
    rules = {name: case.rules[name] for name in RULES}
    found = mosaic_gpu_decode.attend(
        *given, *places(case)[1:], **rules, q_far=far, blocks=blocks, scales=scales,
        interpret=plgpu.InterpretGPUParams(),
    )  # fmt: skip
    assert_near(found, expected)


@pytest.mark.parametrize(
    "case", [SMALL[4], SMALL[6], DECODE[1], DECODE[4]], ids=lambda case: case.name
)
@pytest.mark.parametrize("clusters", [False, True])
def test_lowers_for_a_gpu(monkeypatch, case, clusters):
    tuned = copy.deepcopy(mosaic_gpu._tuned())
    tuned["cluster"] |= dict(on=clusters, pairs=10_000, span=1_000_000)
    monkeypatch.setattr(mosaic_gpu, "_tuned", lambda: tuned)
    table = case.table(np.random.default_rng(0))
    shape = case.pages_shape(table)
    pages, scale = (
        jax.ShapeDtypeStruct(shape, jnp.int8),
        jax.ShapeDtypeStruct(shape[:3], np.float32),
    )
    q = jax.ShapeDtypeStruct((len(case.lengths), case.N, case.H), jnp.bfloat16)

    def run(q, k, v, table, k_scale, v_scale):
        rules = dict(case.rules, k_scale=k_scale, v_scale=v_scale, backend="mosaic_gpu")
        return ragged_attention(q, k, v, table, *places(case), **rules)

    trace = functools.partial(jax.jit(run).trace, q, pages, pages, table, scale, scale)
    if not NEW_ENOUGH:
        with pytest.raises(NotImplementedError, match=r"jax 0\.11"):
            trace()
        return
    assert "mosaic_gpu" in trace().lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("on", [False, True])
def test_is_the_default_only_where_the_tuned_file_says_so(monkeypatch, on):
    tuned = copy.deepcopy(mosaic_gpu._tuned()) | {"narrow": {"on": on}}
    monkeypatch.setattr(mosaic_gpu, "_tuned", lambda: tuned)
    monkeypatch.setattr(package, "hopper", lambda: True)
    for name in package.BACKENDS:
        monkeypatch.setitem(package.BACKENDS, name, lambda *_, name=name, **__: name)
    q, one = jnp.zeros((1, 2, 64), jnp.bfloat16), jnp.ones((1,), jnp.int32)
    scale = jnp.ones((1, 1, 64))
    rules = dict(capacity=64, scale=1.0, max_count=1, span=64, packed=False)
    for dtype, taken in ((jnp.int8, on and NEW_ENOUGH), (jnp.uint8, False)):
        pages = jnp.zeros((1, 1, 64, 64), dtype)
        given = (q, pages, pages, None, one, one, one)
        found = ragged_attention(*given, **rules, k_scale=scale, v_scale=scale)
        assert found == ("mosaic_gpu" if taken else "xla")


def test_says_what_it_cannot_do():
    case = Case("", (3,), 64, N=2, K=1, H=64)
    q, pages = jnp.zeros((1, 2, 64), jnp.bfloat16), jnp.zeros((1, 1, 64, 64), jnp.int8)
    scales = dict(k_scale=jnp.ones((1, 1, 64)), v_scale=jnp.ones((1, 1, 64)))
    rules = case.rules | dict(backend="mosaic_gpu")
    new = jnp.zeros((1, 1, 64), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="pages without scales, got int8"):
        package.attend_and_write(q, new, new, pages, pages, None, *places(case), **rules)
    rules |= dict(max_count=2, packed=True)
    with pytest.raises(NotImplementedError, match="prefill kernel takes pages without scales"):
        ragged_attention(q, pages, pages, None, *places(case), **rules, **scales)
    small = jnp.zeros((4, 1, 16, 64), jnp.int8)
    reason = mosaic_gpu_decode.why_not(q, small, jnp.zeros((1, 4), jnp.int32), blocks=FEW)
    assert NEW_ENOUGH or "jax 0.11" in str(reason)
    assert not NEW_ENOUGH or "32 slots or more" in str(reason)
