"""The load client against a server that logs what it did: times, counts, faults, bounds."""

import asyncio
import itertools
import json
import statistics as exact

import matplotlib.image
import numpy as np
import pytest

from jaxinfer.bench.serve import client as clients
from jaxinfer.bench.serve import counters, load, pictures, statistics
from jaxinfer.bench.serve.client import Client, Outcome
from jaxinfer.bench.serve.load import Case, Load
from jaxinfer.bench.serve.workload import WORDS, Dataset, Lengths, Target, poisson
from tests.bench import sse_server

SHORT = Lengths(input=12, output=4, vary=0.5)


def measure(server, case, work=SHORT, *, url=None, key=None, timeout=20.0, seed=(1, 0)) -> Load:
    async def main() -> Load:
        async with Client(Target.parse(url or server.url), None, key, timeout) as client:
            await client.find_model()
            return await load.run(client, work, case, seed)

    return asyncio.run(main())


@pytest.mark.parametrize("split", [None, 5])
def test_times_enclose_what_the_server_did(seed, split):
    """One at a time, so that the n-th outcome is the n-th request of the log."""
    with sse_server.running(split=split) as server:
        done = measure(server, Case(6, concurrency=1, warm_up=1), seed=(seed, 0))
    served = server.served[1:]
    assert len(done.outcomes) == len(served) == 6
    for outcome, one in zip(done.outcomes, served, strict=True):
        assert outcome.error is None
        assert outcome.counted == "usage"
        assert outcome.tokens == one.body["max_tokens"] == len(outcome.texts)
        assert outcome.prompt_tokens == len(one.body["prompt"])
        assert outcome.cached_tokens == sse_server.CACHED
        assert outcome.sent <= one.received
        assert all(a <= b for a, b in zip(one.wrote, outcome.texts, strict=True))
        assert outcome.ttft >= one.wrote[0] - one.received >= server.first_s * 0.9
        assert outcome.e2e >= one.wrote[-1] - one.received
        assert sum(outcome.gaps) == pytest.approx(outcome.e2e - outcome.ttft)
        if outcome.tokens > 1:
            assert outcome.tpot == pytest.approx(sum(outcome.gaps) / (outcome.tokens - 1))
    assert all(a.ended <= b.sent for a, b in itertools.pairwise(done.outcomes))
    assert done.seconds == done.outcomes[-1].ended - done.outcomes[0].sent
    asked = sum(len(one.body["prompt"]) for one in served)
    assert done.prefix == (6 * sse_server.CACHED, asked)


def test_what_is_sent(seed):
    with sse_server.running() as server:
        measure(server, Case(3, concurrency=2, warm_up=0), key="secret-key", seed=(seed, 0))
    bodies = list(SHORT.bodies(3, (seed, 0), chat=False))
    sent = sorted((one.body for one in server.served), key=lambda b: b["prompt"])
    for one, body in zip(sent, sorted(bodies, key=lambda b: b["prompt"]), strict=True):
        extra = {"model": "fake", "stream": True, "stream_options": {"include_usage": True}}
        assert one == body | extra
    assert {one.headers["authorization"] for one in server.served} == {"bearer secret-key"}
    assert server.others == ["/v1/models", "/metrics", "/metrics"]


def test_chats_count_text_and_not_roles(seed):
    with sse_server.running(usage=False, per_chunk=2, counters=None) as server:
        url = server.url.replace("/completions", "/chat/completions")
        work = Lengths(input=9, output=8, vary=0.0)
        done = measure(server, Case(2, concurrency=2, warm_up=0), work, url=url)
    for one, outcome in zip(server.served, done.outcomes, strict=True):
        (message,) = one.body["messages"]
        assert len(message["content"].split()) == 9
        assert set(message["content"].split()) <= set(WORDS)
        assert outcome.counted == "chunks"
        assert outcome.tokens == len(outcome.texts) == len(one.wrote) == 4
    assert done.prefix is None


def test_so_many_at_once_and_no_more():
    with sse_server.running(first_s=0.2) as server:
        done = measure(server, Case(12, concurrency=4, warm_up=0))
        assert server.most_open == done.peak == 4
        measure(server, Case(3, concurrency=8, warm_up=0))
        assert server.most_open <= 4


def test_an_open_loop_does_not_wait_for_answers(seed):
    """Requests leave no earlier than their times; all of them before the first answer."""
    with sse_server.running(first_s=1.5) as server:
        done = measure(server, Case(10, rate=200.0, warm_up=0), seed=(seed, 0))
    times = poisson(200.0, 10, [seed, 0, 1])
    sent = sorted(outcome.sent for outcome in done.outcomes)
    assert server.most_open == done.peak == 10
    for when, at in zip(times, sent, strict=True):
        assert at - sent[0] >= when - times[0] - 0.5  # of the run's beginning, not the first send
    assert len(done.late) == 10
    assert min(done.late) >= 0


def test_arrivals_are_poissons(seed):
    gaps = np.diff(poisson(5.0, 20_000, [seed]))
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.07)  # of an exponential: its mean
    assert (gaps > 0.2).mean() == pytest.approx(np.exp(-1), abs=0.02)
    assert poisson(5.0, 50, [seed]) == poisson(5.0, 50, [seed])


FAULTS = {
    1: ("429", "http 429"),
    2: ("500", "http 500"),
    3: ("hang up", "broken connection"),
    4: ("event", "error in the stream: engine_failed"),
    5: ("junk", "bad event"),
    6: ("short", "broken stream"),
    7: ("hang", "timeout"),
    8: ("plain", "no stream"),
    9: ("redirect", "http 307"),
}


def test_faults_are_counted_by_kind_and_cost_nobody_else():
    faults = {number: fault for number, (fault, _) in FAULTS.items()}
    with sse_server.running(faults=faults) as server:
        done = measure(server, Case(11, concurrency=1, warm_up=0), timeout=1.0)
    kinds = {number: outcome.error for number, outcome in enumerate(done.outcomes)}
    assert kinds == dict.fromkeys((0, 10)) | {n: kind for n, (_, kind) in FAULTS.items()}
    row = statistics.row(done, "fake", {"ttft": 1e6})
    assert row["completed"] == 2
    assert row["errors"] == {kind: 1 for _, kind in FAULTS.values()}
    assert row["error_details"]["error in the stream: engine_failed"] == "it broke"
    assert "no: 429" in row["error_details"]["http 429"]
    assert row["goodput"]["share"] == pytest.approx(2 / 11)
    whole = [server.served[i].body["max_tokens"] for i in (0, 10)]
    assert row["output_tokens"] == sum(whole)
    assert len(statistics.warnings(row)) >= len(FAULTS)


@pytest.mark.parametrize("load_of", [{"concurrency": 2}, {"rate": 20.0}])
def test_a_row_ends_in_time(load_of):
    faults = dict.fromkeys(range(1000), "hang")
    with sse_server.running(faults=faults) as server:
        done = measure(server, Case(50, **load_of, warm_up=0, seconds=0.3))
    row = statistics.row(done, "fake", None)
    assert sum(row["errors"].values()) == 50
    assert set(row["errors"]) == {"cut off", "not sent in time"}
    assert 0 < len(server.served) <= row["errors"]["cut off"] < 50
    assert row["ttft_ms"] is None
    assert row["quantiles_ms"]["itl"] is None


def test_an_open_loop_has_an_end(monkeypatch):
    monkeypatch.setattr(load, "MOST_OPEN", 3)
    with sse_server.running(first_s=1.0) as server:
        done = measure(server, Case(8, rate=1e4, warm_up=0))
    assert server.most_open == done.peak == 3
    assert sum(outcome.error == "client full" for outcome in done.outcomes) == 5


def test_a_server_that_is_not_there():
    with sse_server.running() as server:
        url = server.url
    client = Client(Target.parse(url), "m", None, 5.0)
    outcome = asyncio.run(client.send(client.encode({"prompt": "x", "max_tokens": 1})))
    assert outcome.error == "no connection"
    with pytest.raises(ValueError, match="no answer from http"):
        asyncio.run(Client(Target.parse(url), None, None, 5.0).find_model())


def made(rng, count=40) -> list[Outcome]:
    found = []
    for _ in range(count):
        times = np.cumsum(rng.uniform(0.001, 0.2, rng.integers(2, 9))).tolist()
        sent, *texts = times
        found.append(Outcome(sent, texts[-1] + 0.01, texts, 10, 4, 2 * len(texts), "usage"))
    return found


def test_a_row_is_what_the_definitions_say(rng):
    whole = made(rng)
    failed = [Outcome(0.0, 1.0, [0.5], tokens=9, error="timeout")]
    case = Case(45, concurrency=3)
    done = Load(case, (*whole, *failed), 12.5, 4, (), 0.1, 3, (30.0, 120.0))
    bounds = {"ttft": 100.0, "itl": 150.0}
    row = statistics.row(done, "m", bounds)
    ttfts = [1e3 * (one.texts[0] - one.sent) for one in whole]
    cuts = exact.quantiles(ttfts, n=100, method="inclusive")
    assert row["ttft_ms"]["p50"] == pytest.approx(exact.median(ttfts))
    assert row["ttft_ms"]["p90"] == pytest.approx(cuts[89])
    assert row["ttft_ms"]["p99"] == pytest.approx(cuts[98])
    assert row["ttft_ms"]["mean"] == pytest.approx(exact.mean(ttfts))
    assert row["quantiles_ms"]["ttft"][50] == pytest.approx(exact.median(ttfts), abs=1e-3)
    gaps = [1e3 * (b - a) for one in whole for a, b in itertools.pairwise(one.texts)]
    assert row["itl_ms"]["max"] == pytest.approx(max(gaps))
    per_token = [1e3 * (o.texts[-1] - o.texts[0]) / (o.tokens - 1) for o in whole]
    assert row["tpot_ms"]["mean"] == pytest.approx(exact.mean(per_token))
    assert row["e2e_ms"]["max"] == pytest.approx(max(1e3 * (o.texts[-1] - o.sent) for o in whole))
    assert row["requests_per_s"] == pytest.approx(40 / 12.5)
    made_tokens = sum(one.tokens for one in whole)
    assert row["output_tokens_per_s"] == pytest.approx(made_tokens / 12.5)
    assert row["total_tokens_per_s"] == pytest.approx((made_tokens + 400) / 12.5)
    good = sum(
        t <= 100 and all(1e3 * (b - a) <= 150 for a, b in itertools.pairwise(o.texts))
        for t, o in zip(ttfts, whole, strict=True)
    )
    assert 0 < good < 40
    assert row["goodput"]["requests_per_s"] == pytest.approx(good / 12.5)
    assert row["goodput"]["share"] == pytest.approx(good / 45)
    assert row["errors"] == {"timeout": 1, "not sent in time": 4}
    assert (row["prefix_hit_rate"], row["prefix_hits_counted_by"]) == (0.25, "metrics")
    told = statistics.row(Load(case, tuple(whole), 1.0, 0, (), 0.9, 3, None), "m", None)
    assert (told["prefix_hit_rate"], told["prefix_hits_counted_by"]) == (0.4, "usage")
    assert "90% of a core" in statistics.warnings(told)[0]
    json.dumps([row, told], allow_nan=False)


def test_answers_without_text_or_with_one_token():
    silent = Outcome(1.0, 3.0, [], tokens=1, counted="usage")
    assert (silent.ttft, silent.e2e, silent.tpot, silent.gaps) == (2.0, 2.0, None, [])


def test_limits():
    assert statistics.limits("ttft:200,tpot:50.5") == {"ttft": 200.0, "tpot": 50.5}
    assert statistics.limits(None) is None
    for text in ("", "ttft", "ttft:", "ttft:-1", "ttfb:3", "ttft:1,ttft:2", "e2e:0"):
        with pytest.raises(ValueError, match="--goodput needs limits in ms"):
            statistics.limits(text)


def test_prompts_are_seeded_and_share_what_they_should(seed):
    work = Lengths(input=40, output=10, vary=0.5, shared=0.5, vocab_size=99)
    first, again = (list(work.bodies(200, (seed, 0), chat=False)) for _ in range(2))
    assert first == again
    sizes = [len(body["prompt"]) for body in first]
    assert (min(sizes), max(sizes)) == (20, 60)
    assert (min(b["max_tokens"] for b in first), max(b["max_tokens"] for b in first)) == (5, 15)
    assert all(16 <= token < 99 for body in first for token in body["prompt"])
    longest = max(first, key=lambda body: len(body["prompt"]))["prompt"][:30]
    other = list(work.bodies(200, (seed, 1), chat=False))
    assert other != first
    for body in (*first, *other):
        half = round(len(body["prompt"]) * 0.5)
        assert body["prompt"][:half] == longest[:half]
    tails = [tuple(body["prompt"][-10:]) for body in (*first, *other)]
    assert len(set(tails)) == 400
    assert all(body["ignore_eos"] for body in first)
    (free,) = Lengths(ignore_eos=False).bodies(1, (seed, 0), chat=False)
    assert "ignore_eos" not in free


def test_the_lines_of_a_file(tmp_path):
    path = tmp_path / "data.jsonl"
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    text = {"prompt": "once", "max_tokens": 2, "seed": 7}
    path.write_text(json.dumps(chat) + "\n\n" + json.dumps(text) + "\n")
    as_message = {"max_tokens": 2, "seed": 7, "messages": [{"role": "user", "content": "once"}]}
    found = list(Dataset.read(path, chat=True).bodies(3, (0, 0), chat=True))
    assert found == [chat, as_message, chat]
    with pytest.raises(ValueError, match="line 1 needs 'prompt'"):
        Dataset.read(path, chat=False)
    path.write_text(json.dumps(text))
    assert list(Dataset.read(path, chat=False).bodies(1, (0, 0), chat=False)) == [text]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "at least one line"),
        ("{", "needs to be JSON"),
        ("[]", "a JSON object"),
        ('{"prompt": "x"}', "'max_tokens' of at least 1, got None"),
        ('{"prompt": "x", "max_tokens": true}', "got True"),
        ('{"prompt": "", "max_tokens": 1}', "needs 'prompt'"),
        ('{"prompt": "x", "max_tokens": 1, "stream": false}', "must not set stream"),
    ],
)
def test_lines_that_cannot_be_sent(tmp_path, line, words):
    path = tmp_path / "data.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=words):
        Dataset.read(path, chat=False)


@pytest.mark.parametrize(
    ("given", "url", "chat"),
    [
        ("http://h:1", "http://h:1/v1/completions", False),
        ("http://h:1/v1/", "http://h:1/v1/completions", False),
        ("https://[::1]/x/v1/chat/completions", "https://[::1]/x/v1/chat/completions", True),
    ],
)
def test_targets(given, url, chat):
    target = Target.parse(given)
    assert (target.url, target.chat) == (url, chat)
    assert target.models == url.split("/v1")[0] + "/v1/models"
    assert target.metrics == "/".join(url.split("/")[:3]) + "/metrics"


@pytest.mark.parametrize(
    "url",
    ["", "h:1", "ftp://h/", "http://", "http://h:99999/", "http://u:p@h/"]
    + [f"http://h/v1{end}" for end in ("?x=1", "/embeddings")],
)
def test_targets_that_cannot_be(url):
    with pytest.raises(ValueError, match="--url needs"):
        Target.parse(url)


def test_counters_of_several_servers():
    before = 'vllm:prefix_cache_queries_total{e="0"} 10\nvllm:prefix_cache_hits_total{e="0"} 4\n'
    after = (
        "# HELP vllm:prefix_cache_queries_total x 99\n"
        'vllm:prefix_cache_queries_total{e="0"} 30.0\nvllm:prefix_cache_queries_total{e="1"} 5\n'
        'vllm:prefix_cache_hits_total{e="0",le="+Inf"} 1.4e1 1700000000\nother NaN\n'
    )
    assert counters.prefix_hits(before, after) == (10, 25)
    assert counters.prefix_hits(after, after) is None
    assert counters.prefix_hits(None, after) is None
    assert counters.prefix_hits("", "up 1") is None


def test_without_its_package_it_says_so(monkeypatch):
    monkeypatch.setattr(clients.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'jaxinfer\[serve\]'"):
        clients.httpx()


@pytest.mark.parametrize("count", [1, 3])
def test_a_picture_shows_every_row(rng, tmp_path, count):
    rows = [
        statistics.row(
            Load(Case(40, concurrency=4**i), tuple(made(rng)), 3.0, 0, (), 0.1, 1, None), "m", None
        )
        for i in range(count)
    ]
    empty = Load(
        Case(1, concurrency=99), (Outcome(0.0, error="timeout"),), 1.0, 0, (), 0.1, 1, None
    )
    failed = statistics.row(empty, "m", None)
    server = {"url": "http://h/v1/completions", "model": "m"}
    path = tmp_path / "load.png"
    pictures.draw({"server": server, "rows": [*rows, failed]}, path)
    picture = matplotlib.image.imread(path)[..., :3]
    for i, color in enumerate(pictures.COLORS):
        wanted = np.asarray([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        shown = (np.abs(picture - wanted).max(axis=-1) < 0.02).sum()
        # with several rows, TTFT against load has the second color too
        assert (shown > 100) == (i < count)
    with pytest.raises(ValueError, match="got none"):
        pictures.draw({"server": server, "rows": [failed]}, path)
