"""Makes steps.npz of this folder: what the samplers of k-diffusion ask a network, and where they end.

README.md has the versions. Of the package only `sampling.py` is imported, and its helper `utils.py`, whose torchvision
it does not use; the rest would need experiment trackers and image libraries.
"""

import importlib
import importlib.metadata
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUM, SIGMA_MIN, SIGMA_MAX, RHO = 10, 0.002, 80.0, 7.0
SHAPE = (2, 32)
# Of every value: two Gaussians, by weight, mean and standard deviation.
WEIGHTS, MEANS, STDS = (0.3, 0.7), (-0.6, 0.4), (0.1, 0.25)
CHURN = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007}
# name of the case: (function, its settings, whether it takes a noise_sampler)
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "euler": ("sample_euler", {}, False),
    "euler_ancestral": ("sample_euler_ancestral", {"eta": 1.0}, True),
    "euler_ancestral_0.5": ("sample_euler_ancestral", {"eta": 0.5}, True),
    "heun": ("sample_heun", {}, False),
    "heun_churn": ("sample_heun", CHURN, False),
    "dpmpp_2m": ("sample_dpmpp_2m", {}, False),
    "dpmpp_2m_sde_0": ("sample_dpmpp_2m_sde", {"eta": 0.0, "solver_type": "midpoint"}, True),
    "dpmpp_2m_sde_0.5": ("sample_dpmpp_2m_sde", {"eta": 0.5, "solver_type": "midpoint"}, True),
    "dpmpp_2m_sde_1": ("sample_dpmpp_2m_sde", {"eta": 1.0, "solver_type": "midpoint"}, True),
}


def sampling() -> types.ModuleType:
    """The real k_diffusion/sampling.py."""
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(importlib.metadata.distribution("k-diffusion").locate_file("k_diffusion"))]
    transforms = types.ModuleType("torchvision.transforms")
    transforms.__dict__["functional"] = None
    sys.modules |= {
        "k_diffusion": package,
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.transforms": transforms,
    }
    return importlib.import_module("k_diffusion.sampling")


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | x0 + sigma noise = x] of the two Gaussians."""
    variance = sigma[:, None] ** 2
    shares, answers = [], []
    for weight, mean, std in zip(WEIGHTS, MEANS, STDS, strict=True):
        total = std**2 + variance
        shares.append(weight * torch.exp(-0.5 * (x - mean) ** 2 / total) / torch.sqrt(total))
        answers.append((std**2 * x + variance * mean) / total)
    return (shares[0] * answers[0] + shares[1] * answers[1]) / (shares[0] + shares[1])


def main() -> None:
    torch.set_default_dtype(torch.float64)
    module = sampling()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(NUM, *SHAPE))
    sigmas = module.get_sigmas_karras(NUM, SIGMA_MIN, SIGMA_MAX, RHO)
    start = SIGMA_MAX * rng.normal(size=SHAPE)
    arrays: dict[str, np.ndarray] = {"sigmas": sigmas.numpy(), "start": start, "noise": noise}
    for case, (function, settings, takes_sampler) in CASES.items():
        drawn = iter(torch.from_numpy(noise))
        asked: list[dict] = []
        extra = {"noise_sampler": lambda *_, drawn=drawn: next(drawn)} if takes_sampler else {}
        real_randn_like = torch.randn_like
        torch.randn_like = lambda x, drawn=drawn: next(drawn)
        try:
            final = getattr(module, function)(
                denoiser, torch.from_numpy(start), sigmas, callback=asked.append, disable=True, **settings, **extra
            )
        finally:
            torch.randn_like = real_randn_like
        for key in ("x", "sigma_hat", "denoised"):
            arrays[f"{case}/{key}"] = np.stack([call[key].numpy() for call in asked])
        arrays[f"{case}/final"] = final.numpy()
    np.savez_compressed(Path(__file__).parent / "steps.npz", **arrays)


if __name__ == "__main__":
    main()
