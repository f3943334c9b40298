"""Malformed checkpoints: one clear error each, and never a crash, a hang or half a model."""

import re

import numpy as np
import pytest

from jaxinfer import weights
from jaxinfer.models import decoder
from tests.weights import checkpoints, malformed


@pytest.mark.parametrize("case", malformed.CASES, ids=lambda case: case.name)
def test_one_clear_error(case, tmp_path):
    checkpoints.fresh(tmp_path, shards=case.shards)
    weights.load(tmp_path)
    case.damage(tmp_path)
    with pytest.raises(weights.CheckpointError) as caught:
        weights.load(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "\n" not in message
    assert len(message) < 2000
    for words in case.says:
        assert words in message
    if case.name not in ("size absurd", "missing and unexpected"):
        with pytest.raises(weights.CheckpointError, match=re.escape(message)):
            weights.describe(tmp_path)


def test_random_header_bytes(tmp_path):
    """Bytes of the length and of the header changed at random: an error, or the same tensors."""
    seed = np.random.SeedSequence().entropy
    rng = np.random.default_rng(seed)
    _, config, canonical = checkpoints.fresh(tmp_path, num_hidden_layers=1)
    wanted = decoder.assemble(config, canonical)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(0, 8) if rng.random() < 0.2 else rng.integers(8, end)
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            loaded = weights.load(tmp_path)
        except weights.CheckpointError:
            refused += 1
        else:
            assert checkpoints.equal(loaded.params, wanted), seed
    assert refused > 200, seed
    path.write_bytes(whole)
    assert checkpoints.equal(weights.load(tmp_path).params, wanted)


def test_a_file_that_shrinks_after_the_check_is_an_error(tmp_path, monkeypatch):
    checkpoints.fresh(tmp_path)
    path = tmp_path / "model.safetensors"

    def shrink(done, total):
        path.write_bytes(path.read_bytes()[:3000])

    with pytest.raises(weights.CheckpointError, match="shrank"):
        weights.load(tmp_path, progress=shrink)


def test_a_pickle_is_never_opened(tmp_path):
    checkpoints.fresh(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for given in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(weights.CheckpointError, match="can run code"):
            weights.load(given)
