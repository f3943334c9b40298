"""jaxinfer perplexity beside a computation that scores every token on its own."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM


def slow(folder, ids, window, stride):
    """Nats of all tokens but the first, each from its own context and with nothing shared."""
    model, nats = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), 0.0
    for i in range(1, len(ids)):
        ends = min(window, len(ids))
        while ends <= i:
            ends = min(ends + stride, len(ids))
        with torch.no_grad():
            last = (
                model(torch.tensor([ids[max(0, ends - window) : i]])).logits[0, -1].double().numpy()
            )
        nats -= last[ids[i]] - np.log(np.exp(last - last.max()).sum()) - last.max()
    return nats


@pytest.mark.parametrize("flags", [(), ("--window=16", "--stride=5")])
def test_perplexity_is_that_of_the_slow_computation(run, folder, model, tmp_path, flags):
    text = "import json\n\ndef naïve(x):\n    return x + 1\n"
    (tmp_path / "text").write_text(text, encoding="utf-8")
    found = run(
        "perplexity", f"--model={folder}", f"--file={tmp_path / 'text'}", *flags, "--json"
    ).json
    ids = model.tokenizer.encode(text)
    assert len(ids) > 20
    nats = slow(folder, ids, found["window"], found["stride"])
    size = len(text.encode()) - len(model.tokenizer.decode(ids[:1]).encode())
    assert found["tokens"] == len(ids) - 1
    assert found["bytes"] == size
    assert found["perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-3)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-3)
    assert (found["window"], found["stride"]) == ((16, 5) if flags else (256, 128))


def test_a_table_without_json(run, folder, tmp_path):
    (tmp_path / "text").write_text("some words")
    ran = run("perplexity", tmp_path / "text", f"--model={folder}")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()][:3] == [
        "perplexity",
        "bits_per_byte",
        "tokens",
    ]
