"""What accelerators can do at most, as their makers publish it."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """One device.

    Attributes:
        name: What topologies call it.
        kind: What JAX calls it, `jax.Device.device_kind`.
        flops: Of bfloat16 a second, at the peak.
        memory: Bytes of its memory.
        memory_bandwidth: Bytes a second between it and the memory.
        link_bandwidth: Bytes a second that it can send to the others of its slice, over all its links.
        slice_bandwidth: Bytes a second that it can send to other slices, over the network of the data centre.
        source: Where the figures come from.
    """

    name: str
    kind: str
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    slice_bandwidth: float
    source: str


# Of the links and of the network of the data centre the pages give what both directions carry, or what a host has:
# v5e 400 GB/s, and 2 x 100 Gb/s for 8 chips; v5p 1,200 GB/s, and 50 Gb/s a chip; v6e 800 GB/s, and 4 x 200 Gb/s for 8.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v5e",
            "TPU v5 lite",
            197e12,
            16 * 2**30,
            819e9,
            200e9,
            3.125e9,
            "https://docs.cloud.google.com/tpu/docs/v5e",
        ),
        Chip("v5p", "TPU v5", 459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, "https://docs.cloud.google.com/tpu/docs/v5p"),
        Chip(
            "v6e",
            "TPU v6 lite",
            918e12,
            32 * 2**30,
            1638e9,
            400e9,
            12.5e9,
            "https://docs.cloud.google.com/tpu/docs/v6e",
        ),
    )
}


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX calls so; None if nothing is published of it here.

    Args:
        kind: `jax.Device.device_kind`.

    Example:
        >>> chip_of("TPU v5 lite").name
        'v5e'
    """
    return next((chip for chip in CHIPS.values() if chip.kind == kind), None)
