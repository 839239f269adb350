"""How fast each sampler approaches the exact answer, by network calls, on data of which the answer is known.

    python -m benchmarks.convergence    # prints the table, draws docs/images/convergence.png; needs the `photos` extra

The data are Gaussian (tests/diffusion/gaussian.py), so that one step of any sampler is affine and the distribution it
ends in follows without drawing a sample. Every sampler goes from the same noise to the same noise, 0.98 to 0.02 of the
cosine schedule, by its times or by EDM's; the error is that of the final standard deviation, relative to the true one.
Heun's sampler makes two calls a step. The order is fitted to the last four columns.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.samplers import DDIMSampler, DDPMSampler, DPMSolverSampler, HeunSampler, Sampler
from imagen_jax.diffusion.schedules import CosineSchedule, EDMSchedule
from tests.diffusion import gaussian

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "convergence.png"
CALLS = [8, 16, 32, 64, 128, 256]
FIRST, LAST = 0.98, 0.02
CHURN = 6.0
# sampler by its number of steps, calls a step, EDM's times
ROWS: dict[str, tuple[Callable[[int], Sampler], int, bool]] = {
    "DDPM, gamma 0": (lambda n: DDPMSampler(), 1, False),
    "DDPM, gamma 1": (lambda n: DDPMSampler(gamma=1.0), 1, False),
    "DDIM, eta 1": (lambda n: DDIMSampler(eta=1.0), 1, False),
    "DDIM": (lambda n: DDIMSampler(), 1, False),
    "DPM-Solver++ 2M, eta 1": (lambda n: DPMSolverSampler(eta=1.0), 1, False),
    "DPM-Solver++ 2M": (lambda n: DPMSolverSampler(), 1, False),
    "DPM-Solver++ 2M, EDM times": (lambda n: DPMSolverSampler(), 1, True),
    "Heun": (lambda n: HeunSampler(), 2, False),
    "Heun, EDM times": (lambda n: HeunSampler(), 2, True),
    "Heun, EDM times, S_churn 6": (lambda n: HeunSampler(churn=min(CHURN / n, 0.414)), 2, True),
}


def log_snrs(num_steps: int, edm: bool) -> np.ndarray:
    """From the one noise to the other."""
    if edm:
        # sigma / alpha of the cosine schedule is tan(pi t / 2).
        low, high = (float(np.tan(np.pi / 2 * t)) for t in (LAST, FIRST))
        return np.asarray(EDMSchedule(sigma_min=low, sigma_max=high).log_snr(jnp.linspace(1.0, 0.0, num_steps + 1)))
    return np.asarray(CosineSchedule().log_snr(jnp.linspace(FIRST, LAST, num_steps + 1)))


def measure() -> dict[str, list[float]]:
    """Relative error of the final standard deviation, for every number of calls."""
    errors: dict[str, list[float]] = {}
    for name, (make, calls_a_step, edm) in ROWS.items():
        errors[name] = []
        for calls in CALLS:
            grid = log_snrs(calls // calls_a_step, edm)
            _, variance = gaussian.final_moments(make(calls // calls_a_step), grid)
            errors[name].append(abs(np.sqrt(variance / gaussian.moments(grid[-1])[1]) - 1))
    return errors


def draw(errors: dict[str, list[float]]) -> None:
    """Both axes in logarithms, where an order is a slope."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(7, 4.5))
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    for i, (name, row) in enumerate(errors.items()):
        axes.loglog(CALLS, row, "osD^v<>pXP"[i] + ("--" if ROWS[name][2] else "-"), label=name, markersize=8 - 0.5 * i)
    axes.set_xticks(CALLS, [str(calls) for calls in CALLS])
    axes.minorticks_off()
    axes.set_xlabel("network calls")
    axes.set_ylabel("relative error of the standard deviation")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    canvas.draw()
    # Few colours: a third of the bytes.
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(96).save(IMAGE, optimize=True)


def main() -> None:
    with jax.enable_x64(True):
        errors = measure()
    print("| sampler | " + " | ".join(str(calls) for calls in CALLS) + " | order |")
    print("|---" * (len(CALLS) + 2) + "|")
    for name, row in errors.items():
        order = gaussian.slope(CALLS[-4:], row[-4:])
        print(f"| {name} | " + " | ".join(f"{error:.1e}" for error in row) + f" | {order:.2f} |")
    draw(errors)


if __name__ == "__main__":
    main()
