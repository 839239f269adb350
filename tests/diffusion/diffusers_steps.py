"""The steps of diffusers' DDPM and DDIM schedulers in float64, which round nothing that matters."""

from typing import Any

import numpy as np


def reference_step(
    case: dict[str, Any], alphas_cumprod: np.ndarray, number: int, arrays: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """prev_sample and pred_original_sample of one recorded step (`DDPMScheduler.step`, `DDIMScheduler.step`).

    Args:
      case: of cases.json.
      alphas_cumprod: the scheduler's own table of float32 numbers.
      number: of the step in the case.
      arrays: its model_output, sample and noise.
    """
    config, t, s = case["config"], case["timesteps"][number], case["prev_timesteps"][number]
    output, sample, noise = (arrays[name].astype(np.float64) for name in ("model_output", "sample", "noise"))
    output, learned = output[:, :3], output[:, 3:]
    alpha_prod = np.float64(alphas_cumprod[t])
    alpha_prod_prev = np.float64(alphas_cumprod[s]) if s >= 0 else np.float64(1.0)
    beta_prod, beta_prod_prev = 1 - alpha_prod, 1 - alpha_prod_prev
    x0, eps = {
        "epsilon": lambda: ((sample - beta_prod**0.5 * output) / alpha_prod**0.5, output),
        "sample": lambda: (output, (sample - alpha_prod**0.5 * output) / beta_prod**0.5),
        "v_prediction": lambda: (
            alpha_prod**0.5 * sample - beta_prod**0.5 * output,
            alpha_prod**0.5 * output + beta_prod**0.5 * sample,
        ),
    }[config["prediction_type"]]()
    x0 = thresholded(config, x0)
    current_beta = 1 - alpha_prod / alpha_prod_prev
    variance = beta_prod_prev / beta_prod * current_beta
    if case["case"].startswith("ddim"):
        std = case["eta"] * variance**0.5
        return alpha_prod_prev**0.5 * x0 + (1 - alpha_prod_prev - std**2) ** 0.5 * eps + std * noise, x0
    mean = alpha_prod_prev**0.5 * current_beta / beta_prod * x0
    mean += (1 - current_beta) ** 0.5 * beta_prod_prev / beta_prod * sample
    if s < 0:
        return mean, x0
    fraction = {"fixed_small": 0.0, "fixed_large": 1.0}.get(config["variance_type"], (learned + 1) / 2)
    return mean + np.exp(0.5 * (fraction * np.log(current_beta) + (1 - fraction) * np.log(variance))) * noise, x0


def thresholded(config: dict[str, Any], x0: np.ndarray) -> np.ndarray:
    """x0 clipped, scaled by a percentile of each image, or neither."""
    if config["thresholding"]:
        values = np.abs(x0).reshape(len(x0), -1)
        level = np.quantile(values, config["dynamic_thresholding_ratio"], axis=1)
        level = np.clip(level, 1, config["sample_max_value"]).reshape(-1, 1, 1, 1)
        return np.clip(x0, -level, level) / level
    return np.clip(x0, -1, 1) if config["clip_sample"] else x0
