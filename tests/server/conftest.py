"""One server for all tests: a fresh tiny model with a byte-level tokenizer, keys, few slots."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import openai
import pytest

from jaxinfer import Model, server
from jaxinfer.scheduler import Limits
from jaxinfer.server import Service
from jaxinfer.tokenizer import Tokenizer
from tests import fresh_tokenizers, tiny

KEY, OTHER_KEY, ADMIN_KEY = "a-key-for-tests", "another-key-for-tests", "a-key-for-operators"
HEADERS = {"Authorization": f"Bearer {KEY}"}
NAME = "tiny/model"
CONTEXT = 128
SLOTS, QUEUE = 4, 60
LIMITS = Limits(slots=SLOTS, max_length=CONTEXT, chunk=32, budget=64, decode_steps=4)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}{{ tail }}"
)


@dataclass(frozen=True)
class Served:
    """A running server and the model alone."""

    url: str
    model: Model
    service: Service

    def post(self, path: str, key: str | None = KEY, **body) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=300)

    def get(self, path: str, key: str | None = KEY) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.get(self.url + path, headers=headers, timeout=300)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Model:
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    backend = fresh_tokenizers.byte_level(np.random.default_rng(seed), ["<s>", "</s>"])
    folder = fresh_tokenizers.write_folder(
        tmp_path_factory.mktemp("tokenizer"),
        backend,
        {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE},
        "llama",
    )
    tokenizer = Tokenizer.load(folder)
    config = tiny.config(vocab_size=tokenizer.vocab_size, max_position=CONTEXT)
    return Model(tiny.params(config, seed), config, tokenizer, max_slots=SLOTS, chunk=32)


@pytest.fixture(scope="session")
def served(model) -> Iterator[Served]:
    settings = server.Settings(
        name=NAME, api_keys=(KEY, OTHER_KEY), admin_key=ADMIN_KEY, max_queue=QUEUE, grace_s=5
    )
    service = server.build(model, settings, LIMITS, warm_up=())
    with server.background(service) as url:
        yield Served(url, model, service)
    assert not service.loop.tickets


@pytest.fixture
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client
