"""Loading and writing the Hugging Face layout."""

import contextlib
import dataclasses
import json
import math
import os
import secrets
import struct
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from jaxinfer import quantize, weights
from jaxinfer.models import decoder, registry
from jaxinfer.models.family import Family, Source
from jaxinfer.weights import orbax
from jaxinfer.weights.loaded import default_dtype
from tests.models.small_configs import SMALL
from tests.weights import checkpoints

BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("stored", [np.float32, np.float16, BF16, np.float64])
@pytest.mark.parametrize("dtype", [None, "float32", jnp.bfloat16])
def test_equals_assembled_tensors(tmp_path, shards, stored, dtype):
    _, config, canonical = checkpoints.fresh(tmp_path, stored, shards)
    loaded = weights.load(tmp_path, dtype=dtype)
    target = np.dtype(np.float32) if dtype is None else jnp.dtype(dtype)
    wanted = decoder.assemble(config, {k: v.astype(target) for k, v in canonical.items()})
    assert checkpoints.equal(loaded.params, wanted)
    assert loaded.config == config
    assert loaded.folder == tmp_path


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bit_floats(tmp_path, name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    family, config, canonical = checkpoints.fresh(tmp_path, np.float32)
    narrow = {k: v.astype(dtype) for k, v in canonical.items()}
    files = checkpoints.file_tensors(family, config, narrow)
    label = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}[name]
    header, data = {}, b""
    for tensor, value in files.items():
        offsets = [len(data), len(data) + value.nbytes]
        header[tensor] = {"dtype": label, "shape": list(value.shape), "data_offsets": offsets}
        data += value.tobytes()
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    wanted = decoder.assemble(config, {k: v.astype(np.float32) for k, v in narrow.items()})
    assert checkpoints.equal(weights.load(tmp_path).params, wanted)


def test_tensors_larger_than_a_block_arrive_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxinfer.weights.safetensors_file.BLOCK", 300)
    monkeypatch.setattr("jaxinfer.weights.placement.ROWS_BYTES", 700)
    _, config, canonical = checkpoints.fresh(tmp_path, np.float16)
    wanted = decoder.assemble(config, {k: v.astype(np.float32) for k, v in canonical.items()})
    assert checkpoints.equal(weights.load(tmp_path).params, wanted)
    _check_rounded(weights.load(tmp_path, quantize="int8").params, wanted, "int8")


def test_fused_and_transposed_tensors(tmp_path, monkeypatch):
    """One file tensor for q, k, v (as Phi-3), maps stored `[in, out]` (as GPT-2)."""
    llama = registry.by_name("llama")

    def tensors(config):
        found = dict(llama.tensors(config))
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
        firsts = {"q": 0, "k": N * H, "v": (N + K) * H}
        for i in range(len(config.layers)):
            for part, first in firsts.items():
                name = f"model.layers.{i}.self_attn.qkv_proj.weight"
                source = Source(name, first, (N + 2 * K) * H, transposed=i == 1)
                found[f"layers.{i}.attention.{part}.w"] = source
            down = f"layers.{i}.mlp.down.w"
            found[down] = dataclasses.replace(found[down], transposed=True)
        return found

    family = Family("fused", ("FusedForCausalLM",), llama.read, tensors)
    monkeypatch.setattr(registry, "FAMILIES", (family,))
    hf = checkpoints.LLAMA | {"architectures": ["FusedForCausalLM"]}
    config = family.read(hf)
    canonical = checkpoints.random_tensors(config, BF16)
    files = checkpoints.file_tensors(family, config, canonical)
    assert files["model.layers.1.self_attn.qkv_proj.weight"].shape == (64, 128)
    checkpoints.write(tmp_path, hf, files)
    loaded = weights.load(tmp_path, dtype="bfloat16")
    wanted = decoder.assemble(config, canonical)
    assert checkpoints.equal(loaded.params, wanted)
    weights.save(tmp_path / "again", loaded.params, config, family, hf)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == files.keys()
    for name, value in files.items():
        assert np.array_equal(again[name], value)


def test_base_model_prefix_may_be_absent(tmp_path):
    _, config, canonical = checkpoints.fresh(tmp_path)
    path = tmp_path / "model.safetensors"
    bare = {name.removeprefix("model."): value for name, value in load_file(path).items()}
    save_file(bare, path)
    assert checkpoints.equal(weights.load(tmp_path).params, decoder.assemble(config, canonical))


@pytest.mark.parametrize("inside", ["model.language_model.", "language_model.model."])
def test_the_text_half_of_a_checkpoint_with_images(tmp_path, inside):
    """Both layouts that transformers has written; what belongs to images is passed over."""
    text = SMALL["gemma3"]
    hf = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    family = registry.family_of(hf)
    config = family.read(hf)
    canonical = checkpoints.random_tensors(config, np.float32)
    files = checkpoints.file_tensors(family, config, canonical)
    nested = {name.replace("model.", inside, 1): value for name, value in files.items()}
    outer = inside.partition("language_model.")[0]
    for name in ("vision_tower.head.probe", "multi_modal_projector.weight"):
        nested[outer + name] = np.ones(3, np.float32)
    checkpoints.write(tmp_path, hf, nested)
    assert checkpoints.equal(weights.load(tmp_path).params, decoder.assemble(config, canonical))
    checkpoints.write(tmp_path, hf, nested | {"audio_tower.probe": np.ones(3, np.float32)})
    with pytest.raises(weights.CheckpointError, match="unexpected 'audio_tower"):
        weights.load(tmp_path)


@pytest.mark.parametrize("name", SMALL)
def test_every_family_there_and_back(tmp_path, name):
    hf = SMALL[name]
    family = registry.family_of(hf)
    config = family.read(hf)
    canonical = checkpoints.random_tensors(config, BF16)
    files = checkpoints.file_tensors(family, config, canonical)
    checkpoints.write(tmp_path / "first", hf, files)
    loaded = weights.load(tmp_path / "first", dtype="bfloat16")
    assert checkpoints.equal(loaded.params, decoder.assemble(config, canonical))
    weights.save(tmp_path / "second", loaded.params, config, family, hf)
    again = load_file(tmp_path / "second" / "model.safetensors")
    assert again.keys() == files.keys()
    assert all(np.array_equal(again[name], files[name]) for name in files)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_prepared_to_run_are_saved_as_they_were(tmp_path, tied):
    family, config, canonical = checkpoints.fresh(tmp_path / "hf", BF16, tie_word_embeddings=tied)
    params = decoder.assemble(config, canonical)
    prepared = decoder.prepare(params)
    assert prepared.embed.dtype == np.float32
    hf, *_ = weights.read_config(tmp_path / "hf")
    weights.save(tmp_path / "again", prepared, config, family, hf)
    orbax.save(tmp_path / "orbax", prepared, config)
    for name in ("again", "orbax"):
        loaded = weights.load(tmp_path / name, dtype="bfloat16")
        assert checkpoints.equal(loaded.params, params)


def _tied(folder, head_of):
    """A tied checkpoint whose files repeat the head, made from the embedding by `head_of`."""
    _, config, canonical = checkpoints.fresh(folder, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = head_of(tensors["model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors")
    return decoder.assemble(config, canonical)


def test_a_tied_head_may_be_repeated_but_not_differ(tmp_path):
    wanted = _tied(tmp_path, lambda embed: embed.copy())
    loaded = weights.load(tmp_path)
    assert loaded.params.unembed is None
    assert checkpoints.equal(loaded.params, wanted)
    _tied(tmp_path, lambda embed: -embed)
    with pytest.raises(weights.CheckpointError, match="tie_word_embeddings"):
        weights.load(tmp_path)
    _tied(tmp_path, lambda embed: embed[1:].copy())
    with pytest.raises(weights.CheckpointError, match=r"tied .* \[258, 64\]"):
        weights.load(tmp_path)


def test_ignored_tensors_are_ignored(tmp_path):
    _, config, canonical = checkpoints.fresh(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert checkpoints.equal(weights.load(tmp_path).params, decoder.assemble(config, canonical))


def _check_rounded(params, wanted, method):
    found = jax.tree.leaves(params, is_leaf=decoder.is_leaf)
    rounded = 0
    recipe = quantize.Recipe(method)
    for i, (value, leaf) in enumerate(zip(found, jax.tree.leaves(wanted), strict=True)):
        if isinstance(value, quantize.QTensor):
            head = i == len(found) - 1 or (i == 0 and wanted.unembed is None)
            form = recipe.form(leaf.shape[1], head=head)
            rounder = quantize.Rounder(recipe, form)
            if rounder.surveys:
                rounder.survey("whole", 0, np.asarray(leaf))
            assert value.method == form.method
            for name, rows in rounder.round("whole", 0, np.asarray(leaf)).items():
                assert np.array_equal(getattr(value, name), rows), name
            rounded += 1
        else:
            assert checkpoints.equal(value, leaf)
    assert rounded == sum(leaf.ndim == 2 for leaf in jax.tree.leaves(wanted))


@pytest.mark.parametrize("method", quantize.METHODS)
def test_quantize_while_loading(tmp_path, method):
    _, config, canonical = checkpoints.fresh(tmp_path, BF16)
    wanted = decoder.assemble(config, {k: v.astype(np.float32) for k, v in canonical.items()})
    _check_rounded(weights.load(tmp_path, quantize=method).params, wanted, method)


def test_weights_that_a_dtype_cannot_hold(tmp_path):
    checkpoints.fresh(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    down[3, 4] = 1e6
    save_file(tensors, tmp_path / "model.safetensors")
    weights.load(tmp_path, dtype="bfloat16")
    with pytest.raises(weights.CheckpointError, match=r"65504.*bfloat16"):
        weights.load(tmp_path, dtype="float16")
    down[3, 4] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    weights.load(tmp_path)
    with pytest.raises(weights.CheckpointError, match=r"layers\.1\.mlp\.down\.w.*finite"):
        weights.load(tmp_path, quantize="int8")


@pytest.mark.parametrize("dtype", ["int8", "float64", "half-ish", np.int32])
def test_dtypes_that_are_not_offered(tmp_path, dtype):
    checkpoints.fresh(tmp_path)
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        weights.load(tmp_path, dtype=dtype)
    with pytest.raises(ValueError, match="int8, int4, fp8, w8a8, llm_int8"):
        weights.load(tmp_path, quantize="int3")


def test_progress_reaches_the_total(tmp_path, capfd):
    checkpoints.fresh(tmp_path)
    calls = []
    loaded = weights.load(
        tmp_path, show_progress=True, progress=lambda done, total: calls.append((done, total))
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    assert calls[-1] == (size, size)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert capfd.readouterr() == ("", "")


def test_describe_reads_headers_only(tmp_path):
    _, _, canonical = checkpoints.fresh(tmp_path, BF16, shards=2)
    files = sorted(tmp_path.glob("*.safetensors"))
    for path in files:
        header = path.read_bytes()[: 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]]
        size = path.stat().st_size
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(size)
    found = weights.describe(tmp_path)
    count = sum(value.size for value in canonical.values())
    assert found["parameters"] == count
    assert found["stored_bytes"] == {"BF16": 2 * count}
    assert found["bytes"] == 4 * count
    assert found["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert weights.describe(tmp_path, cache_dtype="bfloat16")["kv_bytes_per_token"] == 256
    assert found["files"] == {path.name: path.stat().st_size for path in files}
    assert (found["layers"], found["vocabulary"], found["context"]) == (2, 259, 128)
    assert found["architecture"] == "LlamaForCausalLM"
    json.dumps(found)


@pytest.mark.parametrize("limit", [10**9, 30_000])
@pytest.mark.parametrize("shards", [1, 2])
def test_save_gives_the_same_files_back(tmp_path, limit, shards):
    family, config, canonical = checkpoints.fresh(tmp_path / "first", BF16)
    (tmp_path / "first" / "tokenizer.json").write_text("{}")
    hf, *_ = weights.read_config(tmp_path / "first")
    params = decoder.assemble(config, canonical, shards)
    weights.save(
        tmp_path / "second",
        params,
        config,
        family,
        hf,
        max_shard_bytes=limit,
        tokenizer_from=tmp_path / "first",
    )
    found = {}
    files = sorted((tmp_path / "second").glob("*.safetensors"))
    for path in files:
        part = load_file(path)
        assert sum(value.nbytes for value in part.values()) <= limit or len(part) == 1
        found |= part
    assert (len(files) > 1) == (limit < 10**9)
    wanted = load_file(tmp_path / "first" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert checkpoints.equal(
        weights.load(tmp_path / "second", dtype="bfloat16").params,
        decoder.assemble(config, canonical),
    )
    assert (
        json.loads((tmp_path / "second" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    )
    assert (tmp_path / "second" / "tokenizer.json").read_text() == "{}"


def test_save_refuses_what_it_cannot_write(tmp_path):
    family, config, canonical = checkpoints.fresh(tmp_path / "first")
    hf, *_ = weights.read_config(tmp_path / "first")
    params = decoder.assemble(config, canonical)
    with pytest.raises(ValueError, match="needs to describe the model"):
        weights.save(tmp_path / "second", params, config, family, hf | {"rms_norm_eps": 0.1})
    rounded = weights.load(tmp_path / "first", quantize="int8").params
    with pytest.raises(ValueError, match="unquantized"):
        weights.save(tmp_path / "second", rounded, config, family, hf)
    with pytest.raises(weights.CheckpointError, match="new or empty"):
        weights.save(tmp_path / "first", params, config, family, hf)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]


def test_a_failed_save_leaves_nothing(tmp_path):
    family, config, canonical = checkpoints.fresh(tmp_path / "first")
    hf, *_ = weights.read_config(tmp_path / "first")
    params = decoder.assemble(config, canonical)
    params.norm.scale.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        weights.save(tmp_path / "second", params, config, family, hf)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]


@pytest.mark.parametrize(
    ("platform", "stored", "wanted"),
    [
        ("cpu", BF16, np.float32),
        ("gpu", BF16, BF16),
        ("tpu", np.float16, np.float16),
        ("tpu", np.float64, np.float32),
        ("gpu", ml_dtypes.float8_e4m3fn, BF16),
    ],
)
def test_the_default_dtype_follows_the_platform(monkeypatch, platform, stored, wanted):
    monkeypatch.setattr("jaxinfer.weights.loaded.platform", lambda: platform)
    assert default_dtype(np.dtype(stored)) == wanted


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    checkpoints.fresh(tmp_path)
    reader, writer = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        weights.load(tmp_path)
        terminal.write("mark")
        weights.load(tmp_path, show_progress=True)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(reader, 1 << 16):
            shown += part
    os.close(reader)
    assert shown.startswith(b"mark")
    assert b"loading weights" in shown


@pytest.mark.parametrize("name", ["llama3", "phi3-long", "gemma3", "gpt2"])
def test_transformers_reads_what_we_write(tmp_path, name):
    hf = SMALL[name]
    family = registry.family_of(hf)
    config = family.read(hf)
    params = decoder.init(config, jax.random.key(secrets.randbits(31)))
    weights.save(tmp_path, params, config, family, hf)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = model.state_dict()
    wanted = checkpoints.file_tensors(family, config, decoder.canonical(config, params))
    for tensor, value in wanted.items():
        assert np.array_equal(state[tensor].numpy(), value), tensor


def test_parameter_count_of_a_tied_head(tmp_path):
    _, config, _ = checkpoints.fresh(tmp_path, tie_word_embeddings=True)
    shapes = decoder.canonical_shapes(config).values()
    assert weights.describe(tmp_path)["parameters"] == sum(map(math.prod, shapes))
