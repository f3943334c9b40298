"""jaxinfer score: log-probabilities beside those of transformers."""

import numpy as np
import torch
from transformers import LlamaForCausalLM

from jaxinfer.cli import output

TEXT = "assert ran.code == 0, naïve"


def reference(folder, ids):
    """log p(token | tokens before it) for all tokens but the first."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits[:-1], -1)[torch.arange(len(ids) - 1), ids[1:]].numpy()


def test_scores_are_those_of_transformers(run, folder, model):
    found = run("score", f"--model={folder}", "--prompt", TEXT, "--json").json
    assert found["token_ids"] == model.tokenizer.encode(TEXT)
    assert found["logprobs"][0] is None
    expected = reference(folder, found["token_ids"])
    np.testing.assert_allclose(found["logprobs"][1:], expected, atol=2e-3)
    np.testing.assert_allclose(found["mean_logprob"], expected.mean(), atol=2e-3)


def test_ids_need_no_tokenizer_and_one_id_has_no_probability(run, bare, folder):
    ids = [9, 8, 7, 300]
    found = run("score", f"--model={bare}", "--token_ids=9,8,7,300", "--json").json
    np.testing.assert_allclose(found["logprobs"][1:], reference(folder, ids), atol=2e-3)
    found = run("score", f"--model={bare}", "--token_ids=9", "--json").json
    assert found == {"token_ids": [9], "logprobs": [None], "mean_logprob": None}
    assert run("score", f"--model={bare}", "--token_ids=9").code == 0


def test_the_table_holds_the_same_numbers(run, folder):
    found = run("score", f"--model={folder}", TEXT, "--json").json
    ran = run("score", f"--model={folder}", TEXT)
    head, *rows = [line.split("\t") for line in ran.out.splitlines()]
    assert head == ["token", "logprob", "text"]
    assert [int(row[0]) for row in rows] == found["token_ids"]
    np.testing.assert_allclose(
        [float(row[1]) for row in rows[1:]], found["logprobs"][1:], atol=1e-4
    )
    assert f"{len(rows)} tokens" in ran.err


def test_several_texts(run, folder):
    found = run("score", f"--model={folder}", "--prompt=ab", "--prompt=import re", "--json").json
    one = run("score", f"--model={folder}", "--prompt=import re", "--json").json
    assert found["scores"][1]["token_ids"] == one["token_ids"]
    assert found["token_ids"] == found["scores"][0]["token_ids"]


def test_a_terminal_shows_coloured_text_too(run, folder, monkeypatch):
    monkeypatch.setattr(output, "is_terminal", lambda stream: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = run("score", f"--model={folder}", TEXT).out.splitlines()[0]
    assert "\x1b[" in coloured
