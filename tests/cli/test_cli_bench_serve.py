"""jaxinfer bench serve: rows, what is kept and shown, and what is refused before anything is sent."""

import json

import pytest

from jaxinfer.bench import history
from jaxinfer.bench.serve import workload
from jaxinfer.model import Model
from jaxinfer.scheduler import Limits
from jaxinfer.server.run import background, build
from jaxinfer.server.settings import Settings
from tests.bench import sse_server

SMALL = ("--requests=5", "--warm_up=1", "--input_tokens=12", "--output_tokens=4")
TIMES = {"ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"}


def test_rows_table_history_and_picture(run, tmp_path):
    out, plot, key = tmp_path / "kept", tmp_path / "load.png", tmp_path / "key"
    key.write_text("secret-key\n")
    with sse_server.running() as server:
        ran = run(
            "bench",
            "serve",
            f"--url={server.url}",
            *SMALL,
            "--concurrency=1,2",
            "--goodput=ttft:60000",
            f"--plot={plot}",
            f"--output={out}",
            f"--api_key_file={key}",
        )
    assert ran.code == 0, ran.err
    *lines, last = ran.out.splitlines()
    found = json.loads(last)
    assert found["kind"] == "bench serve"
    assert found["server"] == {"url": server.url, "model": "fake"}
    assert "--concurrency=1,2" in found["command"]
    assert "secret" not in ran.out + ran.err
    assert [row["concurrency"] for row in found["rows"]] == [1, 2]
    sent = [len(one.body["prompt"]) for one in server.served]
    for number, row in enumerate(found["rows"]):
        assert row["completed"] == 5
        assert row["errors"] == {}
        assert row["goodput"]["share"] == 1
        asked = sent[6 * number + 1 : 6 * number + 6]
        assert row["input_tokens"] == sum(asked)
        assert row["prefix_hit_rate"] == pytest.approx(15 / sum(asked))
        assert all(row[name]["p50"] <= row[name]["p99"] for name in TIMES)
        assert row["ttft_ms"]["p50"] >= 900 * server.first_s
    assert lines[0] == f"bench serve: fake at {server.url}"
    assert any("2 at once" in line and "5 of 5" in line for line in lines)
    (kept,) = out.glob("serve-fake-*.json")
    assert json.loads(kept.read_text()) == found
    assert history.read(out / history.HISTORY) == [found]
    assert plot.read_bytes().startswith(b"\x89PNG")
    prompts = [tuple(one.body["prompt"]) for one in server.served]
    assert len(set(prompts)) == len(prompts)  # no row finds another's prompts


def test_rates_and_a_file(run, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "once upon", "max_tokens": 3, "top_k": 5}\n')
    with sse_server.running() as server:
        command = ("bench", "serve", f"--url={server.url}", "--requests=3", "--warm_up=0", "--json")
        found = run(*command, "--rate=50,200.5", f"--dataset={data}", "--model=named").json
    assert [(row["arrivals"], row["rate"]) for row in found["rows"]] == [
        ("poisson", 50.0),
        ("poisson", 200.5),
    ]
    assert len(server.served) == 6
    assert {one.body["prompt"] for one in server.served} == {"once upon"}
    assert {(one.body["top_k"], one.body["model"]) for one in server.served} == {(5, "named")}
    assert "/v1/models" not in server.others


def test_a_server_that_refuses_everything(run):
    with sse_server.running(faults=dict.fromkeys(range(9), "429")) as server:
        ran = run("bench", "serve", f"--url={server.url}", *SMALL, "--concurrency=2")
    assert ran.code == 1
    (row,) = json.loads(ran.out.splitlines()[-1])["rows"]
    assert row["errors"] == {"http 429": 5}
    assert "no request was answered: 5 of 5 failed: http 429" in ran.err.splitlines()[-1]


def test_our_own_server(run, model: Model):
    """Tokens are those that were asked for, and its counters say what was shared."""
    limits = Limits(slots=4, max_length=256, chunk=32, reuse=True)
    service = build(model, Settings("tiny"), limits, warm_up=())
    with background(service) as url:
        command = ("bench", "serve", f"--url={url}", "--requests=8", "--concurrency=4", "--json")
        sizes = ("--input_tokens=40", "--output_tokens=6", "--vary=0", "--vocab_size=300")
        (row,) = run(*command, *sizes, "--shared_prefix=0.75").json["rows"]
        few = ("--input_tokens=8", "--output_tokens=6", "--vary=0")
        chat = f"--url={url}/v1/chat/completions"
        (talk,) = run("bench", "serve", chat, "--requests=2", *few, "--json").json["rows"]
    assert row["errors"] == talk["errors"] == {}
    assert (row["input_tokens"], row["output_tokens"]) == (8 * 40, 8 * 6)
    assert row["tokens_counted_by"] == ["usage"]
    assert row["prefix_hits_counted_by"] == "metrics"
    assert 0 <= row["prefix_hit_rate"] <= 39 / 40
    assert talk["output_tokens"] == 12


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--url=nowhere"], "--url needs to look like"),
        (["--url=http://user:pass@h/v1"], "without user, password"),
        (["--concurrency=0"], "--concurrency needs positive integers"),
        (["--concurrency=9999"], "--concurrency needs to be 1 .. 4096"),
        (["--concurrency=1", "--rate=2"], "one of --concurrency and --rate"),
        (["--rate=fast"], "--rate needs numbers"),
        (["--rate=0"], "--rate needs to be above 0"),
        (["--requests=0"], "--requests needs to be 1"),
        (["--seconds=0"], "--seconds needs"),
        (["--timeout=-1"], "--timeout needs"),
        (["--vary=1"], "0 <= --vary < 1"),
        (["--shared_prefix=2"], "0 <= --shared_prefix <= 1"),
        (["--vocab_size=3"], "--vocab_size needs to be above 16"),
        (["--goodput=fast"], "--goodput needs limits in ms"),
        (["--plot=x.txt"], "ends in .png"),
        (["--dataset=no/such/file"], "No such file"),
        (["--api_key_file=no/such/file"], "No such file"),
    ],
)
def test_a_wrong_value_is_found_before_anything_is_sent(run, argv, words):
    with sse_server.running() as server:
        ran = run("bench", "serve", f"--url={server.url}", *argv)
    assert ran.code == 1
    assert ran.out == ""
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1
    assert (server.served, server.others) == ([], [])


def test_words_are_many_enough():
    assert len(set(workload.WORDS)) == len(workload.WORDS) > 60
