"""jaxinfer info: the numbers of a checkpoint, from transformers' side."""

import pytest
import torch
from transformers import LlamaForCausalLM

from jaxinfer.cli.info import size


def test_numbers(run, folder):
    found = run("info", folder, "--json").json
    reference = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    count = sum(p.numel() for p in reference.parameters())
    assert found["family"] == "llama"
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["parameters"] == count
    assert found["bytes"] == 4 * count
    assert (
        found["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    )  # k and v, layers, heads, head size, float32
    assert found["layout"] == "huggingface"
    assert found["files"] == {"model.safetensors": (folder / "model.safetensors").stat().st_size}
    assert run("info", folder, "--dtype=bfloat16", "--json").json["bytes"] == 2 * count


def test_the_table_says_the_same(run, folder):
    found = run("info", folder, "--json").json
    rows = dict(
        line.split(maxsplit=1) for line in run("info", f"--model={folder}").out.splitlines()
    )
    assert rows["parameters"] == f"{found['parameters']:,}"
    assert rows["family"] == "llama (LlamaForCausalLM)"


SIZES = {
    0: "0 bytes",
    1023: "1023 bytes",
    1024: "1.0 KiB",
    1536: "1.5 KiB",
    2**40: "1.0 TiB",
    2**52: "4096.0 TiB",
}


@pytest.mark.parametrize(("count", "words"), SIZES.items())
def test_sizes(count, words):
    assert size(count) == words
