"""The official client, against answers that the model gives alone."""

import asyncio
import math

import numpy as np
import openai
import pytest

from jaxinfer import SamplingParams
from tests.server.conftest import KEY, NAME

REPLACEMENT = "\ufffd"
PROMPT = "hello there 日本語"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how said"}]


def alone(served, prompt, **settings):
    """What `Model.generate` says."""
    return served.model.generate(prompt, SamplingParams(**{"max_new_tokens": 12, **settings}))


def chat_ids(served, messages=MESSAGES):
    return served.model.tokenizer.encode_chat(messages)


def check_reason(choice, completion):
    assert choice.finish_reason == str(completion.finish_reason)


def test_models(client):
    (found,) = client.models.list().data
    assert found.id == NAME
    assert client.models.retrieve(NAME).object == "model"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny/model'"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("body", "settings"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        (
            {"seed": 3, "temperature": 0.7, "top_p": 0.8},
            {"seed": 3, "temperature": 0.7, "top_p": 0.8},
        ),
        (
            {
                "seed": 4,
                "presence_penalty": 1.5,
                "frequency_penalty": -0.5,
                "logit_bias": {"40": 9},
            },
            {
                "seed": 4,
                "presence_penalty": 1.5,
                "frequency_penalty": -0.5,
                "logit_bias": {40: 9.0},
            },
        ),
        (
            {
                "seed": 5,
                "extra_body": {
                    "top_k": 20,
                    "min_p": 0.01,
                    "typical_p": 0.9,
                    "repetition_penalty": 1.3,
                    "ignore_eos": True,
                    "min_tokens": 4,
                    "stop_token_ids": [9, 12],
                    "bad_words": ["the", "a"],
                    "priority": -1,
                },
            },
            {
                "seed": 5,
                "top_k": 20,
                "min_p": 0.01,
                "typical_p": 0.9,
                "repetition_penalty": 1.3,
                "ignore_eos": True,
                "min_tokens": 4,
                "stop_token_ids": (9, 12),
                "bad_words": ("the", "a"),
            },
        ),
    ],
)
def test_every_parameter_means_what_it_means_to_the_model(served, client, body, settings):
    body = {**body, "extra_body": {"return_token_ids": True, **body.get("extra_body", {})}}
    (expected,) = alone(served, PROMPT, **settings)
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=12, **body)
    (choice,) = answer.choices
    assert choice.text == expected.text
    assert choice.token_ids == list(expected.token_ids)
    check_reason(choice, expected)
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == len(expected.token_ids)
    (expected,) = alone(served, chat_ids(served), **settings)
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_completion_tokens=12, **body
    )
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert choice.message.role == "assistant"
    assert choice.token_ids == list(expected.token_ids)
    check_reason(choice, expected)
    assert answer.usage.total_tokens == len(expected.prompt_token_ids) + len(expected.token_ids)


def test_without_parameters_openais_defaults_hold(served, client):
    answer = client.completions.create(model=NAME, prompt=PROMPT, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == served.service.max_length


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_several_answers_to_each(served, client, stream):
    prompts = ["the of and", "日本", "with as his they"]
    expected = alone(served, prompts, n=2, seed=11)
    answer = client.completions.create(
        model=NAME, prompt=prompts, n=2, seed=11, max_tokens=12, stream=stream
    )
    texts, reasons = [""] * 6, [None] * 6
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [completion.text for completion in expected]
    assert reasons == [str(completion.finish_reason) for completion in expected]


def test_token_ids_are_prompts_too(served, client):
    ids = served.model.tokenizer.encode(PROMPT)
    expected = [c.text for c in alone(served, [ids, ids[:2]], temperature=0.0)]
    for prompt, texts in ((ids, expected[:1]), ([ids, ids[:2]], expected)):
        answer = client.completions.create(model=NAME, prompt=prompt, temperature=0, max_tokens=12)
        assert [choice.text for choice in answer.choices] == texts


def test_a_chat_streams_what_it_says_whole(served, client):
    """Over many seeds: a tiny model's text is full of parts of characters."""
    for seed in range(5):
        expected = alone(served, chat_ids(served), n=2, seed=seed, max_new_tokens=24)
        chunks = list(
            client.chat.completions.create(
                model=NAME,
                messages=MESSAGES,
                n=2,
                seed=seed,
                max_completion_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        *chunks, last = chunks
        texts, roles, reasons = ["", ""], [], {}
        for chunk in chunks:
            assert chunk.usage is None
            (choice,) = chunk.choices
            assert choice.index not in reasons
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        assert texts == [completion.text for completion in expected]
        assert roles == ["assistant"] * 2
        assert reasons == {i: str(c.finish_reason) for i, c in enumerate(expected)}
        assert not last.choices
        new = sum(len(completion.token_ids) for completion in expected)
        assert last.usage.completion_tokens == new
        assert last.usage.prompt_tokens == len(expected[0].prompt_token_ids)


def test_a_stop_text_ends_an_answer_and_is_not_in_it(served, client):
    (free,) = alone(served, PROMPT, seed=2, max_new_tokens=40, ignore_eos=True)
    stop = free.text[10:13]
    (expected,) = alone(
        served, PROMPT, seed=2, max_new_tokens=40, ignore_eos=True, stop=(stop, "zz")
    )
    body = {
        "model": NAME,
        "prompt": PROMPT,
        "seed": 2,
        "max_tokens": 40,
        "stop": [stop, "zz"],
        "extra_body": {"ignore_eos": True},
    }
    (choice,) = client.completions.create(**body).choices
    assert choice.text == expected.text
    assert choice.text == free.text[: free.text.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert "".join(c.choices[0].text for c in client.completions.create(**body, stream=True)) == (
        expected.text
    )
    body["extra_body"]["include_stop_str_in_output"] = True
    (choice,) = client.completions.create(**body).choices
    assert choice.text == expected.text + stop


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(served, client, stream):
    (expected,) = alone(served, chat_ids(served), seed=6, logprobs=3)
    answer = client.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        seed=6,
        max_completion_tokens=12,
        logprobs=True,
        top_logprobs=3,
        stream=stream,
    )
    entries = []
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            entries += choice.logprobs.content if choice.logprobs else []
    assert len(entries) == len(expected.token_ids)
    texts = served.service.texts
    for i, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(expected.logprobs[i], abs=1e-4)
        assert bytes(entry.bytes) == bytes(texts.data(expected.token_ids[i]))
        assert REPLACEMENT not in entry.token
        assert len(entry.top_logprobs) == 3
        for top, (id, value) in zip(entry.top_logprobs, expected.top_logprobs[i], strict=True):
            assert top.token == texts.text(id)
            assert top.logprob == pytest.approx(value, abs=1e-4)
    added = served.model.tokenizer.backend.get_added_tokens_decoder()
    shown = [t for t in expected.token_ids if t not in added or not added[t].special]
    whole = b"".join(bytes(texts.data(id)) for id in shown)
    assert whole.decode(errors="replace").startswith(expected.text.rstrip(REPLACEMENT))


def test_completion_logprobs_and_echo(served, client):
    (expected,) = alone(served, PROMPT, temperature=0.0, logprobs=2)
    texts, count = served.service.texts, len(expected.prompt_token_ids)
    scored = served.model.score(PROMPT)[0]
    (choice,) = client.completions.create(
        model=NAME, prompt=PROMPT, temperature=0, max_tokens=12, logprobs=2, echo=True
    ).choices
    found = choice.logprobs
    assert choice.text == PROMPT + expected.text
    ids = [*expected.prompt_token_ids, *expected.token_ids]
    assert found.tokens == [texts.text(id) for id in ids]
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    values = [*scored.logprobs[1:], *expected.logprobs]
    np.testing.assert_allclose(found.token_logprobs[1:], values, atol=1e-4)
    for top, token, value in zip(
        found.top_logprobs[1:], found.tokens[1:], found.token_logprobs[1:], strict=True
    ):
        assert 2 <= len(top) <= 3 or len(set(top)) < 3  # two tokens may have one text
        assert top[token] >= value - 1e-6
    assert found.text_offset == sorted(found.text_offset)
    assert found.text_offset[count] == len(PROMPT)
    assert len(choice.text) >= found.text_offset[-1]
    (alone_choice,) = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=0, logprobs=2, echo=True
    ).choices
    assert alone_choice.text == PROMPT
    assert alone_choice.logprobs.tokens == found.tokens[:count]
    assert alone_choice.logprobs.token_logprobs == found.token_logprobs[:count]
    offsets = [
        offset
        for chunk in client.completions.create(
            model=NAME, prompt=PROMPT, temperature=0, max_tokens=12, logprobs=2, stream=True
        )
        for offset in chunk.choices[0].logprobs.text_offset
    ]
    assert [offset + len(PROMPT) for offset in offsets] == found.text_offset[count:]


def test_prompt_logprobs(served, client):
    ids = served.model.tokenizer.encode(PROMPT)
    scored = served.model.score(PROMPT)[0]
    (choice,) = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=1, extra_body={"prompt_logprobs": 2}
    ).choices
    first, *others = choice.prompt_logprobs
    assert first is None
    for id, value, entry in zip(ids[1:], scored.logprobs[1:], others, strict=True):
        said = entry[str(id)]
        assert said["logprob"] == pytest.approx(value, abs=1e-4)
        assert (said["rank"] <= 2) == (len(entry) == 2)
        assert {1, 2} <= {one["rank"] for one in entry.values()}
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_completion_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    assert len(answer.prompt_logprobs) == len(chat_ids(served))


def test_responses(served, client):
    turn = [{"role": "user", "content": "how said"}]
    (expected,) = alone(served, chat_ids(served, turn), seed=8)
    body = {
        "model": NAME,
        "input": "how said",
        "max_output_tokens": 12,
        "extra_body": {"seed": 8},
    }
    answer = client.responses.create(**body)
    assert answer.output_text == expected.text
    cut = str(expected.finish_reason) == "length"
    assert answer.status == ("incomplete" if cut else "completed")
    assert (answer.incomplete_details is not None) == cut
    assert answer.usage.output_tokens == len(expected.token_ids)
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "how said"}]}]
    assert client.responses.create(**{**body, "input": parts}).output_text == expected.text
    with client.responses.stream(**body) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected.text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{answer.status}"
    assert events[-1].response.output_text == expected.text
    told = client.responses.create(**body, instructions="be brief")
    (expected,) = alone(served, chat_ids(served), seed=8)
    assert told.output_text == expected.text


def test_response_logprobs(served, client):
    turn = [{"role": "user", "content": "how said"}]
    (expected,) = alone(served, chat_ids(served, turn), seed=8, logprobs=2)
    answer = client.responses.create(
        model=NAME,
        input="how said",
        max_output_tokens=12,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        extra_body={"seed": 8},
    )
    entries = answer.output[0].content[0].logprobs
    np.testing.assert_allclose([e.logprob for e in entries], expected.logprobs, atol=1e-4)
    assert {len(entry.top_logprobs) for entry in entries} == {2}


def test_embeddings(served, client):
    texts = ["the of and", "日本"]
    found = client.embeddings.create(model=NAME, input=texts)  # the client asks for base64
    vectors = np.asarray([one.embedding for one in found.data])
    assert vectors.shape == (2, served.model.config.d_model)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    floats = client.embeddings.create(model=NAME, input=texts[0], encoding_format="float")
    np.testing.assert_allclose(floats.data[0].embedding, vectors[0], atol=1e-6)
    ids = [served.model.tokenizer.encode(text) for text in texts]
    np.testing.assert_allclose(
        [one.embedding for one in client.embeddings.create(model=NAME, input=ids).data],
        vectors,
        atol=1e-6,
    )
    assert found.usage.prompt_tokens == sum(map(len, ids))
    short = client.embeddings.create(model=NAME, input=texts, dimensions=5)
    expected = vectors[:, :5] / np.linalg.norm(vectors[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose([one.embedding for one in short.data], expected, atol=1e-5)


def test_many_at_once_say_what_each_says_alone(served, rng):
    """Greedy and seeded requests of many lengths, over few slots, in random order."""
    prompts = [" ".join(rng.choice(["the", "of", "日本", "word", "😀"], size=n)) for n in
               rng.integers(1, 20, 24)]  # fmt: skip
    settings = [
        {"temperature": float(rng.choice([0.0, 0.9])), "seed": int(rng.integers(2**32))}
        for _ in prompts
    ]
    counts = [int(n) for n in rng.integers(1, 30, len(prompts))]
    expected = [
        alone(served, prompt, max_new_tokens=count, **one)[0]
        for prompt, count, one in zip(prompts, counts, settings, strict=True)
    ]

    async def ask(client, i):
        await asyncio.sleep(float(rng.random()) * 0.2)
        stream = await client.completions.create(
            model=NAME, prompt=prompts[i], max_tokens=counts[i], stream=True, **settings[i],
            extra_body={"return_token_ids": True},
        )  # fmt: skip
        text, ids = "", []
        async for chunk in stream:
            text += chunk.choices[0].text
            ids += chunk.choices[0].token_ids
        return text, ids

    async def everybody():
        url = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(len(prompts))))

    for (text, ids), one in zip(asyncio.run(everybody()), expected, strict=True):
        assert ids == list(one.token_ids)
        assert text == one.text


def test_refusals_are_the_clients_own_exceptions(served, client):
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.completions.create(model=NAME, prompt="a", temperature=math.pi * 100)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="not supported"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, verbosity="low")
    wrong = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong-key", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()
