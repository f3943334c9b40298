"""Presets: read by the families' own code, with as many parameters as the published checkpoints."""

import math

import pytest

from jaxinfer.models import decoder, presets
from tests.models import configs

PUBLISHED = {  # elements in the hub's safetensors, a tied head once, Gemma 3 without its vision tower
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
}


def test_every_preset_is_counted():
    assert set(PUBLISHED) == set(presets.PRESETS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    config = presets.find(name.upper())
    count = sum(math.prod(shape) for shape in decoder.canonical_shapes(config).values())
    assert count == PUBLISHED[name]


SAME = {
    "Llama-2-7b": "llama-2-7b",
    "Llama-3.1-8B": "llama-3.1-8b",
    "Llama-3.2-1B": "llama-3.2-1b",
    "SmolLM2-360M": "smollm2-360m",
    "Mistral-7B-v0.3": "mistral-7b-v0.3",
    "Qwen2.5-7B": "qwen2.5-7b",
    "Qwen3-8B": "qwen3-8b",
    "gemma-2-9b": "gemma-2-9b",
    "gemma-3-1b": "gemma-3-1b",
    "gemma-3-4b": "gemma-3-4b",
    "OLMo-2-1124-7B": "olmo-2-7b",
}


@pytest.mark.parametrize("real", SAME)
def test_a_preset_is_what_the_whole_file_says(real):
    hf, _ = configs.REAL[real]
    assert presets.find(SAME[real]) == presets.family_of(hf).read(hf)


def test_names():
    assert presets.find("llama-9") is None
    assert presets.near("lama-3.1-8b")[0] == "llama-3.1-8b"
    assert presets.near("Qwen/Qwen3-8B-Instruct")[0] == "qwen3-8b"
    assert presets.near("gemma-3")[0].startswith("gemma-3")
    assert presets.near("zzz") == []
