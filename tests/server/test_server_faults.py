"""Clients that leave, read slowly or come in crowds; parts that break; a server that ends. The
engine is a fake, so that each happens when it should.
"""

import concurrent.futures
import dataclasses
import json
import socket
import threading
import time

import httpx
import openai
import pytest

from jaxinfer import Model
from jaxinfer.tokenizer import Tokenizer
from tests.server.conftest import HEADERS, KEY, NAME
from tests.server.fakes import LONG, Engine, serving

BROKEN = 77  # an id that the tokenizer of these tests cannot decode


class BreakingTokenizer(Tokenizer):
    """Fails at one id."""

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        if BROKEN in ids:
            raise RuntimeError("a broken tokenizer")
        return super().decode(ids, skip_special_tokens)


@pytest.fixture(scope="module")
def breaking(model) -> Model:
    fields = {f.name: getattr(model.tokenizer, f.name) for f in dataclasses.fields(Tokenizer)}
    return Model(model.params, model.config, BreakingTokenizer(**fields))


def body(first=10, count=5, **more):
    return {"prompt": [first], "max_tokens": count, "return_token_ids": True, **more}


def ask(client, *args, **more) -> httpx.Response:
    return client.post("/v1/completions", json=body(*args, **more))


def events(response) -> list:
    """What a stream says, parsed; the last is None where it ended properly."""
    lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    return [None if line == "[DONE]" else json.loads(line) for line in lines]


def ids(found) -> list[int]:
    choices = [event["choices"][0] for event in found if event and "choices" in event]
    return [id for choice in choices for id in choice["token_ids"]]


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_client_that_leaves_frees_its_place(model):
    engine = Engine(step_s=0.01)
    with serving(model, engine) as (client, service):
        with client.stream("POST", "/v1/completions", json=body(0, LONG // 2, stream=True)) as one:
            next(one.iter_lines())
            assert not engine.idle
        until(lambda: engine.idle)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=body(0, LONG // 2), timeout=0.3)
        until(lambda: engine.idle)
        assert ask(client, 5, 3).json()["choices"][0]["token_ids"] == [5, 6, 7]
        ended = client.get("/metrics").text
        assert 'tickets_ended_total{reason="client_disconnected"} 2.0' in ended


def test_a_slow_reader_loses_its_place_and_nobody_waits(model):
    engine = Engine()
    with serving(model, engine, buffer=200) as (client, service):
        host, port = client.base_url.host, client.base_url.port
        data = json.dumps(body(0, LONG // 2, stream=True)).encode()
        head = [
            "POST /v1/completions HTTP/1.1",
            f"Host: {host}",
            f"Authorization: Bearer {KEY}",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
        ]
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect((host, port))
            raw.sendall("\r\n".join([*head, "", ""]).encode() + data)
            until(lambda: not engine.idle)
            for _ in range(20):
                answer = ask(client, 3, 20).json()
                assert answer["choices"][0]["token_ids"] == list(range(3, 23))
            until(lambda: engine.idle)
        assert 'reason="slow_reader"} 1.0' in client.get("/metrics").text


def test_a_crowd_is_sent_away_and_told_when_to_come_back(model):
    engine = Engine(slots=2)
    with (
        serving(model, engine, most_open=5) as (client, service),
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        engine.gate.clear()
        waiting = [pool.submit(ask, client, 1, 3) for _ in range(5)]
        until(lambda: service.loop.open == 5)
        refused = ask(client)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        with (
            openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=KEY, max_retries=0) as official,
            pytest.raises(openai.RateLimitError),
        ):
            official.completions.create(model=NAME, prompt="a")
        assert ask(client, n=6).status_code == 400  # would never fit
        engine.gate.set()
        assert all(one.result().status_code == 200 for one in waiting)
        assert ask(client).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_breaks_in_one_call_costs_that_call(breaking, stream):
    engine = Engine(step_s=0.001)
    with (
        serving(breaking, engine) as (client, service),
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        firsts = [200, BROKEN - 10, 200, BROKEN - 20, 200]
        calls = [pool.submit(ask, client, first, 40, stream=stream) for first in firsts]
        for first, call in zip(firsts, calls, strict=True):
            response = call.result()
            if first == 200:
                found = ids(events(response)) if stream else None
                found = found or response.json()["choices"][0]["token_ids"]
                assert found == list(range(200, 240))
            elif stream:
                *before, error, last = events(response)
                assert last is None
                assert ids(before) == list(range(first, first + len(ids(before))))
                assert error["error"]["type"] == "server_error"
                assert "broken tokenizer" not in error["error"]["message"]
            else:
                assert response.status_code == 500
                assert response.json()["error"]["code"] == "internal"
        until(lambda: engine.idle)
        assert client.get("/health").status_code == 200


def test_an_answer_has_its_time(model):
    engine = Engine(step_s=0.05)
    with serving(model, engine, request_s=0.4) as (client, service):
        late = ask(client, 0, 1000)
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "timeout"
        with client.stream("POST", "/v1/completions", json=body(0, 1000, stream=True)) as response:
            *_, error, last = events(response)
        assert last is None
        assert error["error"]["code"] == "timeout"
        until(lambda: engine.idle)


def test_a_body_has_its_time(model):
    with serving(model, Engine(), read_s=0.2) as (client, service):

        def slowly():
            yield b'{"prompt": '
            time.sleep(1)
            yield b'"a"}'

        kind = {"Content-Type": "application/json"}
        late = client.post("/v1/completions", content=slowly(), headers=kind)
        assert late.status_code == 408


def test_a_dead_engine_ends_streams_with_an_error_and_fails_health(model):
    def fail(running):
        if engine.steps > 20:
            engine.failed = RuntimeError("device lost")
            raise engine.failed

    engine = Engine(step_s=0.002)
    engine.fail_step = fail
    with serving(model, engine) as (client, service):
        assert client.get("/health").status_code == 200
        with client.stream("POST", "/v1/completions", json=body(0, 500, stream=True)) as response:
            *before, error, last = events(response)
        assert last is None
        assert len(ids(before)) >= 10
        assert "device lost" in error["error"]["message"]
        assert error["error"]["code"] == "engine_failed"
        assert client.get("/health").status_code == 503
        assert "device lost" in client.get("/health").json()["status"]
        assert client.get("/ready").status_code == 503
        assert ask(client).status_code == 503


def test_a_step_that_hangs_fails_health(model):
    engine = Engine()
    with serving(model, engine, stall_s=0.2) as (client, service):
        engine.gate.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            call = pool.submit(ask, client)
            until(lambda: client.get("/health").status_code == 503)
            engine.gate.set()
            assert call.result().status_code == 200
        assert client.get("/health").status_code == 200


def test_a_shutdown_lets_answers_finish_and_ends_the_rest(model):
    """While it drains, new calls are refused, short answers finish, long ones end with an error."""
    engine, found = Engine(step_s=0.01), {}

    def read(client, name, count):
        path, data = "/v1/completions", body(0, count, stream=True)
        with client.stream("POST", path, json=data) as response:
            found[name] = events(response)

    with serving(model, engine, grace_s=1.5) as (client, service):
        url = client.base_url
        clients = [httpx.Client(base_url=url, headers=HEADERS, timeout=30) for _ in range(2)]
        counts = {"short": 60, "long": LONG // 2}
        threads = [
            threading.Thread(target=read, args=(one, *pair))
            for one, pair in zip(clients, counts.items(), strict=True)
        ]
        for thread in threads:
            thread.start()
        until(lambda: service.loop.open == 2)
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 15
    for thread in threads:
        thread.join(10)
    for one in clients:
        one.close()
    assert ids(found["short"]) == list(range(60))
    assert found["short"][-1] is None
    *before, error, last = found["long"]
    assert last is None
    assert error["error"]["code"] == "shutting_down"
    assert len(ids(before)) > 60


def test_an_operator_ends_calls(model):
    engine = Engine(step_s=0.01)
    admin = {"Authorization": "Bearer an-admin-key"}
    with serving(model, engine, admin_key="an-admin-key") as (client, service):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(ask, client, 0, 5000) for _ in range(2)]
            until(lambda: service.loop.open == 2)
            assert client.post("/admin/abort", headers=admin).json() == {"aborted": 2}
            for call in calls:
                assert call.result().status_code == 503
                assert call.result().json()["error"]["code"] == "aborted"
        until(lambda: engine.idle)


def test_without_an_operators_key_control_is_closed(model):
    with serving(model, Engine()) as (client, service):
        assert client.post("/admin/pause").status_code == 403


def test_other_names_are_refused(model):
    with serving(model, Engine(), allowed_hosts=("127.0.0.1", "::1")) as (client, service):
        assert client.get("/health").status_code == 200
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
            assert client.get("/health", headers={"Host": host}).status_code == 403
        for host in ("127.0.0.1", "127.0.0.1:8000", "[::1]:80", "[::1]"):
            assert client.get("/health", headers={"Host": host}).status_code == 200


def test_tenants_do_not_share(model):
    engine = Engine()
    with serving(model, engine) as (client, service):
        ask(client, priority=-5)
        ask(client)
    (_, first, salt), (_, second, same) = engine.added
    assert (first, second) == (-5, 0)
    assert salt == same != ""
    assert KEY not in salt
