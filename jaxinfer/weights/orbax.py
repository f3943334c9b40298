"""Parameters as an Orbax checkpoint: sharded arrays under `params`, and `jaxinfer.json`, which says
what they are.

Parameters are saved as they lie, quantized or not, on however many devices; they are laid out anew
when they are restored to another mesh.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint

from jaxinfer import sharding
from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.models.decoder import Params
from jaxinfer.models.linear import Leaf, Piece
from jaxinfer.quantize import METHODS, QTensor, check_method
from jaxinfer.weights.checkpoint import some
from jaxinfer.weights.description import from_json, to_json
from jaxinfer.weights.folder import copy_tokenizer, new_folder
from jaxinfer.weights.loaded import DTYPES, Loaded, as_laid_out, check_dtype, default_dtype
from jaxinfer.weights.safetensors_file import CheckpointError, read_json

SIDE_FILE = "jaxinfer.json"
ARRAYS = "params"
VERSION = 1


@dataclass(frozen=True)
class Description:
    """What jaxinfer.json holds. shards: as in `Params`; quantize: of its matrices.

    files: the size in bytes of every file of the arrays.
    """

    version: int
    config: ModelConfig
    shards: int
    dtype: str
    quantize: str | None
    files: dict[str, int]

    def __post_init__(self):
        if self.version != VERSION:
            raise ValueError(
                f"version needs to be {VERSION}, got {self.version}; use the release that wrote it"
            )
        if not 0 < self.shards <= 1 << 16:
            raise ValueError(f"shards needs to be 1 .. 65536, got {self.shards}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype needs one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.quantize is not None and self.quantize not in METHODS:
            raise ValueError(
                f"quantize needs one of {', '.join(METHODS)} or null, got {self.quantize!r}"
            )


def is_checkpoint(folder: Path) -> bool:
    """Whether `save` wrote this folder."""
    return (folder / SIDE_FILE).exists()


def save(
    folder: str | Path,
    params: Params,
    config: ModelConfig,
    *,
    tokenizer_from: str | Path | None = None,
) -> None:
    """Write `params` (on any mesh, quantized or not) to a new folder.

    tokenizer_from: a folder whose tokenizer files are copied along.
    """
    params = as_laid_out(params, config)
    quantized = [leaf.method for leaf in _values(params) if isinstance(leaf, QTensor)]
    dtype = params.norm.scale.dtype.name
    method = quantized[0] if quantized else None
    template = _template(config, params.shards, np.dtype(dtype), None, method)
    if jax.tree.structure(params) != jax.tree.structure(template):
        raise ValueError(
            "params need to be those of config, all matrices quantized alike or none; got another "
            "structure"
        )
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(params)):
        raise ValueError("params need to be live arrays, got deleted (donated) ones; save earlier")
    with new_folder(Path(folder).absolute()) as target:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(target / ARRAYS, _named(params))
        files = _files(target / ARRAYS)
        described = Description(VERSION, config, params.shards, dtype, method, files)
        (target / SIDE_FILE).write_text(json.dumps(to_json(described), indent=1) + "\n")
        if tokenizer_from is not None:
            copy_tokenizer(Path(tokenizer_from), target)


def _files(folder: Path) -> dict[str, int]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def read_description(folder: Path) -> Description:
    """jaxinfer.json, validated."""
    path = folder / SIDE_FILE
    value = read_json(path, "the description of an Orbax checkpoint")
    try:
        return from_json(Description, value, "it")
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def restore(folder: str | Path, *, dtype=None, mesh=None, quantize: str | None = None) -> Loaded:
    """Read what `save` wrote to its place on `mesh` (None: the default device), from any mesh.

    dtype: of what is not quantized (None: as saved; float32 on CPU). quantize: None (as saved) or,
    for a quantized checkpoint, the method to run it with. CheckpointError: the checkpoint cannot be
    used.
    """
    check_method(quantize)
    folder = Path(folder).absolute()
    described = read_description(folder)
    if quantize is not None and described.quantize is None:
        raise CheckpointError(
            f"{folder}: quantize={quantize!r} needs quantized parameters or a Hugging Face "
            f"checkpoint, got an Orbax checkpoint in {described.dtype}; quantize while converting"
        )
    _check_files(folder / ARRAYS, described.files)
    method = quantize or described.quantize
    config, shards = described.config, sharding.model_shards(mesh)
    saved = np.dtype(described.dtype)
    wanted = check_dtype(dtype) or default_dtype(saved)
    stored = _template(config, described.shards, saved, mesh, method)
    template = _template(config, described.shards, wanted, mesh, method)
    params = _read(folder / ARRAYS, template, stored)
    if described.shards == shards:
        return Loaded(params, config, folder)
    new, treedef = jax.tree.flatten(decoder.layout(config, shards), is_leaf=decoder.is_leaf)
    old, values = decoder.leaves(config, described.shards), _values(params)
    del params
    for i, (before, after) in enumerate(zip(old, new, strict=True)):
        values[i] = _relaid(values[i], before, after, mesh)
    return Loaded(treedef.unflatten(values), config, folder)


def _values(params: Params) -> list:
    return jax.tree.leaves(params, is_leaf=decoder.is_leaf)


def _named(tree) -> dict:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _template(
    config: ModelConfig, shards: int, dtype: np.dtype, mesh, method: str | None
) -> Params:
    """Parameters of shapes, dtypes and shardings, laid out for `shards`."""

    def array(shape, letters, kind) -> Any:
        place = sharding.place(letters, mesh)
        if not _divides(shape, place):
            place = sharding.place("." * len(shape), mesh)
        return jax.ShapeDtypeStruct(shape, kind, sharding=place)

    def build(leaf):
        if method is None or not leaf.quantizable:
            return array(leaf.shape, leaf.letters, dtype)
        values = array(leaf.shape, leaf.letters, np.dtype(np.int8))
        scale = array(leaf.shape[:1], leaf.letters[:1], np.dtype(np.float32))
        return QTensor(values, scale, method)

    return jax.tree.map(build, decoder.layout(config, shards), is_leaf=decoder.is_leaf)


def _divides(shape, place) -> bool:
    try:
        place.shard_shape(shape)
    except ValueError:
        return False
    return True


def _read(path: Path, template: Params, stored: Params) -> Params:
    """The arrays of an Orbax folder as `template` has them; `stored` is what the folder has to
    hold.
    """
    try:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            found = dict(checkpointer.metadata(path).item_metadata.tree)
            _check(
                path,
                {name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in found.items()},
                _named(stored),
            )
            values = checkpointer.restore(path, _named(template))
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError) as error:
        detail = str(error).splitlines()[0][:200] if str(error) else "no detail"
        raise CheckpointError(
            f"{path}: cannot read the Orbax arrays ({type(error).__name__}: {detail}); save the "
            "checkpoint again"
        ) from error
    return jax.tree.structure(template).unflatten(values[name] for name in _named(template))


def _check_files(folder: Path, wanted: dict[str, int]) -> None:
    found = _files(folder)
    wrong = [
        f"{name} ({found.get(name)} of {size} bytes)"
        for name, size in wanted.items()
        if found.get(name) != size
    ]
    if wrong:
        raise CheckpointError(
            f"{folder}: the arrays need the files that {SIDE_FILE} lists, got {some(wrong)}; fetch "
            "or save the checkpoint again"
        )


def _check(path: Path, found: dict, wanted: dict) -> None:
    problems = [f"missing {name!r}" for name in wanted if name not in found]
    problems += [f"unexpected {name!r}" for name in found if name not in wanted]
    for name, like in wanted.items():
        shape, dtype = like.shape, like.dtype
        if name in found and found[name] != (shape, dtype):
            problems.append(
                f"{name!r} needs {dtype} {list(shape)}, got {found[name][1]} {list(found[name][0])}"
            )
    if problems:
        raise CheckpointError(
            f"{path}: the arrays need to be those that {SIDE_FILE} describes, got {len(problems)} "
            f"differences: {some(problems)}; save the checkpoint again"
        )


def _relaid(value, before: Leaf, after: Leaf, mesh):
    """One parameter, described by `before`, as `after` describes it."""
    if isinstance(value, QTensor):
        values = _rows(value.values, 0, before, after, after.letters, mesh)
        return QTensor(
            values, _rows(value.scale, 1, before, after, after.letters[:1], mesh), value.method
        )
    return _rows(value, 0, before, after, after.letters, mesh)


def _rows(
    value: jax.Array, padding: int, before: Leaf, after: Leaf, letters: str, mesh
) -> jax.Array:
    parts = []
    for piece in after.pieces:
        if piece.name is None:
            parts.append(
                jnp.full((piece.stop - piece.start, *value.shape[1:]), padding, value.dtype)
            )
        else:
            parts += [value[low:high] for low, high in _found(before, piece)]
    return jax.device_put(jnp.concatenate(parts), sharding.place(letters, mesh))


def _found(leaf: Leaf, wanted: Piece) -> list[tuple[int, int]]:
    """Which rows of `leaf` hold the canonical rows that `wanted` names, in order."""
    ranges, at, row = {}, 0, wanted.start
    for piece in leaf.pieces:
        if piece.name == wanted.name:
            ranges[piece.start] = (piece.stop, at)
        at += piece.stop - piece.start
    found = []
    while row < wanted.stop:
        start = max(first for first in ranges if first <= row)
        stop, at = ranges[start]
        high = min(stop, wanted.stop)
        found.append((at + row - start, at + high - start))
        row = high
    return found
