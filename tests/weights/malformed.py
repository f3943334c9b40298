"""Ways to break a good checkpoint, each with what its error must say."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


@dataclass(frozen=True)
class Case:
    """damage(folder) breaks the checkpoint; the error must hold every word of `says`."""

    name: str
    damage: Callable[[Path], None]
    says: tuple[str, ...]
    shards: int = 1


def raw(folder: Path) -> tuple[dict, bytes]:
    """The header and the data of the single file."""
    content = (folder / SINGLE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(folder: Path, header: dict | str | bytes, data: bytes) -> None:
    """Write the single file from its parts."""
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + data)


def header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change the parsed header, keep the data."""

    def damage(folder):
        parsed, data = raw(folder)
        change(parsed)
        put(folder, parsed, data)

    return damage


def text(change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    """Change the header's text, keep the data."""

    def damage(folder):
        parsed, data = raw(folder)
        put(folder, change(json.dumps(parsed)), data)

    return damage


def content(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the whole file."""
    return lambda folder: (folder / SINGLE).write_bytes(change((folder / SINGLE).read_bytes()))


def tensors(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change the tensors and write a sound file again."""

    def damage(folder):
        found = load_file(folder / SINGLE)
        change(found)
        save_file(found, folder / SINGLE)

    return damage


def config(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change config.json."""
    return _json("config.json", change)


def index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change the index of the shards."""
    return _json(INDEX, change)


def _json(name, change):
    def damage(folder):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return damage


def _absurd_header(whole: bytes) -> bytes:
    return struct.pack("<Q", 1 << 62) + whole[8:]


def _long_header(whole: bytes) -> bytes:
    return struct.pack("<Q", len(whole)) + whole[8:]


def _overlap(parsed):
    # NORM moves onto whatever lies at the start, and takes nothing of its own
    parsed[NORM]["data_offsets"] = [0, parsed[NORM]["shape"][0] * 4]


def _hole(folder):
    parsed, data = raw(folder)
    last = max(parsed, key=lambda name: parsed[name]["data_offsets"][1])
    parsed[last]["data_offsets"] = [n + 64 for n in parsed[last]["data_offsets"]]
    start = parsed[last]["data_offsets"][0] - 64
    put(folder, parsed, data[:start] + bytes(64) + data[start:])


def _renamed(found):
    found["model.normal.weight"] = found.pop(NORM)


def _retyped(found):
    found[NORM] = found[NORM].astype(np.int32)


def _reshaped(found):
    found[NORM] = found[NORM][:-1].copy()


def _pickle(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def _lonely(folder):
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")


def _shard(folder) -> Path:
    return folder / "model-00002-of-00002.safetensors"


def _moved(value):
    files = {NORM: "model-00001-of-00002.safetensors", "other": "model-00002-of-00002.safetensors"}
    value["weight_map"][NORM] = next(f for f in files.values() if f != value["weight_map"][NORM])


def _pointing(where: str) -> Callable[[dict], None]:
    return lambda value: value["weight_map"].update({NORM: where})


def _set(key, value) -> Callable[[dict], None]:
    return lambda found: found.update({key: value})


def _norm(key, value) -> Callable[[dict], None]:
    return lambda parsed: parsed[NORM].update({key: value})


def _extra(found):
    found["model.layers.0.self_attn.extra.weight"] = np.zeros(3, np.float32)


DEEP = '{"a":' + "[" * 200_000

CASES = (
    # the file
    Case("empty file", content(lambda whole: b""), ("at least 8 bytes", "got 0")),
    Case("five bytes", content(lambda whole: whole[:5]), ("at least 8 bytes", "got 5")),
    Case("truncated data", content(lambda whole: whole[:-9]), ("truncated", "data_offsets")),
    Case("truncated header", content(lambda whole: whole[:100]), ("header", "truncated")),
    Case("bytes at the end", content(lambda whole: whole + b"more"), ("fill the file", "got 4")),
    Case("absurd header length", content(_absurd_header), ("header of 4611686018427387904",)),
    Case("header as long as the file", content(_long_header), ("header", "truncated")),
    Case("a zip of pickles", content(lambda whole: b"PK\3\4" + whole), ("header", "fetch")),
    Case("a folder", lambda f: ((f / SINGLE).unlink(), (f / SINGLE).mkdir()), ("cannot read",)),
    # the header
    Case("header not JSON", text(lambda t: t[:-1]), ("JSON",)),
    Case("header not UTF-8", text(lambda t: b'{"\xff\xfe": 1}'), ("JSON", "utf-8")),
    Case("header a list", text(lambda t: "[]"), ("JSON object", "[]")),
    Case("header too deep", text(lambda t: DEEP), ("JSON",)),
    Case("header with NaN", text(lambda t: '{"a": NaN}'), ("NaN",)),
    Case("huge number", text(lambda t: '{"a": ' + "9" * 5000 + "}"), ("JSON",)),
    Case("repeated key", text(lambda t: '{"a": 1, "a": 2}'), ("'a'", "twice")),
    Case("metadata not strings", header(_set("__metadata__", {"format": 1})), ("__metadata__",)),
    Case("entry not an object", header(_set(NORM, [1])), (NORM, "dtype, shape")),
    Case("entry with more keys", header(_norm("stride", 1)), (NORM, "exactly")),
    Case("unknown dtype", header(_norm("dtype", "F31")), (NORM, "F31", "BF16")),
    Case("dtype not a string", header(_norm("dtype", {})), (NORM, "dtype")),
    Case("negative size", header(_norm("shape", [-64])), (NORM, "[-64]", "non-negative")),
    Case("fractional size", header(_norm("shape", [64.0])), (NORM, "non-negative integers")),
    Case("boolean size", header(_norm("shape", [True])), (NORM, "non-negative integers")),
    Case("overflowing shape", header(_norm("shape", [1 << 40, 1 << 40])), (NORM, "bytes, got 256")),
    Case("shape is no list", header(_norm("shape", "64")), (NORM, "shape")),
    Case("offsets past the end", header(_norm("data_offsets", [0, 1 << 50])), (NORM, "within")),
    Case("offsets reversed", header(_norm("data_offsets", [256, 0])), (NORM, "within")),
    Case("offsets negative", header(_norm("data_offsets", [-256, 0])), (NORM, "non-negative")),
    Case("three offsets", header(_norm("data_offsets", [0, 256, 512])), (NORM, "two")),
    Case("wrong number of bytes", header(_norm("dtype", "F16")), (NORM, "128 bytes, got 256")),
    Case("overlapping tensors", header(_overlap), ("overlaps",)),
    Case("hole between tensors", _hole, ("hole",)),
    # the tensors
    Case("missing and unexpected", tensors(_renamed), ("missing", NORM, "unexpected", "normal")),
    Case("extra tensor", tensors(_extra), ("unexpected", "self_attn.extra.weight")),
    Case("wrong shape", tensors(_reshaped), (NORM, "[64]", "[63]")),
    Case("integers as weights", tensors(_retyped), (NORM, "I32", "BF16")),
    # the index
    Case("index not JSON", lambda f: (f / INDEX).write_text("{"), (INDEX, "JSON"), 2),
    Case("index without map", index(lambda v: v.pop("weight_map")), ("weight_map",), 2),
    Case("index with numbers", index(_pointing(7)), ("plain names", "'7'"), 2),
    Case("index points up", index(_pointing("../a.safetensors")), ("'../a.safetensors'",), 2),
    Case("index is absolute", index(_pointing("/etc/x.safetensors")), ("plain names",), 2),
    Case("index to a pickle", index(_pointing("a.bin")), ("plain names", "a.bin"), 2),
    Case("shard missing", lambda f: _shard(f).unlink(), ("missing", "00002-of-00002"), 2),
    Case(
        "shard truncated", lambda f: _shard(f).write_bytes(b"\1"), ("00002-of-00002", "8 bytes"), 2
    ),
    Case("tensor in another shard", index(_moved), (NORM, "absent"), 2),
    # the folder
    Case("pickled weights", _pickle, ("pytorch_model.bin", "pickles", "convert")),
    Case("shard without index", _lonely, (INDEX, "model-00001-of-00002")),
    Case("no weights", lambda f: (f / SINGLE).unlink(), ("no *.safetensors",)),
    Case("no config", lambda f: (f / "config.json").unlink(), ("config.json", "missing")),
    Case("config not JSON", lambda f: (f / "config.json").write_text("{'a'}"), ("config.json",)),
    Case("config a list", lambda f: (f / "config.json").write_text("[]"), ("JSON object",)),
    Case("architecture unknown", config(_set("architectures", ["XYZ"])), ("XYZ", "Llama")),
    Case("no architecture", config(lambda v: v.pop("architectures")), ("architectures",)),
    Case("size missing", config(lambda v: v.pop("hidden_size")), ("hidden_size",)),
    Case("size a string", config(_set("hidden_size", "64")), ("hidden_size",)),
    Case("size absurd", config(_set("vocab_size", 10**15)), ("embed_tokens", "10000000000")),
    Case("layers absurd", config(_set("num_hidden_layers", 10**9)), ("layers", "1000000000")),
    Case("layers too many", config(_set("num_hidden_layers", 5)), ("missing", "layers.2", "more")),
    Case("heads do not divide", config(_set("num_key_value_heads", 3)), ("num_kv_heads=3",)),
)
