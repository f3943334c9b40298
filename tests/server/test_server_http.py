"""What the official client does not show: refusals, keys, limits, probes, control, curl."""

import json
import re
import socket
import subprocess

import httpx
import pytest

from jaxinfer import server
from jaxinfer.server.http import matches
from tests.server.conftest import ADMIN_KEY, CONTEXT, KEY, NAME, OTHER_KEY

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
HI = [{"role": "user", "content": "hi"}]


def check_refusal(response, status, words, param=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "words", "param"),
    [
        (COMPLETIONS, {}, "prompt: Field required", "prompt"),
        (COMPLETIONS, {"prompt": "a", "temprature": 1}, "unknown field 'temprature'", "temprature"),
        (COMPLETIONS, {"prompt": "a", "temperature": "1"}, "valid number", "temperature"),
        (COMPLETIONS, {"prompt": "a", "temperature": 1e-9}, "temperature: required", "temperature"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": True}, "valid integer", "max_tokens"),
        (COMPLETIONS, {"prompt": "a", "n": 17}, "at most 16 on this server", "n"),
        (COMPLETIONS, {"prompt": "a", "n": 129}, "less than or equal to 128", "n"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "at most 20", "logprobs"),
        (COMPLETIONS, {"prompt": "a", "top_p": 0}, "greater than 0", "top_p"),
        (COMPLETIONS, {"prompt": "a", "stop": ["x"] * 17}, "at most 16", "stop"),
        (COMPLETIONS, {"prompt": "a", "stop": [""]}, "at least 1", "stop[0]"),
        (COMPLETIONS, {"prompt": "a", "min_tokens": 9, "max_tokens": 3}, "min_tokens", "min_tokens"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"x": 1}}, "should match pattern", None),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"999": 1}}, "vocabulary size", "logit_bias"),
        (COMPLETIONS, {"prompt": "a", "stop_token_ids": [5000]}, "vocabulary", "stop_token_ids"),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}, "only best_of = n", "best_of"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix: text is only continued", "suffix"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "0 needs echo", "max_tokens"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 500}, f"{CONTEXT} positions",
         "max_tokens"),
        (COMPLETIONS, {"prompt": "word " * 300}, "shorten it", "prompt"),
        (COMPLETIONS, {"prompt": [1, 5000]}, "token ids below", "prompt"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt[", None),
        (COMPLETIONS, {"prompt": []}, "prompt: ", "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 65}, "at most 64", None),
        (COMPLETIONS, {"prompt": ["a"] * 33, "n": 2}, "prompt x n", None),
        (COMPLETIONS, {"prompt": "a", "stream": True, "prompt_logprobs": 1}, "stream: false", None),
        (CHAT, {"messages": []}, "at least 1 item", "messages"),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", None),
        (CHAT, {"messages": [{"role": "user", "text": "a"}]}, "unknown field 'messages[0].text'",
         None),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            None,
        ),
        (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, "Field required",
         "tools[0].function"),
        (CHAT, {"messages": HI, "guided_decoding_backend": "x"}, "leave it out",
         "guided_decoding_backend"),
        (CHAT, {"messages": HI, "top_logprobs": 2}, "logprobs: true", "top_logprobs"),
        (CHAT, {"messages": HI, "max_tokens": 2, "max_completion_tokens": 3}, "differ", None),
        (CHAT, {"messages": HI, "chat_template_kwargs": {"template": "x"}}, "must not hold", None),
        (CHAT, {"messages": HI, "chat_template_kwargs": {"tail": "x" * 500}}, "shorten", None),
        (RESPONSES, {"input": "a", "previous_response_id": "x"}, "not stored", None),
        (RESPONSES, {"input": "a", "text": {"format": {"type": "json_schema"}}}, "Field required",
         None),
        ("/v1/embeddings", {"input": ""}, "at least 1", "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 999}, "at most 48", "dimensions"),
        ("/tokenize", {}, "one of prompt and messages", "prompt"),
        ("/detokenize", {"tokens": [-1]}, "greater than or equal to 0", "tokens[0]"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_told_by_its_field(served, path, body, words, param):
    check_refusal(served.post(path, **body), 400, words, param)


def test_neutral_values_of_what_is_not_there_are_taken(served):
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
        "user": "me",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "n": None,
        "stop": None,
        "max_tokens": 2,
    }
    assert served.post(CHAT, messages=HI, **neutral).status_code == 200
    assert served.post(COMPLETIONS, prompt="a", best_of=2, n=2, max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[1]", "JSON object"),
        (b'{"prompt": "\xff"}', "JSON"),
        (b'{"prompt": "\\ud800"}', "JSON"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"prompt": ' + b"[" * 100_000, "JSON"),
    ],
)
def test_a_body_that_is_no_json_is_refused(served, data, words):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    response = httpx.post(served.url + COMPLETIONS, content=data, headers=headers)
    check_refusal(response, 400, words)


def test_paths_methods_and_types_that_are_not_there(served):
    check_refusal(served.get("/v2"), 404, "nothing at /v2")
    check_refusal(served.get(CHAT), 405, "does not take GET")
    assert served.get(CHAT).headers["allow"] == "POST"
    key = {"Authorization": f"Bearer {KEY}"}
    response = httpx.post(served.url + CHAT, content=b"{}", headers=key)
    check_refusal(response, 415, "application/json")
    check_refusal(served.post(CHAT, model="gpt-4", messages=HI), 404, "no model 'gpt-4'", "model")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served):
    most = served.service.settings.max_body_bytes
    host, port = served.url.removeprefix("http://").split(":")
    lines = [f"POST {CHAT} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {KEY}"]
    lines += ["Content-Type: application/json", f"Content-Length: {most + 1}", "", ""]
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall("\r\n".join(lines).encode())  # and no body at all
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    def parts():
        for _ in range(most // 2**16 + 2):
            yield b" " * 2**16

    response = httpx.post(served.url + CHAT, content=parts(), headers=headers)
    check_refusal(response, 413, f"at most {most} bytes")


def test_keys(served):
    for key in (KEY, OTHER_KEY):
        assert served.get("/v1/models", key).status_code == 200
    for key in (None, "wrong", KEY[:-1], KEY + "x", ADMIN_KEY):
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            check_refusal(served.get(path, key), 401, "valid key")
        check_refusal(served.post(COMPLETIONS, key, prompt="a"), 401, "valid key")
    basic = httpx.get(served.url + "/v1/models", headers={"Authorization": f"Basic {KEY}"})
    check_refusal(basic, 401, "valid key")
    for path in ("/health", "/ready"):
        assert served.get(path, None).status_code == 200


def test_every_key_is_compared(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "jaxinfer.server.http.hmac.compare_digest", lambda a, b: seen.append((a, b)) or a == b
    )
    assert matches("one", ["one", "two", "three"])
    assert not matches("four", ["one", "two", "three"])
    assert len(seen) == 6
    assert {len(digest) for pair in seen for digest in pair} == {32}


def test_control_needs_the_operators_key_and_does_what_it_says(served):
    for key in (None, KEY, "wrong"):
        check_refusal(served.post("/admin/pause", key), 401, "valid key")
    assert served.post("/admin/pause", ADMIN_KEY).json() == {"status": "paused"}
    assert served.get("/ready").json() == {"status": "paused"}
    assert served.get("/ready").status_code == 503
    assert served.get("/health").status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            served.url + COMPLETIONS,
            json={"prompt": "a", "max_tokens": 2},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=0.5,
        )
    assert served.post("/admin/resume", ADMIN_KEY).json() == {"status": "ready"}
    assert served.get("/ready").status_code == 200
    assert served.post(COMPLETIONS, prompt="a", max_tokens=2).status_code == 200
    assert set(served.post("/admin/abort", ADMIN_KEY).json()) == {"aborted"}


def test_keys_are_checked_when_they_are_made():
    for keys in (("short",), ("with a space in it",), ("söme-letters",)):
        with pytest.raises(ValueError, match="printable ASCII") as caught:
            server.Settings(name="m", api_keys=keys)
        assert keys[0] not in str(caught.value)
    with pytest.raises(ValueError, match="differ"):
        server.Settings(name="m", api_keys=("one-key-1",), admin_key="one-key-1")
    assert "one-key-1" not in repr(server.Settings(name="m", api_keys=("one-key-1",)))
    with pytest.raises(ValueError, match="max_n needs"):
        server.Settings(name="m", max_n=0)


def test_tokens_there_and_back(served):
    text = "hello there 日本語 😀"
    found = served.post("/tokenize", prompt=text, return_token_strs=True).json()
    assert found["tokens"] == served.model.tokenizer.encode(text)
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == CONTEXT
    assert "\ufffd" not in "".join(found["token_strs"])
    bare = served.post("/tokenize", prompt=text, add_special_tokens=False).json()["tokens"]
    assert bare == found["tokens"][1:]
    assert served.post("/detokenize", tokens=bare).json() == {"prompt": text}
    chat = served.post("/tokenize", messages=HI).json()["tokens"]
    assert chat == served.model.tokenizer.encode_chat(HI)
    bare_chat = served.post("/tokenize", messages=HI, add_generation_prompt=False).json()["tokens"]
    assert bare_chat == served.model.tokenizer.encode_chat(HI, add_generation_prompt=False)


def test_metrics_count_what_happens(served):
    def read():
        text = served.get("/metrics").text
        rows = re.findall(r"^(jaxinfer_\S+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in rows}

    before = read()
    body = {"prompt": "a b c", "max_tokens": 9, "ignore_eos": True}
    assert served.post(COMPLETIONS, **body).status_code == 200
    assert served.post(COMPLETIONS, prompt="a", zzz=1).status_code == 400
    after = read()

    def grown(name):
        return after[f"jaxinfer_{name}"] - before.get(f"jaxinfer_{name}", 0.0)

    assert grown("generated_tokens_total") == 9
    assert grown("prompt_tokens_total") == len(served.model.tokenizer.encode("a b c"))
    assert grown('http_requests_total{route="/v1/completions",status="200"}') == 1
    assert grown('http_requests_total{route="/v1/completions",status="400"}') == 1
    assert grown('tickets_ended_total{reason="finished"}') == 1
    for name, count in (
        ("time_to_first_token_seconds", 1),
        ("queue_seconds", 1),
        ("request_seconds", 1),
    ):
        assert grown(f"{name}_count") == count
    assert 5 <= grown("inter_token_seconds_count") <= 8  # tokens of one batch with the first
    assert after["jaxinfer_healthy"] == after["jaxinfer_ready"] == 1
    assert after["jaxinfer_requests_running"] == after["jaxinfer_requests_waiting"] == 0


def test_curl(served):
    body = json.dumps({"model": NAME, "messages": HI, "stream": True, "max_tokens": 5})
    command = ["curl", "-sN", served.url + CHAT, "-H", "Content-Type: application/json"]
    command += ["-H", f"Authorization: Bearer {KEY}", "-d", body]
    out = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode()
    events = out.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        assert json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_usage_so_far(served):
    body = {"messages": HI, "max_tokens": 9, "stream": True, "ignore_eos": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    text = served.post(CHAT, **body, stream_options=options).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 9


def test_an_open_server_answers_to_its_own_names_only(served):
    open_settings = server.guarded(server.Settings(name="m"), "127.0.0.1")
    assert open_settings.allowed_hosts
    assert not server.guarded(server.Settings(name="m"), "0.0.0.0").allowed_hosts
    with_key = server.Settings(name="m", api_keys=("some-key-1",))
    assert not server.guarded(with_key, "127.0.0.1").allowed_hosts
