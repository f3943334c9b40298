"""A plan: whether a model fits on given chips, over which mesh, and how fast it can be at best."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.roofline import formats
from jaxinfer.roofline.bounds import Bound, Mesh, decode, prefill
from jaxinfer.roofline.chips import CHIPS, Chip
from jaxinfer.roofline.lecture import Lecture, lecture
from jaxinfer.roofline.memory import Memory, memory

CHUNK = 512  # prompt tokens of one sequence in a step, as in serving
SMALLER = ("bfloat16", "int8", "int4")  # weights to suggest, the most exact first
MOST_CHIPS = {"NVLink": 8, "PCIe": 4, "ICI": 256}  # of one machine, or of one v5e or v6e pod


@dataclass(frozen=True)
class Machine:
    """count chips, each of chip.devices JAX devices. shape: as a TPU topology is written."""

    chip: Chip
    count: int = 1
    shape: str = ""

    @property
    def devices(self) -> int:
        return self.count * self.chip.devices

    @property
    def device(self) -> Chip:
        return self.chip.device()

    @property
    def unit(self) -> str:
        """What one JAX device is called."""
        return "chip" if self.chip.devices == 1 else "core"

    def __str__(self):
        return f"{self.count} x {self.chip.name}" if self.count > 1 else self.chip.name


@dataclass(frozen=True)
class Settings:
    """context: positions of each sequence, prompt and answer. prompt: of TTFT, at most the context."""

    context: int
    prompt: int
    weights: str = "bfloat16"
    cache: str = "bfloat16"


@dataclass(frozen=True)
class Row:
    """One batch size. prefill: all prompts of the batch at once. memory: of one device."""

    batch: int
    decode: Bound
    prefill: Bound
    memory: Memory
    lecture: Lecture

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.decode.chip.room


def find_chip(name: str) -> Chip:
    """A chip by name, in any case; ValueError lists them."""
    key = name.lower().replace("-", "").replace(" ", "")
    if key not in CHIPS:
        raise ValueError(f"chip needs to be one of {', '.join(CHIPS)}, got {name!r}")
    return CHIPS[key]


def topology(text: str) -> Machine:
    """ "v5e:2x4" or "h100:8" -> that many chips; ValueError says how it is written."""
    name, colon, shape = text.partition(":")
    sides = shape.lower().split("x")
    if not colon or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(
            f"a topology is a chip and how many of them, like v5e:2x4, v5p:2x2x1 or h100:8, got {text!r}"
        )
    return Machine(find_chip(name), math.prod(map(int, sides)), shape.lower())


def row(config: ModelConfig, machine: Machine, mesh: Mesh, batch: int, settings: Settings) -> Row:
    """What one batch size means. ValueError where the mesh does not divide the model."""
    chip, context = machine.device, settings.context
    kinds: dict[str, Any] = {"weights": settings.weights, "cache": settings.cache}
    rows, chunk = -(-batch // mesh.data), min(CHUNK, settings.prompt)
    return Row(
        batch=batch,
        decode=decode(config, chip, batch, context, mesh=mesh, **kinds),
        prefill=prefill(config, chip, batch, settings.prompt, mesh=mesh, **kinds),
        memory=memory(
            config,
            rows,
            context,
            shards=mesh.model,
            chunk=chunk,
            tokens=rows + chunk - 1,
            **kinds,
        ),
        lecture=lecture(config, chip, batch, context, chips=machine.devices, **kinds),
    )


def meshes(config: ModelConfig, devices: int) -> Iterator[Mesh]:
    """Every mesh over all devices that the model's heads and widths allow, few shards first."""
    for model in range(1, devices + 1):
        if devices % model:
            continue
        try:
            decoder.layout(dataclasses.replace(config, layers=config.layers[:1]), model)
        except ValueError:
            continue
        yield Mesh(devices // model, model)


def propose(
    config: ModelConfig, machine: Machine, batches: Sequence[int], settings: Settings
) -> Mesh:
    """The mesh on which the largest batch that fits anywhere is fastest; where none fits, the one that
    needs the least memory.
    """
    possible = list(meshes(config, machine.devices))
    for batch in sorted(batches, reverse=True):
        found = [(row(config, machine, mesh, batch, settings), mesh) for mesh in possible]
        fitting = [(one.decode.latency_s, mesh) for one, mesh in found if one.fits]
        if fitting:
            return min(fitting, key=lambda pair: pair[0])[1]
    least = ((row(config, machine, mesh, min(batches), settings), mesh) for mesh in possible)
    return min(least, key=lambda pair: pair[0].memory.total)[1]


def largest_batch(config: ModelConfig, machine: Machine, mesh: Mesh, settings: Settings) -> int:
    """The largest batch that fits; 0 where not even one sequence does."""

    def fits(batch: int) -> bool:
        rows, chunk = -(-batch // mesh.data), min(CHUNK, settings.prompt)
        found = memory(
            config,
            rows,
            settings.context,
            weights=settings.weights,
            cache=settings.cache,
            shards=mesh.model,
            chunk=chunk,
            tokens=rows + chunk - 1,
        )
        return found.total <= machine.device.room

    if not fits(mesh.data):
        return 0
    low, high = 1, 2  # in rows of each copy
    while fits(high * mesh.data):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * mesh.data) else (low, middle)
    return low * mesh.data


def remedies(config: ModelConfig, machine: Machine, batch: int, settings: Settings) -> list[str]:
    """What would make `batch` fit, nearest first: smaller weights, a smaller cache, more chips."""

    def fits(machine: Machine, changed: Settings) -> Mesh | None:
        mesh = propose(config, machine, [batch], changed)
        return mesh if row(config, machine, mesh, batch, changed).fits else None

    found = []
    bits = formats.find(settings.weights).bits
    for weights in SMALLER:
        if formats.find(weights).bits < bits:
            changed = dataclasses.replace(settings, weights=weights)
            if fits(machine, changed):
                found.append(f"--quantize={weights}")
                break
            smallest = dataclasses.replace(changed, cache="int8")
            if settings.cache != "int8" and fits(machine, smallest):
                found.append(f"--quantize={weights} --kv_dtype=int8")
                break
    if settings.cache != "int8" and fits(machine, dataclasses.replace(settings, cache="int8")):
        found.append("--kv_dtype=int8")
    link = machine.chip.interconnect
    count = machine.count
    while link is not None and count < MOST_CHIPS[link.kind]:
        count *= 2
        more = Machine(machine.chip, count)
        if mesh := fits(more, settings):
            found.append(f"{more} with --mesh={mesh}")
            break
    return found
