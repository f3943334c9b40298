"""From launches to a table, and from a real trace of the decode loop."""

import dataclasses

import jax
import pytest

from jaxinfer.bench import profile
from jaxinfer.bench.decode import Case, Loop
from jaxinfer.bench.hlo import Program
from jaxinfer.bench.profile import IDLE, Launch, launches, place, table, trace
from jaxinfer.bench.subject import Subject
from tests import tiny
from tests.bench.test_bench_hlo import TEXT


def launch(name, start, end, op=""):
    return Launch(name, op, start, end, end - start)


def test_time_inside_others_counts_once():
    outer, inner, later = launch("while", 0, 100), launch("dot", 20, 50), launch("add", 60, 70)
    own = {one.name: one.self_ns for one in profile._without_inner([outer, inner, later])}
    assert own == {"while": 60, "dot": 30, "add": 10}


def test_kernels_that_overlap_at_their_ends_are_not_inside_each_other():
    events = [launch(f"k{i}", 100 * i, 100 * i + 105) for i in range(5)]
    own = [one.self_ns for one in profile._without_inner(events)]
    assert own == [105, 100, 100, 100, 100]
    assert sum(own) == 505


def test_a_table_by_kind_with_bytes_and_shares():
    found = []
    for i in range(4):
        at = 1000 * i
        found.append(launch("gemm_fusion_dot_7", at, at + 500, "command_buffer_3"))
        found.append(launch("loop_gather_fusion_2", at + 600, at + 700))
        found.append(launch("nvjet_sm90_tss", at + 700, at + 900))
        found.append(launch("MemcpyD2H", at + 900, at + 950))
    rows = {
        row.name: row
        for row in table(found, [Program(TEXT)], read_ceiling=1e11, seconds=8e-6, runs=4)
    }
    assert set(rows) == {
        "gemm_fusion_dot",
        "loop_gather_fusion",
        "nvjet_sm90_tss",
        "MemcpyD2H",
        IDLE,
    }
    product = rows["gemm_fusion_dot"]
    assert product.count == 4
    assert product.us == pytest.approx(2.0)
    assert product.scope == "layer/mlp/dot_general"
    assert product.bytes == 2 * (64 + 256 * 64 + 256)
    assert product.bytes_per_s == pytest.approx(product.bytes / 500e-9)
    assert product.of_read_ceiling == pytest.approx(product.bytes / 500e-9 / 1e11)
    assert rows["nvjet_sm90_tss"].scope == "dot_general"  # the one call of a library
    assert rows["MemcpyD2H"].bytes is None
    assert rows[IDLE].us == pytest.approx(8 - 4 * 0.85)
    assert sum(row.share for row in rows.values()) == pytest.approx(1)


def test_a_table_needs_launches():
    with pytest.raises(ValueError, match="got none"):
        table([], [], 1e9, seconds=1.0)


def test_places_take_layers_together():
    path = "jit(decode_loop)/while/body/layer_31/attention/vmap()/bkgts,bksh->btkgh/dot_general"
    assert place(path) == "layer/attention/bkgts,bksh->btkgh/dot_general"
    assert place("a/reshape;jit(f)/while/body/gather") == "gather"


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A real trace of eight decode steps of the tiny model, and the program's text."""
    config = tiny.config()
    subject = Subject("tiny", tiny.params(config, 0), config, "random", "float32", None)
    loop = Loop(subject, Case(batch=3, context=64, steps=8))
    jax.block_until_ready(loop(loop.prepare()))
    state = jax.block_until_ready(loop.prepare())
    file = trace(tmp_path_factory.mktemp("trace"), lambda: loop(state))
    return launches(file), loop.programs.texts()


def test_a_real_trace_holds_every_step(traced):
    found, texts = traced
    (program,) = map(Program, texts)
    assert all(one.op for one in found)
    known = [one for one in found if program.find(one.op) is not None]
    assert len(known) > 0.9 * len(found)
    counts = {}
    for one in known:
        counts[one.op] = counts.get(one.op, 0) + 1
    weights = 4 * (tiny.VOCAB * 48)  # the head: read once a step
    heads = [op for op in counts if weights < (program.bytes_of(op) or 0) < 1.2 * weights]
    assert [counts[op] for op in heads] == [8]


def test_a_real_table_adds_up(traced):
    found, texts = traced
    window = max(one.end for one in found) - found[0].start
    rows = table(found, map(Program, texts), read_ceiling=1e9, seconds=window / 1e9, runs=8)
    assert sum(row.share for row in rows) == pytest.approx(1, abs=0.05)
    assert sum(row.us for row in rows) == pytest.approx(window / 1e3, rel=0.05)
    assert [row.us for row in rows] == sorted((row.us for row in rows), reverse=True)
    assert any(row.scope.startswith("layer/") for row in rows)
    assert not any(row.name[-1].isdigit() for row in rows)


def test_described_rows_are_cut_and_per_step(traced, monkeypatch, tmp_path):
    found, texts = traced
    monkeypatch.setattr(profile, "trace", lambda folder, run: folder)
    monkeypatch.setattr(profile, "launches", lambda path: found)
    monkeypatch.setattr(profile, "SHOWN", 3)
    rows = profile.kernels(tmp_path, lambda: None, texts, 1e9, seconds=1.0, steps=8)
    assert [row["name"] for row in rows][-1] == profile.OTHERS
    assert len(rows) == 4
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    names = {field.name for field in dataclasses.fields(profile.Kernel)}
    for row in rows:
        assert set(row) == names | {"us_per_step", "launches_per_step"}
        assert row["us_per_step"] == row["us"] / 8
        assert row["launches_per_step"] == row["count"] / 8
