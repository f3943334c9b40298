"""A tiny random checkpoint, and commands run in this process."""

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import jaxinfer
from jaxinfer.cli import main

CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def run(capfd):
    """run("generate", "--prompt=x") -> Ran."""

    def run(*argv: str) -> Ran:
        capfd.readouterr()
        code = main.run(list(map(str, argv)))
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A Llama checkpoint with random weights, a tokenizer and a chat template."""
    seed = secrets.randbits(32)
    print(f"checkpoint {seed=}")
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=331,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(Path(__file__).read_text().splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=331,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bare(folder, tmp_path_factory) -> Path:
    """The same weights without a tokenizer."""
    bare = tmp_path_factory.mktemp("bare")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(folder / name, bare)
    return bare


@pytest.fixture(scope="session")
def base(folder, tmp_path_factory) -> Path:
    """The same model without a chat template."""
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(folder, base, dirs_exist_ok=True)
    (base / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>"})
    )
    return base


@pytest.fixture(scope="session")
def model(folder) -> jaxinfer.Model:
    return jaxinfer.load(folder, progress=False)
