"""Saving and restoring with Orbax."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import quantize, weights
from jaxinfer.config import LayerConfig, ModelConfig, Rope
from jaxinfer.models import decoder
from jaxinfer.weights import description, orbax
from tests.weights import checkpoints


@pytest.fixture
def folder(tmp_path):
    checkpoints.fresh(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text('{"version": "1.0"}')
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", [None, *quantize.METHODS])
def test_round_trip(folder, dtype, method):
    loaded = weights.load(folder / "hf", dtype=dtype, quantize=method)
    orbax.save(folder / "saved", loaded.params, loaded.config, tokenizer_from=folder / "hf")
    again = weights.load(folder / "saved", dtype=dtype)
    assert checkpoints.equal(again.params, loaded.params)
    assert jax.tree.structure(again.params) == jax.tree.structure(loaded.params)
    assert again.config == loaded.config
    assert again.folder == folder / "saved"
    assert (folder / "saved" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert sorted(path.name for path in folder.iterdir()) == ["hf", "saved"]


@pytest.mark.parametrize("method", [None, "int8"])
@pytest.mark.parametrize("shards", [2, 4])
def test_another_number_of_shards_is_laid_out_anew(folder, method, shards):
    one = weights.load(folder / "hf", quantize=method)
    many = _laid_out(one, shards, method)
    orbax.save(folder / "saved", many, one.config)
    assert checkpoints.equal(weights.load(folder / "saved").params, one.params)


def _laid_out(loaded, shards, method):
    """The parameters for `shards` shards, on one device, the slow way."""
    family, config = weights.read_config(loaded.folder)[1:]
    exact = weights.load(loaded.folder).params
    params = decoder.assemble(config, decoder.canonical(config, exact), shards)
    assert family.name == config.family
    if method is None:
        return params

    def rounded(leaf, value):
        if not leaf.quantizable:
            return value
        return quantize.QTensor(*map(jnp.asarray, quantize.round_rows(np.asarray(value))), method)

    layout = decoder.layout(config, shards)
    return jax.tree.map(rounded, layout, params, is_leaf=decoder.is_leaf)


def test_the_dtype_may_change(folder):
    loaded = weights.load(folder / "hf", dtype="bfloat16")
    orbax.save(folder / "saved", loaded.params, loaded.config)
    wanted = jax.tree.map(lambda x: x.astype(jnp.float32), loaded.params)
    assert checkpoints.equal(weights.load(folder / "saved").params, wanted)


def test_int8_may_run_as_w8a8_but_not_be_made_here(folder):
    loaded = weights.load(folder / "hf", quantize="int8")
    orbax.save(folder / "saved", loaded.params, loaded.config)
    again = weights.load(folder / "saved", quantize="w8a8")
    assert again.params.embed.method == "w8a8"
    assert checkpoints.equal(again.params.embed.values, loaded.params.embed.values)
    orbax.save(folder / "plain", weights.load(folder / "hf").params, loaded.config)
    with pytest.raises(weights.CheckpointError, match="quantize while converting"):
        weights.load(folder / "plain", quantize="int8")


@pytest.mark.parametrize("method", [None, "int8"])
def test_describe(folder, method):
    loaded = weights.load(folder / "hf", quantize=method)
    orbax.save(folder / "saved", loaded.params, loaded.config)
    found, wanted = weights.describe(folder / "saved"), weights.describe(folder / "hf")
    assert found["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    assert (found["layout"], found["quantize"]) == ("orbax", method)
    assert set(found) == set(wanted)
    for name in set(found) - {"layout", "quantize", "bytes", "stored_bytes", "files"}:
        assert found[name] == wanted[name]
    assert found["files"]["_METADATA"] == (folder / "saved/params/_METADATA").stat().st_size


def _json(change):
    def damage(folder):
        path = folder / orbax.SIDE_FILE
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return damage


def _arrays(folder):
    return [path for path in (folder / "params").rglob("*") if path.parent.name == "d"]


def _truncate(folder):
    path = _arrays(folder)[0]
    path.write_bytes(path.read_bytes()[:7])


def _break_metadata(folder):
    path = folder / "params" / "_METADATA"
    path.write_bytes(b"{" * path.stat().st_size)


DAMAGES = {
    "no arrays": (lambda f: shutil.rmtree(f / "params"), r"_METADATA \(None of"),
    "a file lost": (lambda f: (f / "params" / "manifest.ocdbt").unlink(), r"manifest.*None of"),
    "a file truncated": (_truncate, r"/d/.* \(7 of"),
    "metadata broken": (_break_metadata, "cannot read the Orbax arrays"),
    "files no object": (_json(lambda v: v.update(files=[])), "files needs an object"),
    "not JSON": (lambda f: (f / orbax.SIDE_FILE).write_text("{"), "valid JSON"),
    "another version": (_json(lambda v: v.update(version=2)), "version needs to be 1, got 2"),
    "unknown key": (_json(lambda v: v.update(colour=1)), "got colour"),
    "unknown config key": (_json(lambda v: v["config"].update(colour=1)), r"config needs.*colour"),
    "missing key": (_json(lambda v: v["config"].pop("d_ff")), "d_ff, which is missing"),
    "a string for a size": (_json(lambda v: v["config"].update(d_ff="9")), "d_ff needs int"),
    "a bool for a size": (_json(lambda v: v["config"].update(d_ff=True)), "d_ff needs int"),
    "negative size": (_json(lambda v: v["config"].update(d_ff=-1)), "d_ff needs a positive"),
    "unknown norm": (_json(lambda v: v["config"].update(norm="rem")), "norm needs one of rms"),
    "layers no list": (_json(lambda v: v["config"].update(layers=3)), "layers needs a list"),
    "layer no object": (_json(lambda v: v["config"].update(layers=[3])), "needs an object"),
    "another width": (_json(lambda v: v["config"].update(d_model=32)), "embed.*32.*64"),
    "fewer layers": (_json(lambda v: v["config"]["layers"].pop()), r"unexpected 'layers\.1"),
    "another dtype": (_json(lambda v: v.update(dtype="bfloat16")), "bfloat16.*float32"),
    "unknown dtype": (_json(lambda v: v.update(dtype="int8")), "dtype needs one of"),
    "another method": (_json(lambda v: v.update(quantize="int8")), "missing 'embed.values'"),
    "no shards": (_json(lambda v: v.update(shards=0)), "shards needs to be"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_clear_error(folder, name):
    damage, says = DAMAGES[name]
    loaded = weights.load(folder / "hf")
    orbax.save(folder / "saved", loaded.params, loaded.config)
    damage(folder / "saved")
    with pytest.raises(weights.CheckpointError, match=says) as caught:
        weights.load(folder / "saved")
    assert str(folder / "saved") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_save_is_whole_or_nothing(folder, monkeypatch):
    loaded = weights.load(folder / "hf")
    with pytest.raises(weights.CheckpointError, match="new or empty"):
        orbax.save(folder / "hf", loaded.params, loaded.config)
    with pytest.raises(ValueError, match="another structure"):
        orbax.save(folder / "saved", loaded.params, loaded.config.replace(tied=True))
    monkeypatch.setattr(orbax, "to_json", _fail)
    with pytest.raises(OSError, match="disk full"):
        orbax.save(folder / "saved", loaded.params, loaded.config)
    loaded.params.norm.scale.delete()
    with pytest.raises(ValueError, match="deleted"):
        orbax.save(folder / "saved", loaded.params, loaded.config)
    assert sorted(path.name for path in folder.iterdir()) == ["hf"]


def _fail(value):
    raise OSError("disk full")


def test_arrays_overwritten_in_place(folder):
    """In a process of its own: reads that Orbax leaves behind would fail a later test."""
    loaded = weights.load(folder / "hf")
    orbax.save(folder / "saved", loaded.params, loaded.config)
    for path in _arrays(folder / "saved"):
        path.write_bytes(b"\xff" * path.stat().st_size)
    program = """
import sys
from jaxinfer import weights
try:
    weights.load(sys.argv[1])
except weights.CheckpointError as error:
    print(error)
"""
    arguments = [sys.executable, "-c", program, str(folder / "saved")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert "saved/params: cannot read the Orbax arrays" in done.stdout
    assert done.stdout.count("\n") == 1


def test_every_field_of_a_config_survives():
    half = tuple(float(x) for x in np.random.default_rng().random(8))
    rope = Rope(
        rotary_dim=16,
        scaling="longrope",
        original_max_position=64,
        short_factor=half,
        long_factor=half[::-1],
    )
    config = ModelConfig(
        family="llama",
        vocab_size=259,
        d_model=64,
        d_ff=112,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        layers=(LayerConfig(rope=rope), LayerConfig(window=7), LayerConfig()),
        max_position=128,
        attention_softcap=30.0,
        norm_style="sandwich",
    )
    text = json.dumps(description.to_json(config))
    assert description.from_json(ModelConfig, json.loads(text), "config") == config
