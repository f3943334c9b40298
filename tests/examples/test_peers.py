"""The comparison with other engines runs at toy size, over whichever of them are installed."""

import json

import numpy as np
import pytest

from examples.peers import checkpoint, compare_cpu, timing
from jaxinfer import weights
from tests import oracle

PEERS = [f"{peer} f32" for peer in compare_cpu.installed()]


def test_comparison_measures_every_installed_engine_and_finds_the_same_tokens(tmp_path, capsys):
    document = compare_cpu.main(
        [
            "--model=tiny",
            "--what=speed",
            "--repeats=1",
            "--batches=2",
            "--contexts=8",
            "--tokens=4",
            f"--peers={','.join(PEERS)}",
            f"--output={tmp_path / 'out' / 'cpu.json'}",
        ]
    )
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == document
    assert json.loads((tmp_path / "out" / "cpu.json").read_text()) == document
    found = document["models"]["tiny"]
    assert [record["peer"] for record in found["records"]] == PEERS
    for record in found["records"]:
        assert record["first_tokens_as_reference"] == 1  # the same weights, read the same way
        assert 0 < record["decode_tok_s"]["least"] <= record["decode_tok_s"]["most"]
        assert record["prefill_tok_s"]["median"] > 0
    rates = {record["peer"]: record["decode_tok_s"]["median"] for record in found["records"]}
    for row in found["ratios"]:
        if row["what"] == "decode_tok_s":
            assert row["ratio"] == pytest.approx(
                rates[row["ours"]] / rates[row["theirs"]], rel=1e-2
            )


def test_random_checkpoints_are_read_and_continued_as_the_oracle_does(tmp_path, seed):
    folder = checkpoint.write(tmp_path / "tiny", checkpoint.SHAPES["tiny"], seed)
    with open(tmp_path / "log", "w+") as log:
        worker = compare_cpu.Worker("jaxinfer", "f32", folder, tmp_path, log)
        timed = worker.run(compare_cpu.Case(batch=2, context=5, new=3), seed)
        worker.close()
    loaded = weights.load(folder, show_progress=False)
    prompts = timing.prompts(2, 5, checkpoint.SHAPES["tiny"].vocab_size, seed)
    assert timed["tokens"] == [
        oracle.greedy(loaded.params, loaded.config, tuple(p), 3) for p in prompts
    ]


def test_bursts_do_not_count_towards_a_speed():
    events = [(1.0, 0, 5), (1.5, 1, 6)]
    events += [(when, row, 7) for when in np.arange(2.0, 4.0, 0.5) for row in (0, 1)]
    timed = timing.from_events(0.5, events, 2, 4)
    assert (timed.prefill_s, timed.decode_s, timed.decode_tokens) == (1.0, 1.5, 6)


def test_an_unknown_peer_is_named():
    with pytest.raises(SystemExit, match=r"--peers needs some of .* got jaxinfer f8"):
        compare_cpu.main(["--peers=jaxinfer f8"])
