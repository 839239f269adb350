"""Published figures of TPU chips, per device as JAX counts devices.

Sources: Google Cloud TPU documentation, docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e, tpu7x ("Peak compute
per chip", "HBM bandwidth per chip", "Bidirectional inter-chip interconnect (ICI) bandwidth", "Data center network
(DCN) bandwidth", "Per-host NIC configuration"). The bidirectional figure is the sum of both directions of every link,
so one direction of one link carries bidirectional / 2 / links. The page of v4 states neither ICI nor DCN: its figures
are those of "How to Scale Your Model", chapter "How to think about TPUs" (jax-ml.github.io/scaling-book), 4.5e10
bytes/s a link and direction, 2.5e10 bytes/s a host of 4 chips. tpu7x has two devices a chip, which share the chip's
figures evenly.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device of a TPU generation.

    Attributes:
      peak_flops: dense bfloat16 FLOP/s.
      hbm_bytes_per_s: bytes/s from and to its memory.
      hbm_limit_bytes: what the compiler lets a program use (libtpu 0.0.51, from its own message).
      ici_link_bytes_per_s: bytes/s of one link to a neighbouring chip, one direction.
      ici_links: links of a chip: 4 in a 2-D torus, 6 in a 3-D one.
      dcn_bytes_per_s: bytes/s to other slices, a device's share of its host's network.
    """

    peak_flops: float
    hbm_bytes_per_s: float
    hbm_limit_bytes: float
    ici_link_bytes_per_s: float
    ici_links: int
    dcn_bytes_per_s: float


GIB = 2.0**30
GBIT = 1e9 / 8

CHIPS: dict[str, Chip] = {
    "v4": Chip(
        peak_flops=275e12,
        hbm_bytes_per_s=1200e9,
        hbm_limit_bytes=30.75 * GIB,
        ici_link_bytes_per_s=45e9,
        ici_links=6,
        dcn_bytes_per_s=2.5e10 / 4,
    ),
    # Two 100 Gbit/s adapters a host of 8 chips.
    "v5e": Chip(
        peak_flops=197e12,
        hbm_bytes_per_s=819e9,
        hbm_limit_bytes=15.75 * GIB,
        ici_link_bytes_per_s=400e9 / 2 / 4,
        ici_links=4,
        dcn_bytes_per_s=25 * GBIT,
    ),
    "v5p": Chip(
        peak_flops=459e12,
        hbm_bytes_per_s=2765e9,
        hbm_limit_bytes=95.73 * GIB,
        ici_link_bytes_per_s=1200e9 / 2 / 6,
        ici_links=6,
        dcn_bytes_per_s=50 * GBIT,
    ),
    # Four 200 Gbit/s adapters a host of 8 chips.
    "v6e": Chip(
        peak_flops=918e12,
        hbm_bytes_per_s=1638e9,
        hbm_limit_bytes=31.24 * GIB,
        ici_link_bytes_per_s=800e9 / 2 / 4,
        ici_links=4,
        dcn_bytes_per_s=100 * GBIT,
    ),
    "tpu7x": Chip(
        peak_flops=2307e12 / 2,
        hbm_bytes_per_s=7380e9 / 2,
        hbm_limit_bytes=94.74 * GIB,
        ici_link_bytes_per_s=1200e9 / 2 / 6 / 2,
        ici_links=6,
        dcn_bytes_per_s=100 * GBIT / 2,
    ),
}
# What JAX calls them, for devices that are here.
DEVICE_KINDS = (
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6", "v6e"),
    ("TPU7x", "tpu7x"),
)


def chip_of(device_kind: str) -> Chip | None:
    """Figures of a device kind, None where they are not known (every CPU and GPU)."""
    return next((CHIPS[name] for start, name in DEVICE_KINDS if device_kind.startswith(start)), None)
