"""What the datasheets say of TPU chips and of the slices they come in; predictions follow from it alone."""

import math
from typing import NamedTuple

from experiments.flags.settings import UsageError
from metajax.zoo.options import nearest

# From a chip to its neighbour, as https://jax-ml.github.io/scaling-book/sharding takes it.
HOP_SECONDS = 1e-6


class Chip(NamedTuple):
    """A generation of TPU; rates are the datasheet's.

    Attributes:
      slices: shapes of the slices it comes in, smallest first.
      memory_bytes: its HBM.
      memory_rate: bytes a second to and from it.
      peak: operations a second of matrix products in bfloat16.
      link_rate: bytes a second to one neighbour, one way.
      rings: the length of which an axis is a multiple where its ends are linked to each other.
      network_rate: bytes a second of a chip to other slices, through its host; None where not published.
      options: how the compiler is told that a chip of two cores is one device.
    """

    slices: tuple[tuple[int, ...], ...]
    memory_bytes: int
    memory_rate: float
    peak: float
    link_rate: float
    rings: int
    network_rate: float | None
    options: dict[str, str]


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8))
_CUBES = (*_SMALL_CUBES, (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16))

# From https://docs.cloud.google.com/tpu/docs/v5e, v5p and v6e, and for v4 from there and Jouppi et al., 2023
# (https://arxiv.org/abs/2304.01433). Links are told there by the chip and both ways: of v5e 400 GB/s on 4 of
# them, hence 50 GB/s a link and way; of v6e 800 on 4, of v5p 1,200 on 6; of v4 by the link. The network is
# told by the pod of 256 chips (v5e 6.4 Tb/s, v6e 25.6) or the chip (v5p 50 Gb/s). "16 GB" and "32 GB" are
# binary, as the compiler counts, which keeps up to 2% of them for itself.
CHIPS = {
    "v4": Chip(_CUBES, 32 * 2**30, 1200e9, 275e12, 50e9, 4, None, {"chip_config_name": "megacore"}),
    "v5e": Chip(_FLAT, 16 * 2**30, 819e9, 197e12, 50e9, 16, 25e9 / 8, {}),
    "v5p": Chip(
        (*_CUBES, (16, 16, 24)),
        *(95 * 2**30, 2765e9, 459e12, 100e9, 4, 50e9 / 8),
        {"chip_config_name": "megacore"},
    ),
    "v6e": Chip(_FLAT, 32 * 2**30, 1638e9, 918e12, 100e9, 16, 100e9 / 8, {}),
}


class Topology(NamedTuple):
    """Chips that are linked to their neighbours, in one slice or several.

    Attributes:
      generation: the name of the chip.
      shape: chips along each axis of a slice.
      slices: how many; the network of the data centre is between them.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """Its datasheet."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """How many, of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def name(self) -> str:
        """As JAX names one slice of it: v5e:16x16."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"


def topology(name: str, *, slices: int = 1) -> Topology:
    """Reads a name such as v5e:16x16; UsageError for one that is none."""
    generation = name.partition(":")[0]
    if generation not in CHIPS:
        raise UsageError(
            f"--topology={name} begins with no TPU that is known here; {nearest(generation, list(CHIPS))}"
        )
    known = {Topology(generation, shape).name: shape for shape in CHIPS[generation].slices}
    if name not in known:
        raise UsageError(
            f"--topology={name} is no slice that {generation} comes in; {nearest(name, list(known))}"
        )
    return Topology(generation, known[name], slices)


def of_chips(generation: str, number: int) -> Topology | None:
    """The slice of so many chips, or so many of the largest slices; None if there is none."""
    slices = CHIPS[generation].slices
    largest = math.prod(slices[-1])
    if number == 1:
        return Topology(generation, (1,) * len(slices[0]))
    if number > largest:
        return (
            Topology(generation, slices[-1], number // largest) if number % largest == 0 else None
        )
    shape = next((shape for shape in slices if math.prod(shape) == number), None)
    return shape and Topology(generation, shape)


def collective_seconds(kind: str, num_bytes: float, topology: Topology, *, group: int) -> float:
    """The least time that a collective takes, from links and distances alone.

    In a slice, an all-reduce is a reduce-scatter and an all-gather, around rings along all axes at once: each
    chip sends 2 (n - 1) / n of the bytes over its links, and the last bit passes half of each ring, or the
    whole of an axis whose ends are not linked, once on the way to the sum and once on the way back. Between
    slices each chip exchanges its part of the sum, as `between_seconds` says.

    Args:
      kind: `all-reduce`, or what passes once: `all-gather`, `reduce-scatter`, `all-to-all`.
      num_bytes: the size of the whole: what is reduced, or what has been gathered.
      topology: the chips.
      group: n, how many chips take part together; of fewer than a slice, the distance is not counted.
    """
    if group == 1:
        return 0.0
    chip, passes = topology.chip, 2 if kind == "all-reduce" else 1
    whole = math.prod(topology.shape)
    inside = min(group, whole)
    axes = [length for length in topology.shape if length > 1]
    # In three dimensions ends are linked by optical switches, which cubes have and parts of one do not.
    linked = len(topology.shape) == 2 or min(topology.shape) >= chip.rings
    rings = [linked and length % chip.rings == 0 for length in axes]
    seconds = 0.0
    if axes:
        # Along a line the chip at its end has one link only, and the others wait for it.
        rate = chip.link_rate * sum(2 if ring else 1 for ring in rings)
        seconds += passes * (inside - 1) / inside * num_bytes / rate
    if inside == whole:
        farthest = sum(n // 2 if ring else n - 1 for n, ring in zip(axes, rings, strict=True))
        seconds += passes * farthest * HOP_SECONDS
    if group > whole:
        seconds += between_seconds(num_bytes / whole, topology)
    return seconds


def between_seconds(num_bytes: float, topology: Topology) -> float:
    """The least time of averaging over slices so many bytes of each chip; latency is not published."""
    share = (topology.slices - 1) / topology.slices
    return 2 * share * num_bytes / topology.chip.network_rate if share else 0.0
