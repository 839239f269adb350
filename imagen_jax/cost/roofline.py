"""Least time of a step: each resource's work over its published rate.

    compute_s = FLOPs / peak          hbm_s = bytes / HBM rate
    ici_s     = bytes sent / (2 links)    a ring along one torus dimension, both directions at once
    dcn_s     = bytes sent between slices / DCN rate
    step time between max(...) (perfect overlap) and their sum (none)
    MFU       = model FLOPs / (step time x peak)      (Chowdhery et al. 2022, PaLM, appendix B)

Left out, so that a real step is slower: matmuls that fill the matrix unit badly, latencies, slices too small for a
torus, waiting for data.
"""

import dataclasses

from imagen_jax.cost.chips import Chip

SECONDS_A_DAY = 86400.0
# Both directions of one torus dimension.
RING_LINKS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Work of one device in a step.

    Attributes:
      model_flops: FLOPs that the model needs, without recomputation.
      hardware_flops: FLOPs that are executed.
      hbm_bytes: bytes to and from HBM.
      ici_bytes: bytes sent to other devices of the slice.
      dcn_bytes: bytes sent to other slices.
    """

    model_flops: float
    hardware_flops: float
    hbm_bytes: float
    ici_bytes: float
    dcn_bytes: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of each resource in one step."""

    compute_s: float
    hbm_s: float
    ici_s: float
    dcn_s: float

    def times(self) -> dict[str, float]:
        """Seconds by resource."""
        return {"compute": self.compute_s, "hbm": self.hbm_s, "ici": self.ici_s, "dcn": self.dcn_s}

    @property
    def bound(self) -> str:
        """The resource that a step waits for most."""
        return max(self.times(), key=self.times().__getitem__)

    @property
    def fastest_s(self) -> float:
        """Step time where everything overlaps."""
        return max(self.times().values())

    @property
    def slowest_s(self) -> float:
        """Step time where nothing overlaps."""
        return sum(self.times().values())


def roofline(work: Work, chip: Chip) -> Roofline:
    """Times of one device's work on a chip."""
    return Roofline(
        compute_s=work.hardware_flops / chip.peak_flops,
        hbm_s=work.hbm_bytes / chip.hbm_bytes_per_s,
        ici_s=work.ici_bytes / (RING_LINKS * chip.ici_link_bytes_per_s),
        dcn_s=work.dcn_bytes / chip.dcn_bytes_per_s,
    )


def mfu(model_flops: float, step_time_s: float, chip: Chip) -> float:
    """Share of a device's peak that the model's own FLOPs use, in [0, 1]."""
    return model_flops / (step_time_s * chip.peak_flops)


def days(step_time_s: float, num_steps: int) -> float:
    """Days that `num_steps` take."""
    return step_time_s * num_steps / SECONDS_A_DAY
