"""Chips as data: memory, bandwidth, arithmetic and interconnect, each with its source.

Figures are the vendors': dense (no sparsity), at boost clocks, decimal bytes unless a vendor counts
in GiB. No program reaches them; a measured machine is a `Chip` too, made by whoever measured it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GB, GIB, TERA = 1e9, float(1 << 30), 1e12
# where a chip has no arithmetic for a type, the operands are widened to the next one
WIDER = {
    "int4": "int8",
    "int8": "bfloat16",
    "float8": "bfloat16",
    "float16": "float32",
    "bfloat16": "float32",
}
HOP_S = 1e-6  # between neighbouring TPUs: How to Scale Your Model, chapter 2, question 5


@dataclass(frozen=True)
class Interconnect:
    """kind: what the chips are joined by. bandwidth: bytes/s one way, all links of one chip together.
    hop_s: seconds a message of no length takes to a neighbour (0: not published).
    """

    kind: str
    bandwidth: float
    hop_s: float = 0.0


@dataclass(frozen=True)
class Chip:
    """memory_bytes: capacity. bandwidth: bytes/s of that memory. flops: dense FLOP/s (or integer
    operations/s) by the type of the operands. devices: as how many JAX devices one chip appears.
    usable_bytes: what programs are given of the capacity (None: nearly all of it). source: where the
    figures come from.
    """

    name: str
    memory_bytes: float
    bandwidth: float
    flops: Mapping[str, float]
    interconnect: Interconnect | None = None
    source: str = ""
    devices: int = 1
    usable_bytes: float | None = None

    def __post_init__(self):
        sizes = {"memory_bytes": self.memory_bytes, "bandwidth": self.bandwidth, **self.flops}
        for name, value in sizes.items():
            if not value > 0:
                raise ValueError(f"a chip needs positive figures, got {name}={value!r}")
        if not self.flops:
            raise ValueError("a chip needs the FLOP/s of at least one type, got none")
        object.__setattr__(self, "flops", MappingProxyType(dict(self.flops)))

    @property
    def room(self) -> float:
        """The bytes that programs may use."""
        return self.memory_bytes if self.usable_bytes is None else self.usable_bytes

    def peak(self, dtype: str) -> float:
        """FLOP/s with operands of `dtype`, or of the next wider type that the chip multiplies.

        ValueError where it multiplies neither.
        """
        found: str | None = dtype
        while found is not None and found not in self.flops:
            found = WIDER.get(found)
        if found is None:
            raise ValueError(
                f"{self.name} needs a figure for {dtype} or a wider type, got "
                f"{', '.join(self.flops)}"
            )
        return self.flops[found]

    def device(self) -> "Chip":
        """One JAX device of this chip: its share of everything."""
        if self.devices == 1:
            return self
        n, link = self.devices, self.interconnect
        return dataclasses.replace(
            self,
            name=f"{self.name} (1 of {n} cores)",
            memory_bytes=self.memory_bytes / n,
            bandwidth=self.bandwidth / n,
            flops={name: value / n for name, value in self.flops.items()},
            interconnect=link and dataclasses.replace(link, bandwidth=link.bandwidth / n),
            devices=1,
            usable_bytes=self.usable_bytes and self.usable_bytes / n,
        )


def _nvidia(name, memory, bandwidth, link, source, **tera) -> Chip:
    """memory in GB, bandwidth in GB/s, tera in TFLOP/s."""
    flops = {dtype: value * TERA for dtype, value in tera.items()}
    flops["float16"] = flops.get("float16", flops.get("bfloat16", 0.0))
    return Chip(name, memory * GB, bandwidth * GB, flops, link, source)


def _tpu(name, memory, usable, bandwidth, ici, source, devices=1, **tera) -> Chip:
    """memory in GiB, bandwidth and ici (one way) in GB/s. usable: GiB that libtpu 0.0.52 leaves to a
    program, as it says when one does not fit. float32 takes six bfloat16 passes (XLA's highest
    precision).
    """
    flops = {dtype: value * TERA for dtype, value in tera.items()}
    flops["float32"] = flops["bfloat16"] / 6
    link = Interconnect("ICI", ici * GB, HOP_S)
    return Chip(name, memory * GIB, bandwidth * GB, flops, link, source, devices, usable * GIB)


def _nvlink(one_way: float) -> Interconnect:
    return Interconnect("NVLink", one_way * GB)


def _pcie(one_way: float) -> Interconnect:
    return Interconnect("PCIe", one_way * GB)


_HOPPER = dict(float32=67.0, bfloat16=989.5, float8=1979.0, int8=1979.0)
_CLOUD = "Google Cloud documentation"
CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        chip.name: chip
        for chip in (
            _nvidia(
                "h100",
                80,
                3350,
                _nvlink(450),
                "NVIDIA H100 datasheet, SXM, halved for dense",
                **_HOPPER,
            ),
            _nvidia(
                "h200",
                141,
                4800,
                _nvlink(450),
                "NVIDIA H200 datasheet, SXM, halved for dense",
                **_HOPPER,
            ),
            _nvidia(
                "b200",
                180,
                8000,
                _nvlink(900),
                "NVIDIA DGX B200 datasheet (8 GPUs: 1,440 GB, 64 TB/s) and Blackwell architecture "
                "brief, dense",
                float32=75.0,
                bfloat16=2250.0,
                float8=4500.0,
                int8=4500.0,
            ),
            _nvidia(
                "a100",
                80,
                2039,
                _nvlink(300),
                "NVIDIA A100 datasheet, 80 GB SXM",
                float32=19.5,
                bfloat16=312.0,
                int8=624.0,
                int4=1248.0,
            ),
            _nvidia(
                "l4",
                24,
                300,
                _pcie(32),
                "NVIDIA L4 datasheet, halved for dense",
                float32=30.3,
                bfloat16=121.0,
                float8=242.5,
                int8=242.5,
            ),
            _nvidia(
                "t4",
                16,
                320,
                _pcie(16),
                "NVIDIA T4 datasheet; it has no bfloat16 arithmetic",
                float32=8.1,
                float16=65.0,
                int8=130.0,
                int4=260.0,
            ),
            _nvidia(
                "rtx4090",
                24,
                1008,
                _pcie(32),
                "NVIDIA Ada GPU architecture whitepaper, appendix A, dense, sums in float32",
                float32=82.6,
                bfloat16=165.2,
                float8=330.3,
                int8=660.6,
                int4=1321.2,
            ),
            _tpu(
                "v4",
                32,
                30.75,
                1200,
                300,
                f"{_CLOUD}, TPU v4; interconnect: Jouppi et al. 2023 (6 links of 50 GB/s)",
                bfloat16=275.0,
                int8=275.0,
            ),
            _tpu("v5e", 16, 15.75, 819, 200, f"{_CLOUD}, TPU v5e", bfloat16=197.0, int8=394.0),
            _tpu("v5p", 95, 95.73, 2765, 600, f"{_CLOUD}, TPU v5p", bfloat16=459.0, int8=918.0),
            _tpu("v6e", 32, 31.24, 1638, 400, f"{_CLOUD}, TPU v6e", bfloat16=918.0, int8=1836.0),
            _tpu(
                "tpu7x",
                192,
                2 * 94.74,
                7380,
                600,
                f"{_CLOUD}, TPU7x (Ironwood)",
                devices=2,
                bfloat16=2307.0,
                float8=4614.0,
            ),
        )
    }
)
