"""The comparison with other engines runs at toy size, over whichever of them are installed."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from examples.peers import checkpoint, compare, compare_cpu, engines, speed, tables, timing
from examples.peers.engines import Host
from examples.peers.process import Case, PeerError, Worker
from jaxinfer import weights
from tests import oracle

PEERS = [name for name in engines.names("cpu") if name.endswith(" f32")]


@pytest.fixture
def host(tmp_path) -> Host:
    return Host("cpu", 0.9, tmp_path / "scratch")


def test_comparison_measures_every_installed_engine_and_finds_the_same_tokens(tmp_path, capsys):
    document = compare_cpu.main(
        [
            "--model=tiny",
            "--what=speed",
            "--repeats=1",
            "--cases=2x8",
            "--tokens=4",
            f"--peers={','.join(PEERS)}",
            f"--output={tmp_path / 'out' / 'cpu.json'}",
        ]
    )
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == document
    assert json.loads((tmp_path / "out" / "cpu.json").read_text()) == document
    assert document["kind"] == "peers"
    assert document["hardware"]["platform"] == "cpu"
    assert "--cases=2x8" in document["command"]
    assert document["command"].count("--cases") == 1  # not also what this one replaces
    assert str(tmp_path) not in document["command"]
    assert {"date", "commit", "versions"} <= set(document)
    assert [row["peer"] for row in document["rows"]] == PEERS
    for row in document["rows"]:
        assert (row["model"], row["batch"], row["context"], row["new"]) == ("tiny", 2, 8, 5)
        assert row["first_tokens_as_reference"] == 1  # the same weights, read the same way
        rate, step = row["decode_tok_s"]["median"], row["step_ms"]["median"]
        assert rate * step == pytest.approx(2 * 1e3, rel=1e-2)
        rate, whole = row["prefill_tok_s"]["median"], row["prefill_ms"]["median"]
        assert rate * whole == pytest.approx(2 * 8 * 1e3, rel=1e-2)
    rates = {row["peer"]: row["decode_tok_s"]["median"] for row in document["rows"]}
    for row in document["ratios"]["tiny"]:
        if row["what"] == "decode":
            expected = rates[row["ours"]] / rates[row["theirs"]]
            assert row["ratio"] == pytest.approx(expected, rel=1e-2)


def test_random_checkpoints_are_read_and_continued_as_the_oracle_does(tmp_path, host, seed):
    shape = checkpoint.SHAPES["tiny-untied"]
    folder = checkpoint.write(tmp_path / "tiny", shape, seed)
    loaded = weights.load(folder, show_progress=False)
    prompts = timing.prompts(2, 5, shape.vocab_size, seed)
    expected = [oracle.greedy(loaded.params, loaded.config, tuple(p), 3) for p in prompts]
    with open(tmp_path / "log", "w+") as log:
        for name in [*PEERS, "transformers f32-static"]:
            worker = Worker(name, folder, host, log)
            timed = worker.run(Case(batch=2, context=5, new=3), seed)
            again = worker.run(Case(batch=2, context=5, new=3), seed)
            worker.close()
            assert timed["tokens"] == again["tokens"] == expected, name


@pytest.mark.parametrize("loading", [0, 2])
def test_an_engine_that_fails_leaves_the_others_running(tmp_path, host, seed, loading):
    folder = checkpoint.write(tmp_path / "tiny", checkpoint.SHAPES["tiny"], seed)
    rows = speed.measure(
        folder,
        ["jaxinfer f99", "jaxinfer f32"],
        [Case(1, 4, 2), Case(1, 6, 2)],
        host,
        repeats=2,
        loading=loading,
        log=lambda text: None,
    )
    failed, fine = rows[:2], rows[2:]
    assert all("f99" in row["error"] and "decode_tok_s" not in row for row in failed)
    assert [row["context"] for row in fine] == [4, 6]
    assert all(row["first_tokens_as_reference"] == 1 for row in fine)
    compared = tables.ratios(rows)
    assert compared == []


def test_a_worker_that_ends_says_what_it_said_last(tmp_path, host, seed):
    folder = checkpoint.write(tmp_path / "tiny", checkpoint.SHAPES["tiny"], seed)
    with open(tmp_path / "log", "w+") as log:
        worker = Worker("jaxinfer f32", folder, host, log)
        for _ in range(2):
            with pytest.raises(PeerError, match="2048 positions"):
                worker.run(Case(1, 4000, 2), seed)
        worker.close()


def test_bursts_do_not_count_towards_a_speed():
    events = [(1.0, 0, 5), (1.5, 1, 6)]
    events += [(when, row, 7) for when in np.arange(2.0, 4.0, 0.5) for row in (0, 1)]
    timed = timing.from_events(0.5, events, 2, 4)
    assert (timed.prefill_s, timed.decode_s, timed.decode_tokens) == (1.0, 1.5, 6)


def test_vllm_is_asked_for_the_first_token_and_for_all(monkeypatch, tmp_path):
    """vLLM itself needs a GPU: its interface stands in for it."""
    asked = []

    class LLM:
        def __init__(self, **options):
            asked.append(options)

        def generate(self, inputs, params, use_tqdm):
            texts = [SimpleNamespace(token_ids=tuple(range(params.max_tokens))) for _ in inputs]
            asked.append([one["prompt_token_ids"] for one in inputs])
            return [SimpleNamespace(outputs=[text]) for text in texts]

    module = SimpleNamespace(LLM=LLM, SamplingParams=lambda **fields: SimpleNamespace(**fields))
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.delitem(sys.modules, "examples.peers.vllm_engine", raising=False)
    engine = __import__("examples.peers.vllm_engine", fromlist=["Engine"]).Engine(
        tmp_path, "fp8", Host("gpu", 0.45, tmp_path)
    )
    timed = engine.run([[1, 2], [3, 4]], 5)
    assert asked[0]["quantization"] == "fp8"
    assert asked[0]["gpu_memory_utilization"] == 0.45
    assert asked[1:] == [[[1, 2], [3, 4]]] * 2
    assert timed.tokens == [[0, 1, 2, 3, 4]] * 2
    assert timed.decode_tokens == 8
    sys.modules.pop("examples.peers.vllm_engine")


def test_what_is_not_installed_is_named(monkeypatch):
    lost = engines.Peer(("no_such_package",), cpu=("f32",), gpu=("bf16",))
    monkeypatch.setitem(engines.PEERS, "lost", lost)
    assert "lost f32" not in engines.names("cpu")
    assert "lost" in engines.missing("cpu")
    assert "llamacpp" not in engines.missing("cpu") or "llamacpp f32" not in engines.names("cpu")


def test_ratios_take_the_best_of_each_and_equal_types():
    def row(peer, decode, prefill):
        rates = {"decode_tok_s": decode, "prefill_tok_s": prefill}
        spreads = {name: {"median": value} for name, value in rates.items()}
        return {"peer": peer, "batch": 1, "context": 8, **spreads}

    rows = [
        row("jaxinfer f32", 10, 100),
        row("jaxinfer w8a8", 20, 90),
        row("llamacpp f32", 8, 300),
        row("llamacpp q8_0", 40, 50),
        {"peer": "transformers f32", "batch": 1, "context": 8, "error": "no"},
    ]
    found = {(r["what"], r["ours"], r["theirs"]): r["ratio"] for r in tables.ratios(rows)}
    assert found == {
        ("decode", "jaxinfer w8a8", "llamacpp q8_0"): 0.5,
        ("decode", "jaxinfer f32", "llamacpp f32"): 1.25,
        ("prefill", "jaxinfer f32", "llamacpp f32"): 0.333,
    }


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--peers=jaxinfer f8", r"--peers needs some of .* got jaxinfer f8"),
        ("--model=llama-9", r"--model needs some of .* got llama-9"),
        ("--cases=3", r"--cases needs batch x prompt length like 1x512"),
    ],
)
def test_mistakes_are_named(flag, words):
    with pytest.raises(SystemExit, match=words):
        compare.main([flag])
