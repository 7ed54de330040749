"""Datasheets of TPU chips and their slices, and the times of messages that follow from them."""

import math
from typing import NamedTuple

from metajax.zoo.options import nearest

from ..flags.settings import UsageError

# Latency from a chip to its neighbor, as in https://jax-ml.github.io/scaling-book/sharding.
HOP_SECONDS = 1e-6


class Chip(NamedTuple):
    """A generation of TPUs, with the rates of its datasheet.

    Attributes:
      slices: Shapes of available slices, smallest first.
      memory_bytes: Size of the HBM.
      memory_rate: Bytes per second to and from the HBM.
      peak: Operations per second of matrix products in bfloat16.
      link_rate: Bytes per second to one neighbor, in one direction.
      rings: Length that an axis must be a multiple of for its ends to be linked to each other.
      network_rate: Bytes per second from a chip to other slices, through its host; None if unpublished.
      options: Compiler options by which a chip of two cores is one device.
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
# (https://arxiv.org/abs/2304.01433). Rates of links are given there per chip and for both directions: v5e has
# 400 GB/s on 4 links, hence 50 GB/s per link and direction; v6e 800 on 4, v5p 1,200 on 6; v4 is given per
# link. The network is given per pod of 256 chips (v5e 6.4 Tb/s, v6e 25.6) or per chip (v5p 50 Gb/s). "16
# GB" and "32 GB" are binary, as the compiler counts them; it reserves up to 2%.
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
    """Chips linked to their neighbors, in one slice or several.

    Attributes:
      generation: Name of the chip, a key of CHIPS.
      shape: Number of chips along each axis of a slice.
      slices: Number of slices; the data center's network connects them.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The datasheet of the chip."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def name(self) -> str:
        """JAX's name of one slice, such as v5e:16x16."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"


def topology(name: str, *, slices: int = 1) -> Topology:
    """Parses the name of a slice.

    Args:
      name: Name such as v5e:16x16.
      slices: Number of slices.

    Returns:
      The topology.

    Raises:
      UsageError: If there is no such chip or slice.
    """
    generation = name.partition(":")[0]
    if generation not in CHIPS:
        raise UsageError(
            f"--topology={name} does not start with a known TPU; {nearest(generation, list(CHIPS))}"
        )
    known = {Topology(generation, shape).name: shape for shape in CHIPS[generation].slices}
    if name not in known:
        raise UsageError(
            f"--topology={name} is not a slice of {generation}; {nearest(name, list(known))}"
        )
    return Topology(generation, known[name], slices)


def of_chips(generation: str, number: int) -> Topology | None:
    """Finds the slice with a number of chips, or a number of the largest slices.

    Args:
      generation: Name of the chip, a key of CHIPS.
      number: Number of chips.

    Returns:
      The topology; None if there is none.
    """
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
    """Computes a lower bound of the time of a collective, from the rates of links and the distances alone.

    In a slice, an all-reduce is a reduce-scatter and an all-gather, around rings along all axes at once: each
    chip sends 2 (n - 1) / n of the bytes over its links, and the last bit passes half of each ring, or the
    whole of an axis whose ends are not linked, once on the way to the sum and once on the way back. Between
    slices each chip exchanges its part of the sum, see `between_seconds`.

    Args:
      kind: Kind of collective: `all-reduce`, or one that passes data once, such as `all-gather`,
        `reduce-scatter` and `all-to-all`.
      num_bytes: Size of the whole: of the reduced or the gathered arrays.
      topology: Chips.
      group: Number of chips n that take part together; for less than a slice, distances are ignored.

    Returns:
      Seconds.
    """
    if group == 1:
        return 0.0
    chip, passes = topology.chip, 2 if kind == "all-reduce" else 1
    whole = math.prod(topology.shape)
    inside = min(group, whole)
    axes = [length for length in topology.shape if length > 1]
    # In three dimensions optical switches link the ends of an axis; slices smaller than a cube have none.
    linked = len(topology.shape) == 2 or min(topology.shape) >= chip.rings
    rings = [linked and length % chip.rings == 0 for length in axes]
    seconds = 0.0
    if axes:
        # At the end of an unlinked axis a chip has one link only, and the others wait for it.
        rate = chip.link_rate * sum(2 if ring else 1 for ring in rings)
        seconds += passes * (inside - 1) / inside * num_bytes / rate
    if inside == whole:
        farthest = sum(n // 2 if ring else n - 1 for n, ring in zip(axes, rings, strict=True))
        seconds += passes * farthest * HOP_SECONDS
    if group > whole:
        seconds += between_seconds(num_bytes / whole, topology)
    return seconds


def between_seconds(num_bytes: float, topology: Topology) -> float:
    """Computes a lower bound of the time of averaging over slices; latency is not published.

    Args:
      num_bytes: Number of bytes that each chip contributes.
      topology: Chips.

    Returns:
      Seconds; 0 for a single slice.
    """
    share = (topology.slices - 1) / topology.slices
    return 2 * share * num_bytes / topology.chip.network_rate if share else 0.0
