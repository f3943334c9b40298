"""Parameters as an Orbax checkpoint: sharded arrays under `params`, and `jaxinfer.json`, which says
what they are.

Parameters are saved as they lie, quantized or not, on however many devices; they are laid out anew
when they are restored to another mesh.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint

from jaxinfer import sharding
from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.models.decoder import Params
from jaxinfer.quantize import CALIBRATED, METHODS, Form, QTensor, Recipe, find, form_of
from jaxinfer.weights import placement
from jaxinfer.weights.checkpoint import some
from jaxinfer.weights.description import from_json, to_json
from jaxinfer.weights.folder import copy_tokenizer, new_folder
from jaxinfer.weights.huggingface import INT8
from jaxinfer.weights.loaded import DTYPES, Loaded, as_laid_out, check_dtype, default_dtype
from jaxinfer.weights.relayout import relaid
from jaxinfer.weights.safetensors_file import CheckpointError, read_json

SIDE_FILE = "jaxinfer.json"
ARRAYS = "params"
VERSION = 1


@dataclass(frozen=True)
class Description:
    """What jaxinfer.json holds. shards: as in `Params`; quantize: the method that made its
    matrices (their arrays say in which form).

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
        if self.quantize is not None and self.quantize not in (*METHODS, *CALIBRATED):
            names = ", ".join((*METHODS, *CALIBRATED))
            raise ValueError(f"quantize needs one of {names} or null, got {self.quantize!r}")


def is_checkpoint(folder: Path) -> bool:
    """Whether `save` wrote this folder."""
    return (folder / SIDE_FILE).exists()


def save(
    folder: str | Path,
    params: Params,
    config: ModelConfig,
    *,
    method: str | None = None,
    tokenizer_from: str | Path | None = None,
) -> None:
    """Write `params` (on any mesh, quantized or not) to a new folder.

    method: what quantized them, where their own arithmetic does not say it. tokenizer_from: a
    folder whose tokenizer files are copied along.
    """
    params = as_laid_out(params, config)
    quantized = Counter(leaf.method for leaf in _values(params) if isinstance(leaf, QTensor))
    dtype = params.norm.scale.dtype.name
    if quantized and method is None:
        method = quantized.most_common(1)[0][0]
    found = {name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in _named(params).items()}
    forms = _forms(config, params.shards, method if quantized else None, found)
    template = _template(config, params.shards, np.dtype(dtype), None, forms)
    if jax.tree.structure(params) != jax.tree.structure(template):
        raise ValueError(
            "params need to be those of config, all matrices quantized by one method or none; got "
            "another structure"
        )
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(params)):
        raise ValueError("params need to be live arrays, got deleted (donated) ones; save earlier")
    with new_folder(Path(folder).absolute()) as target:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(target / ARRAYS, _named(params))
        files = _files(target / ARRAYS)
        described = Description(
            VERSION, config, params.shards, dtype, method if quantized else None, files
        )
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


def read_forms(folder: Path) -> dict[int, Form]:
    """How the quantized parameters are held, by their place in `decoder.leaves`."""
    described = read_description(folder)
    forms = _stored_forms(folder, described, described.quantize, _metadata(folder / ARRAYS))
    return {i: form for i, form in enumerate(forms.values()) if form is not None}


def _stored_forms(folder, described: Description, method, found) -> dict[str, Form | None]:
    try:
        return _forms(described.config, described.shards, method, found)
    except ValueError as error:
        raise CheckpointError(f"{folder / ARRAYS}: {error}; save the checkpoint again") from error


def restore(
    folder: str | Path, *, dtype=None, mesh=None, quantize: str | Recipe | None = None
) -> Loaded:
    """Read what `save` wrote to its place on `mesh` (None: the default device), from any mesh.

    dtype: of what is not quantized (None: as saved; float32 on CPU). quantize: None (as saved); or
    the method that the checkpoint was saved with; or, of INT8, the other one. CheckpointError: the
    checkpoint cannot be used.
    """
    recipe = find(quantize)
    folder = Path(folder).absolute()
    described = read_description(folder)
    saved_as, method = described.quantize, recipe.method if recipe else described.quantize
    if method != saved_as and not (method in INT8 and saved_as in INT8):
        raise CheckpointError(
            f"{folder}: quantize={method!r} needs unquantized weights in the Hugging Face layout, got "
            f"an Orbax checkpoint in {saved_as or described.dtype}; quantize while converting"
        )
    _check_files(folder / ARRAYS, described.files)
    config, shards = described.config, sharding.model_shards(mesh)
    saved = np.dtype(described.dtype)
    wanted = check_dtype(dtype) or default_dtype(saved)
    found = _metadata(folder / ARRAYS)
    forms = _stored_forms(folder, described, method, found)
    stored = _template(config, described.shards, saved, mesh, forms)
    _check(folder / ARRAYS, found, _named(stored))
    template = _template(config, described.shards, wanted, mesh, forms)
    params = _read(folder / ARRAYS, template)
    if described.shards == shards:
        return Loaded(params, config, folder)
    new, treedef = jax.tree.flatten(decoder.layout(config, shards), is_leaf=decoder.is_leaf)
    old, values = decoder.leaves(config, described.shards), _values(params)
    del params
    for i, (before, after) in enumerate(zip(old, new, strict=True)):
        values[i] = relaid(values[i], before, after, mesh, method)
    return Loaded(treedef.unflatten(values), config, folder)


def _values(params: Params) -> list:
    return jax.tree.leaves(params, is_leaf=decoder.is_leaf)


def _named(tree, is_leaf=None) -> dict:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _forms(
    config: ModelConfig, shards: int, method: str | None, found: dict
) -> dict[str, Form | None]:
    """How each parameter is held, by its name: as the arrays that were found say, None where it is
    plain. ValueError: arrays that make up no weight.
    """
    forms: dict[str, Form | None] = {}
    mixed = any(name.endswith(".values") for name in found)  # what is not packed is plain
    for name, leaf in _named(decoder.layout(config, shards), decoder.is_leaf).items():
        own = {
            key.removeprefix(f"{name}."): described
            for key, described in found.items()
            if key.startswith(f"{name}.")
        }
        forms[name] = None
        if method is None or not leaf.quantizable:
            continue
        try:
            whole = Recipe(method).form(leaf.shape[1], head=leaf.head)
            missing = None if mixed and name in found else whole
            forms[name] = form_of(method, own) if "values" in own else missing
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return forms


def _template(
    config: ModelConfig, shards: int, dtype: np.dtype, mesh, forms: dict[str, Form | None]
) -> Params:
    """Parameters of shapes, dtypes and shardings, laid out for `shards`."""

    def array(shape, letters, kind) -> Any:
        place = sharding.place(letters, mesh)
        if not _divides(shape, place):
            place = sharding.place("." * len(shape), mesh)
        return jax.ShapeDtypeStruct(shape, kind, sharding=place)

    def build(leaf, form):
        if form is None:
            return array(leaf.shape, leaf.letters, dtype)
        return placement.build(form, leaf, lambda _, p: array(p.shape, p.letters, p.dtype))

    layout, held = decoder.layout(config, shards), list(forms.values())
    described, treedef = jax.tree.flatten(layout, is_leaf=decoder.is_leaf)
    return treedef.unflatten(map(build, described, held))


def _divides(shape, place) -> bool:
    try:
        place.shard_shape(shape)
    except ValueError:
        return False
    return True


def _metadata(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The shape and type of every array of an Orbax folder, by name."""
    with _reading(path) as checkpointer:
        item: Any = checkpointer.metadata(path).item_metadata
        found = dict(item.tree)
        return {name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in found.items()}


@contextmanager
def _reading(path: Path) -> Iterator[orbax.checkpoint.StandardCheckpointer]:
    try:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            yield checkpointer
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError) as error:
        detail = str(error).splitlines()[0][:200] if str(error) else "no detail"
        raise CheckpointError(
            f"{path}: cannot read the Orbax arrays ({type(error).__name__}: {detail}); save the "
            "checkpoint again"
        ) from error


def _read(path: Path, template: Params) -> Params:
    """The arrays of an Orbax folder as `template` has them."""
    with _reading(path) as checkpointer:
        values = checkpointer.restore(path, _named(template))
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
