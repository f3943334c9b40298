"""The Hopper decode kernel: equals its specification on a GPU and in the interpreter, takes the new
token along, lowers for a GPU anywhere.
"""

import copy
import functools
import itertools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import ragged_attention as package
from pallas_kernels.ragged_attention import (
    attend_and_write,
    mosaic_gpu,
    mosaic_gpu_decode,
    ragged_attention,
)
from pallas_kernels.ragged_attention.cases import DECODE, Case, places
from pallas_kernels.ragged_attention.mosaic_gpu_decode import split
from pallas_kernels.ring import position_of
from tests.pallas_kernels.decode_cases import (
    SMALL,
    assert_near,
    drawn,
    expected_of,
    with_newest,
)

NEW_ENOUGH = jax.__version_info__ >= (0, 11)
FEW = mosaic_gpu_decode.Blocks(warpgroups=2, stages=2, merged=2, processors=3)


@pytest.mark.gpu
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_equals_the_specification(rng, case):
    (q, far, k, v, *_), table = drawn(rng, case, poisoned_newest=False)
    far = far if case.sinks else None
    run = jax.jit(functools.partial(ragged_attention, backend="mosaic_gpu", **case.rules))
    found = run(q, k, v, table, *places(case), q_far=far)
    assert_near(found, expected_of(case, q, far, k, v, table))
    again = run(q, k, v, table, *places(case), q_far=far)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(again))


@pytest.mark.gpu
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_takes_the_new_token_along(rng, case):
    (q, far, k, v, *new), table = drawn(rng, case, poisoned_newest=True)
    far = far if case.sinks else None
    full = [with_newest(case, x, y, table) for x, y in zip((k, v), new, strict=True)]
    run = jax.jit(functools.partial(attend_and_write, backend="mosaic_gpu", **case.rules))
    found, *pages = run(q, *new, k, v, table, *places(case), q_far=far)
    assert_near(found, expected_of(case, q, far, *full, table))
    for x, y in zip(pages, full, strict=True):
        np.testing.assert_array_equal(np.asarray(x, np.float32), y)


@pytest.mark.gpu
def test_fills_the_machine_with_skewed_rows(rng):
    """More workers than pairs and rows of very different lengths, against XLA in float32."""
    case = Case("", (*rng.integers(1, 2049, 15), 1), 2048, N=32, K=8, page_size=64)
    (q, _, k, v, *_), table = drawn(rng, case, poisoned_newest=False)
    run = functools.partial(ragged_attention, **case.rules)
    found = jax.jit(functools.partial(run, backend="mosaic_gpu"))(q, k, v, table, *places(case))
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    assert_near(found, np.asarray(run(*wide, table, *places(case), backend="xla")))


@pytest.mark.parametrize("case", [SMALL[1], SMALL[4], SMALL[6]], ids=lambda case: case.name)
@pytest.mark.parametrize("write", [False, True])
def test_is_right_in_the_interpreter(rng, case, write):
    (q, far, k, v, *new), table = drawn(rng, case, poisoned_newest=write)
    far = far if case.sinks else None
    keys = ("capacity", "scale", "window", "softcap", "sinks")
    rules = {key: case.rules[key] for key in keys}
    if not NEW_ENOUGH:
        assert "jax 0.11" in str(mosaic_gpu_decode.why_not(q, k, table, blocks=FEW))
        return
    starts, counts, lengths = places(case)
    found = mosaic_gpu_decode.attend(
        q, k, v, table, counts, lengths, **rules, q_far=far, blocks=FEW,
        new=tuple(new) if write else None, interpret=plgpu.InterpretGPUParams(),
    )  # fmt: skip
    if not write:
        assert_near(found, expected_of(case, q, far, k, v, table))
        return
    full = [with_newest(case, x, y, table) for x, y in zip((k, v), new, strict=True)]
    assert_near(found[0], expected_of(case, q, far, *full, table))
    for x, y in zip(found[1:], full, strict=True):
        np.testing.assert_array_equal(np.asarray(x, np.float32), y)


@pytest.mark.parametrize("case", [*SMALL, *DECODE], ids=lambda case: case.name)
def test_lowers_for_a_gpu(case):
    table = case.table(np.random.default_rng(0))
    pages = jax.ShapeDtypeStruct(case.pages_shape(table), jnp.bfloat16)
    B = len(case.lengths)
    q, new = (jax.ShapeDtypeStruct((B, n, case.H), jnp.bfloat16) for n in (case.N, case.K))
    run = functools.partial(attend_and_write, backend="mosaic_gpu", **case.rules)
    trace = jax.jit(run, donate_argnums=(3, 4)).trace
    arguments = (q, new, new, pages, pages, table, *places(case))
    if not NEW_ENOUGH:
        with pytest.raises(NotImplementedError, match=r"jax 0\.11"):
            trace(*arguments)
        return
    text = trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("output_operand_alias<") >= 2  # the pages, in place


def test_packed_rows_find_their_tokens(rng, monkeypatch):
    """The kernel sees a row a query; tokens of no row get zeros."""

    def attend(q, k_pages, v_pages, table, counts, lengths, *, new, **_):
        return q

    monkeypatch.setattr(mosaic_gpu_decode, "attend", attend)
    monkeypatch.setattr(mosaic_gpu_decode, "why_not", lambda *_, **__: None)
    q = jnp.asarray(rng.normal(size=(5, 4, 64)), jnp.bfloat16)
    pages = jnp.zeros((3, 2, 64, 64), jnp.bfloat16)
    starts, counts = jnp.asarray([0, 3, 3]), jnp.asarray([1, 0, 1])
    rules = dict(capacity=64, scale=1.0, max_count=1, span=64, packed=True, backend="mosaic_gpu")
    found = ragged_attention(q, pages, pages, None, starts, counts, counts, **rules)
    expected = np.zeros_like(q)
    expected[[0, 3]] = q[np.asarray([0, 3])]
    np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (dict(dtype=jnp.float32), "needs bfloat16"),
        (dict(H=72), "needs heads of 64 to 256"),
        (dict(N=130), "at most 64 query heads"),
        (dict(page_size=24), "pages that divide 64"),
    ],
)
def test_says_what_it_cannot_do(given, match):
    shape = dict(N=2, H=64, page_size=64, dtype=jnp.bfloat16) | given
    q = jnp.zeros((1, shape["N"], shape["H"]), shape["dtype"])
    pages = jnp.zeros((1, 1, shape["page_size"], shape["H"]), shape["dtype"])
    table, one = jnp.zeros((1, 1), jnp.int32), jnp.ones((1,), jnp.int32)
    rules = dict(capacity=64, scale=1.0, max_count=1, span=64, packed=False, backend="mosaic_gpu")
    match = match if NEW_ENOUGH or "dtype" in given else r"jax 0\.11|" + match
    with pytest.raises(NotImplementedError, match=match):
        ragged_attention(q, pages, pages, table, one, one, one, **rules)


def test_attend_and_write_is_a_write_and_attention_elsewhere(rng):
    case = Case("", (70, 1, 600), 128, N=4, K=2, H=64, window=100, page_size=64)
    arrays, table = drawn(rng, case, poisoned_newest=True)
    q, _, k, v, *new = (x.astype(jnp.float32) for x in arrays)
    found, *pages = attend_and_write(q, *new, k, v, table, *places(case), **case.rules)
    full = [with_newest(case, x, y, table) for x, y in zip((k, v), new, strict=True)]
    assert_near(found, expected_of(case, q, None, *full, table))
    for x, y in zip(pages, full, strict=True):
        np.testing.assert_array_equal(np.asarray(x, np.float32), y)


@pytest.mark.parametrize("window", [None, 100])
def test_the_work_is_split_evenly_and_wholly(rng, window):
    lengths = rng.integers(0, 2000, 9).astype(np.int32)
    counts = jnp.asarray(rng.integers(0, 2, 9), jnp.int32)
    rules = dict(block=16, capacity=512, window=window, sinks=0)
    rows = np.asarray(split.rows_of(jnp.asarray(lengths), counts, **rules))
    heads, workers = 3, 13
    ranges = np.asarray(split.ranges_of(jnp.asarray(rows), heads, workers))
    line = [(r, h, b) for r in range(9) for h in range(heads) for b in range(rows[r, split.COUNT])]
    at = 0
    for worker in ranges:
        part = line[at : at + worker[split.BLOCKS]]
        assert tuple(worker[:3]) == part[0]
        assert worker[split.PAIRS] == len({point[:2] for point in part})
        begin = line.index((*part[0][:2], 0))
        assert ranges[: worker[split.PIECES_FROM], split.BLOCKS].sum() <= begin
        assert ranges[: worker[split.PIECES_FROM] + 1, split.BLOCKS].sum() > begin
        at += len(part)
    assert at == len(line)
    assert np.ptp(ranges[:, split.BLOCKS]) <= 1
    held = np.asarray(
        position_of(
            jnp.arange(512, dtype=jnp.int32), jnp.asarray(np.where(counts, lengths, 0)), 512
        )
    )
    seen = (held >= 0) & (lengths[:, None] - held <= (window or 512))
    for row in range(9):
        walked = (rows[row, split.FIRST] + np.arange(rows[row, split.COUNT])) % 32
        assert set(np.flatnonzero(seen[row]) // 16) <= set(walked)
        assert len(set(walked)) == len(walked)


def test_block_sizes_fit_shared_memory():
    few = mosaic_gpu_decode.Blocks(warpgroups=4, stages=3, cluster=8)
    for H, G in itertools.product(range(64, 257, 16), (1, 4, 8, 64)):
        for blocks in (mosaic_gpu.decode_blocks(H, G), mosaic_gpu_decode.fitting(few, H, G)):
            held = blocks.warpgroups * blocks.stages * 2 * blocks.slots * H * 2
            if blocks.cluster:
                held += blocks.workers * G * H * 4
            fits = blocks.stages >= 2
            assert fits or (blocks.cluster and G == 64)
            assert not fits or held <= mosaic_gpu_decode.SHARED_MEMORY


@pytest.mark.parametrize(
    ("dtype", "on_hopper", "backend"),
    [
        (jnp.bfloat16, True, "mosaic_gpu" if NEW_ENOUGH else "xla"),
        (jnp.float32, True, "xla"),
        (jnp.bfloat16, False, "xla"),
    ],
)
def test_is_the_default_where_it_fits(monkeypatch, dtype, on_hopper, backend):
    monkeypatch.setattr(package, "hopper", lambda: on_hopper)
    for name in package.BACKENDS:
        monkeypatch.setitem(package.BACKENDS, name, lambda *_, name=name, **__: name)
    q, pages = jnp.zeros((1, 2, 64), dtype), jnp.zeros((1, 1, 64, 64), dtype)
    one = jnp.ones((1,), jnp.int32)
    rules = dict(capacity=64, scale=1.0, max_count=1, span=64, packed=False)
    assert ragged_attention(q, pages, pages, None, one, one, one, **rules) == backend


@pytest.mark.parametrize(("on_hopper", "on"), [(True, True), (True, False), (False, True)])
def test_writes_inside_only_where_the_tuned_file_says_so(rng, monkeypatch, on_hopper, on):
    case = Case("", (70, 1, 600), 128, N=4, K=2, H=64, window=100, page_size=64)
    (q, _, k, v, *new), table = drawn(rng, case, poisoned_newest=True)
    tuned = copy.deepcopy(mosaic_gpu._tuned()) | {"write": {"on": on}}
    monkeypatch.setattr(mosaic_gpu, "_tuned", lambda: tuned)
    monkeypatch.setattr(package, "hopper", lambda: on_hopper)
    monkeypatch.setattr(mosaic_gpu, "attend_and_write", lambda *_, **__: "in the kernel")
    monkeypatch.setitem(package.BACKENDS, "mosaic_gpu", lambda *_, **__: "after a write")
    monkeypatch.setitem(package.BACKENDS, "xla", lambda *_, **__: "after a write")
    inside = package.writes_inside(q, k, table, max_count=1)
    assert inside == (on_hopper and on and NEW_ENOUGH)
    assert not package.writes_inside(q.astype(jnp.float32), k, table, max_count=1)
    assert not package.writes_inside(q, k, table, max_count=2)
    found = attend_and_write(q, *new, k, v, table, *places(case), **case.rules)
    assert (found == "in the kernel") == inside
    assert inside or found[0] == "after a write"
