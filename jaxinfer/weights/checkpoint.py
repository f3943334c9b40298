"""The tensors of a checkpoint folder, checked against what a family expects; none is read here."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.models.family import Family, Source
from jaxinfer.weights.formats import Format, Packed, Tensors
from jaxinfer.weights.safetensors_file import FLOATS, CheckpointError, Entry, read_header, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MOST_PROBLEMS = 10
NESTED = "model.language_model."
BASES = ("language_model.", "model.", "transformer.")


@dataclass(frozen=True)
class Tensor:
    """Where a canonical tensor lies: rows first .. of a file's tensor, perhaps transposed; or of a
    packed weight (then `entry` is the first of its tensors).
    """

    entry: Entry
    first: int = 0
    transposed: bool = False
    packed: Packed | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All tensors that make it up."""
        return (self.entry,) if self.packed is None else self.packed.entries


def entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of the folder's safetensors files, by its name in the files."""
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)
    if (folder / INDEX).exists():
        return _sharded(folder / INDEX)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: needs {SINGLE} or {INDEX}, got {', '.join(pickles[:3])}: such files are "
            "pickles, which can run code while they load, and are never opened; convert them, for "
            "example with transformers' save_pretrained(folder, safe_serialization=True)"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    got = ", ".join(others[:3]) if others else "no *.safetensors files"
    raise CheckpointError(
        f"{folder}: needs {SINGLE}, or {INDEX} with its shards, got {got}; fetch the whole "
        "checkpoint"
    )


def _sharded(index: Path) -> dict[str, Entry]:
    weight_map = read_json(index, "the index of the shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: needs weight_map, from tensor names to file names, got "
            f"{str(weight_map)[:80]}"
        )
    headers = {}
    for file in dict.fromkeys(str(name) for name in weight_map.values()):
        if "/" in file or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: weight_map needs plain names of .safetensors files beside it, got "
                f"{file[:80]!r}; do not use this checkpoint unless you trust its source"
            )
        if not (index.parent / file).is_file():
            raise CheckpointError(
                f"{index}: weight_map needs the file {file!r}, which is missing; fetch it"
            )
        headers[file] = read_header(index.parent / file)
    absent = [
        f"{name!r} in {file}" for name, file in weight_map.items() if name not in headers[str(file)]
    ]
    if absent:
        raise CheckpointError(
            f"{index}: {some(absent)} named in weight_map but absent; fetch the checkpoint again"
        )
    found = {name: entry for header in headers.values() for name, entry in header.items()}
    return found | {name: headers[file][name] for name, file in weight_map.items()}


def some(items) -> str:
    """The first few of many, in words."""
    items = list(items)
    more = f" and {len(items) - MOST_PROBLEMS} more" if len(items) > MOST_PROBLEMS else ""
    return ", ".join(items[:MOST_PROBLEMS]) + more


def match(
    folder: Path, family: Family, config: ModelConfig, form: Format | None = None
) -> tuple[dict[str, Tensor], Entry | None]:
    """The file tensor of every canonical tensor of `config`, all names, shapes and dtypes checked.

    form: how the checkpoint is quantized. Also the tensor of a redundant output head, where the
    embedding is tied and the files repeat it.
    """
    found, sources = entries(folder), family.tensors(config)
    shapes = decoder.canonical_shapes(config)
    if set(sources) != set(shapes):
        raise ValueError(
            f"family {family.name} needs to name {sorted(set(sources) ^ set(shapes))} exactly once"
        )
    found = _prefixed(found, {source.name for source in sources.values()})
    problems, tensors, used = [], {}, set()
    packs: dict[str, Packed | None] = {}
    stored = Tensors(found, used)
    for canonical, source in sources.items():
        wanted = file_shape(shapes[canonical], source)
        if form is not None and source.name not in packs:
            packs[source.name] = _packed(form, stored, source, wanted)
        packed = packs.get(source.name)
        if packed is not None:
            tensors[canonical] = Tensor(packed.entries[0], source.first, packed=packed)
            continue
        used.add(source.name)
        if source.name not in found:
            problems.append(f"missing {source.name!r}")
            continue
        entry = found[source.name]
        if entry.shape != wanted:
            problems.append(f"{source.name!r} needs shape {list(wanted)}, got {list(entry.shape)}")
        elif entry.dtype not in FLOATS:
            problems.append(
                f"{source.name!r} needs a dtype among {', '.join(FLOATS)}, got {entry.dtype}"
            )
        else:
            tensors[canonical] = Tensor(entry, source.first, source.transposed)
    head = None
    if config.tied:
        head = found.pop(family.tensors(config.replace(tied=False))["unembed"].name, None)
        if head is not None and "embed" in tensors and head.shape != tensors["embed"].entry.shape:
            problems.append(
                f"the output head is tied to the embedding but has shape {list(head.shape)}"
            )
    ignored = () if form is None else form.ignored
    extra = [
        name
        for name in found
        if name not in used and not family.ignores(name) and not name.endswith(ignored)
    ]
    problems += [f"unexpected {name!r}" for name in extra]
    if problems:
        unique = list(dict.fromkeys(problems))
        raise CheckpointError(
            f"{folder}: the tensors need to be those of {family.name} as config.json describes it, "
            f"got {len(unique)} differences: {some(unique)}; use the config.json that belongs to "
            "these files"
        )
    return tensors, head


def _packed(form: Format, stored: Tensors, source: Source, wanted) -> Packed | None:
    """The packed weight behind a source, if it is one."""
    if len(wanted) != 2 or not source.name.endswith(".weight"):
        return None
    if not source.transposed:
        return form.find(stored, source.name, wanted)
    if form.find(Tensors(stored.found), source.name, wanted[::-1]) is not None:
        raise CheckpointError(
            f"{source.name!r} needs to be stored plainly: {form.name} of a family that stores its "
            "weights transposed is not supported; use the unquantized checkpoint with --quantize"
        )
    return None


def file_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    rows = shape[0] if source.rows is None else source.rows
    whole = (rows, *shape[1:])
    return whole[::-1] if source.transposed else whole


def _prefixed(found: dict[str, Entry], wanted: set[str]) -> dict[str, Entry]:
    """The files' tensors, with the base model's prefix added or removed if only that differs."""
    if any(name.startswith(NESTED) for name in found):
        inner = {name.replace(NESTED, "model.", 1): entry for name, entry in found.items()}
        return {
            name if _belongs(name, wanted) else name.removeprefix("model."): entry
            for name, entry in inner.items()
        }
    for base in BASES:
        inside = any(name.startswith(base) for name in found)
        expected = any(name.startswith(base) for name in wanted)
        if inside and not expected:
            found = {name.removeprefix(base): entry for name, entry in found.items()}
        elif expected and not inside:
            found = {
                base + name if _belongs(base + name, wanted) else name: entry
                for name, entry in found.items()
            }
    return found


def _belongs(name: str, wanted: set[str]) -> bool:
    """Whether a tensor is wanted, or is one of those that a wanted weight is packed in."""
    module, _, own = name.rpartition(".")
    return name in wanted or f"{module}.weight" in wanted or (bool(own) and module in wanted)


def dtype_of(tensors: dict[str, Tensor]) -> np.dtype:
    """The dtype that holds most bytes, packed weights aside."""
    sizes = Counter()
    plain = {tensor.entry for tensor in tensors.values() if tensor.packed is None}
    for entry in plain:
        sizes[entry.dtype] += entry.size
    return FLOATS[sizes.most_common(1)[0][0]]
