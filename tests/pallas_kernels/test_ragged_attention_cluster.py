"""The Hopper decode kernel in clusters: equals its specification on a GPU and in the interpreter, with
the new token or without, needs nothing cleared, lowers for a GPU, and stays off until it is asked for.
"""

import copy
import functools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.ragged_attention import mosaic_gpu, mosaic_gpu_decode
from pallas_kernels.ragged_attention.cases import DECODE, Case, places
from tests.pallas_kernels.decode_cases import SMALL, assert_near, drawn, expected_of, with_newest

NEW_ENOUGH = jax.__version_info__ >= (0, 11)
CLUSTER = mosaic_gpu_decode.Blocks(warpgroups=2, stages=2, merged=3, cluster=4)
FEW_ROWS = [case for case in DECODE if len(case.lengths) == 1]
SKEWED = Case(
    "a pair of many blocks beside an empty one", (700, 0, 1), 704, N=6, K=3, H=64, page_size=32
)
RULES = ("capacity", "scale", "window", "softcap", "sinks")


def rules_of(case):
    return {name: case.rules[name] for name in RULES}


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*SMALL, SKEWED], ids=lambda case: case.name)
@pytest.mark.parametrize("write", [False, True])
def test_equals_the_specification(rng, case, write):
    blocks = mosaic_gpu_decode.fitting(CLUSTER, case.H, case.N // case.K)
    (q, far, k, v, *new), table = drawn(rng, case, poisoned_newest=write)
    far = far if case.sinks else None
    starts, counts, lengths = places(case)
    run = jax.jit(
        functools.partial(mosaic_gpu_decode.attend, **rules_of(case), blocks=blocks, q_far=far)
    )
    given = (q, k, v, table, counts, lengths)
    if not write:
        found = run(*given)
        assert_near(found, expected_of(case, q, far, k, v, table))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(run(*given)))
        return
    full = [with_newest(case, x, y, table) for x, y in zip((k, v), new, strict=True)]
    found, *pages = run(*given, new=tuple(new))
    assert_near(found, expected_of(case, q, far, *full, table))
    for x, y in zip(pages, full, strict=True):
        np.testing.assert_array_equal(np.asarray(x, np.float32), y)


@pytest.mark.parametrize(
    ("case", "write"),
    [(SMALL[1], True), (SMALL[4], False), (SMALL[6], True), (SKEWED, True)],
    ids=lambda x: getattr(x, "name", x),
)
def test_is_right_in_the_interpreter(rng, case, write):
    (q, far, k, v, *new), table = drawn(rng, case, poisoned_newest=write)
    far = far if case.sinks else None
    if not NEW_ENOUGH:
        assert "jax 0.11" in str(mosaic_gpu_decode.why_not(q, k, table, blocks=CLUSTER))
        return
    _, counts, lengths = places(case)
    found = mosaic_gpu_decode.attend(
        q, k, v, table, counts, lengths, **rules_of(case), q_far=far, blocks=CLUSTER,
        new=tuple(new) if write else None, interpret=plgpu.InterpretGPUParams(),
    )  # fmt: skip
    if not write:
        assert_near(found, expected_of(case, q, far, k, v, table))
        return
    full = [with_newest(case, x, y, table) for x, y in zip((k, v), new, strict=True)]
    assert_near(found[0], expected_of(case, q, far, *full, table))
    for x, y in zip(found[1:], full, strict=True):
        np.testing.assert_array_equal(np.asarray(x, np.float32), y)


@pytest.mark.parametrize(
    "case", [*FEW_ROWS[1:4], *SMALL[2:4], SMALL[6]], ids=lambda case: case.name
)
def test_lowers_for_a_gpu_without_anything_to_clear(case):
    table = case.table(np.random.default_rng(0))
    pages = jax.ShapeDtypeStruct(case.pages_shape(table), jnp.bfloat16)
    B = len(case.lengths)
    q, new = (jax.ShapeDtypeStruct((B, n, case.H), jnp.bfloat16) for n in (case.N, case.K))
    tuned = mosaic_gpu._tuned()["cluster"]["blocks"]
    blocks = mosaic_gpu_decode.fitting(mosaic_gpu_decode.Blocks(**tuned), case.H, case.N // case.K)
    if not NEW_ENOUGH:
        assert "jax 0.11" in str(mosaic_gpu_decode.why_not(q, pages, table, blocks=blocks))
        return

    def text(blocks):
        def run(q, k, v, k_pages, v_pages, table, counts, lengths):
            given = (q, k_pages, v_pages, table, counts, lengths)
            rules = dict(rules_of(case), q_far=None, new=(k, v), blocks=blocks)
            return mosaic_gpu_decode.attend(*given, **rules)

        trace = jax.jit(run, donate_argnums=(3, 4)).trace
        traced = trace(q, new, new, pages, pages, table, *places(case)[1:])
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    found = text(blocks)
    assert found.count("output_operand_alias<") == 2  # the pages, in place, and no counters


@pytest.mark.parametrize("on", [False, True])
def test_is_chosen_only_where_the_tuned_file_says_so(monkeypatch, on):
    tuned = copy.deepcopy(mosaic_gpu._tuned())
    tuned["cluster"]["on"] = on
    pairs, span = (tuned["cluster"][name] for name in ("pairs", "span"))
    monkeypatch.setattr(mosaic_gpu, "_tuned", lambda: tuned)
    for many, slots, G in (
        (pairs, span, 4),
        (pairs + 1, span, 4),
        (pairs, span + 1, 4),
        (1, 1, 64),
    ):
        inside = many <= pairs and slots <= span and G < 64
        found = mosaic_gpu.decode_blocks(128, G, many, slots)
        assert bool(found.cluster) == (on and inside)
        assert found.stages >= 2
