"""Steps from z_t to z_s, s < t: ancestral, DDIM, DPM-Solver++ 2M, Heun. One scan in sampling/ drives them all.

With alpha, sigma at t and alpha_s, sigma_s at s, and r = SNR(t) / SNR(s) = exp(log_snr_t - log_snr_s) < 1:

    posterior q(z_s | z_t, x0):
      mean = r (alpha_s / alpha) z_t + (1 - r) alpha_s x0
      var_small = (1 - r) sigma_s²            var_large = (1 - r) sigma²
    DDPM   z_s = mean(x0_hat) + sqrt(var) noise,  log var = (1 - gamma) log var_small + gamma log var_large
           (paper appendix A); a learned variance puts its own fraction, pixel by pixel, in the place of gamma
    DDIM   z_s = alpha_s x0_hat + sqrt(sigma_s² - var) eps_hat + sqrt(var) noise,  var = eta² var_small
           (arXiv 2010.02502, eq. 12 and 16)
    2M     z_s = (sigma_s / sigma) exp(-eta h) z_t + alpha_s (1 - exp(-(1 + eta) h)) D
                 + sigma_s sqrt(1 - exp(-2 eta h)) noise,
           D = x0_hat + h / (2 h_before) (x0_hat - x0_hat_before),  h = (log_snr_s - log_snr_t) / 2
           (DPM-Solver++ 2M, arXiv 2211.01095, algorithm 2; eta = 1 is its stochastic form, section 5)
    Heun   z_s = alpha_s x0_hat + sigma_s eps_hat + alpha_s (s_s - s_t) (eps_hat' - eps_hat) / 2,  s = sigma / alpha,
           eps_hat' at the end of the step that the first two terms make (arXiv 2206.00364, algorithm 2)

At the last step, to the clean image, all of them give x0_hat, so the scan leaves it out.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from imagen_jax.diffusion.process import alpha_sigma, eps_from_x0
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float


class Estimate(NamedTuple):
    """Estimate of x0 and eps at one z_t, after guidance and thresholding.

    Attributes:
      x0: x0_hat.
      eps: eps_hat.
      fraction: of a learned variance: 0 is the posterior variance, 1 the forward one; None if none is learned.
    """

    x0: Float[Array, "b *s"]
    eps: Float[Array, "b *s"]
    fraction: Float[Array, "b *s"] | None = None


class Step(NamedTuple):
    """Log-SNR at the two ends of a step, and where the step before began: -inf at the first one."""

    log_snr_t: Float[Array, " b"]
    log_snr_s: Float[Array, " b"]
    log_snr_before: Float[Array, " b"]


Predict = Callable[[Float[Array, "b *s"], Float[Array, " b"]], Estimate]


@runtime_checkable
class Sampler(Protocol):
    """One reverse step."""

    def step(
        self,
        predict: Predict,
        z_t: Float[Array, "b *s"],
        step: Step,
        noise: Float[Array, "b *s"],
        x0_before: Float[Array, "b *s"],
    ) -> tuple[Float[Array, "b *s"], Float[Array, "b *s"]]:
        """Draws z_s from z_t.

        Args:
          predict: the network at (z, log_snr).
          z_t: where the step begins.
          step: its log-SNRs.
          noise: unit Gaussian, new at every step.
          x0_before: x0_hat of the step before; anything at the first one.

        Returns:
          z_s, and x0_hat at z_t.
        """


def posterior_moments(
    z_t: Float[Array, "b *s"],
    x0: Float[Array, "b *s"],
    log_snr_t: Float[Array, " b"],
    log_snr_s: Float[Array, " b"],
) -> tuple[Float[Array, "b *s"], Float[Array, "..."]]:
    """Mean and variance of q(z_s | z_t, x0), a Gaussian; log_snr_s > log_snr_t."""
    alpha_t, _ = alpha_sigma(log_snr_t, z_t.ndim)
    alpha_s, sigma_s = alpha_sigma(log_snr_s, z_t.ndim)
    gap = (log_snr_t - log_snr_s).reshape(alpha_t.shape)
    snr_ratio, one_minus = jnp.exp(gap), -jnp.expm1(gap)
    mean = snr_ratio * (alpha_s / alpha_t) * z_t + one_minus * alpha_s * x0
    return mean, one_minus * sigma_s**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMSampler:
    """Ancestral sampler with the variance interpolated in log space.

    Args:
      gamma: in [0, 1]; 0 is the posterior variance, 1 the variance of the forward step. A network that learned its
        variance decides instead.
      use_learned: False: gamma decides in any case, as for a network whose learned variance was spoilt by training
        without the variational bound.
    """

    gamma: float = 0.0
    use_learned: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma ({self.gamma}) must be in [0, 1]: 0 is the posterior variance, 1 the forward one")

    def step(
        self,
        predict: Predict,
        z_t: Float[Array, "b *s"],
        step: Step,
        noise: Float[Array, "b *s"],
        x0_before: Float[Array, "b *s"],
    ) -> tuple[Float[Array, "b *s"], Float[Array, "b *s"]]:
        """See `Sampler.step`."""
        estimate = predict(z_t, step.log_snr_t)
        mean, var_small = posterior_moments(z_t, estimate.x0, step.log_snr_t, step.log_snr_s)
        _, sigma_t = alpha_sigma(step.log_snr_t, z_t.ndim)
        _, sigma_s = alpha_sigma(step.log_snr_s, z_t.ndim)
        # var_large / var_small = sigma_t² / sigma_s², so the log-space mix is one power of that ratio.
        fraction = estimate.fraction if self.use_learned and estimate.fraction is not None else self.gamma
        return mean + jnp.sqrt(var_small) * (sigma_t / sigma_s) ** fraction * noise, estimate.x0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIMSampler:
    """DDIM.

    Args:
      eta: in [0, 1]; 0 is deterministic, 1 has the noise of the ancestral sampler with gamma 0.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        _check_eta("DDIMSampler", self.eta)

    def step(
        self,
        predict: Predict,
        z_t: Float[Array, "b *s"],
        step: Step,
        noise: Float[Array, "b *s"],
        x0_before: Float[Array, "b *s"],
    ) -> tuple[Float[Array, "b *s"], Float[Array, "b *s"]]:
        """See `Sampler.step`."""
        estimate = predict(z_t, step.log_snr_t)
        alpha_s, sigma_s = alpha_sigma(step.log_snr_s, z_t.ndim)
        if self.eta == 0:
            return alpha_s * estimate.x0 + sigma_s * estimate.eps, estimate.x0
        # var_small / sigma_s² = 1 - r.
        share = self.eta**2 * -jnp.expm1(step.log_snr_t - step.log_snr_s).reshape(sigma_s.shape)
        kept = sigma_s * jnp.sqrt(1.0 - share) * estimate.eps
        return alpha_s * estimate.x0 + kept + sigma_s * jnp.sqrt(share) * noise, estimate.x0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverSampler:
    """DPM-Solver++ 2M: second order with one network call a step; 15 to 25 steps are usual.

    Args:
      eta: in [0, 1]; 0 is the ordinary differential equation, 1 the stochastic one (SDE-DPM-Solver++).
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        _check_eta("DPMSolverSampler", self.eta)

    def step(
        self,
        predict: Predict,
        z_t: Float[Array, "b *s"],
        step: Step,
        noise: Float[Array, "b *s"],
        x0_before: Float[Array, "b *s"],
    ) -> tuple[Float[Array, "b *s"], Float[Array, "b *s"]]:
        """See `Sampler.step`; the first step is of first order."""
        x0 = predict(z_t, step.log_snr_t).x0
        _, sigma_t = alpha_sigma(step.log_snr_t, z_t.ndim)
        alpha_s, sigma_s = alpha_sigma(step.log_snr_s, z_t.ndim)
        h = (0.5 * (step.log_snr_s - step.log_snr_t)).reshape(sigma_t.shape)
        h_before = (0.5 * (step.log_snr_t - step.log_snr_before)).reshape(sigma_t.shape)
        # Where the schedule is clipped a step may have no length: then there is no slope to go by.
        extrapolated = x0 + jnp.where(h_before > 0, h / (2.0 * h_before), 0.0) * (x0 - x0_before)
        z_s = (sigma_s / sigma_t) * jnp.exp(-self.eta * h) * z_t
        z_s += alpha_s * -jnp.expm1(-(1.0 + self.eta) * h) * extrapolated
        if self.eta > 0:
            z_s += sigma_s * jnp.sqrt(-jnp.expm1(-2.0 * self.eta * h)) * noise
        return z_s, x0


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeunSampler:
    """EDM's sampler: Heun's second-order step, with two network calls, after adding noise ("churn").

    Meant for `EDMSchedule` as the times: the step is even in sigma / alpha, which has no end at t = 1 of the other
    schedules.

    Args:
      churn: by how much sigma / alpha grows before each step, in [0, sqrt(2) - 1]: EDM's S_churn over the number of
        steps; 0 is deterministic.
      churn_min, churn_max: sigma / alpha between which that is done.
      noise_scale: standard deviation of the added noise, EDM's S_noise.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = float("inf")
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.churn <= 2**0.5 - 1:
            raise UserError(
                f"HeunSampler.churn ({self.churn}) must be in [0, 0.4142]: EDM's S_churn divided by the number of steps"
            )
        if not 0.0 <= self.churn_min <= self.churn_max or not self.noise_scale > 0:
            raise UserError(
                f"HeunSampler needs 0 <= churn_min ({self.churn_min}) <= churn_max ({self.churn_max}) and noise_scale "
                f"({self.noise_scale}) > 0"
            )

    def step(
        self,
        predict: Predict,
        z_t: Float[Array, "b *s"],
        step: Step,
        noise: Float[Array, "b *s"],
        x0_before: Float[Array, "b *s"],
    ) -> tuple[Float[Array, "b *s"], Float[Array, "b *s"]]:
        """See `Sampler.step`."""
        log_snr_t = step.log_snr_t
        if self.churn > 0:
            z_t, log_snr_t = self._churned(z_t, log_snr_t, noise)
        first = predict(z_t, log_snr_t)
        alpha_s, sigma_s = alpha_sigma(step.log_snr_s, z_t.ndim)
        z_euler = alpha_s * first.x0 + sigma_s * first.eps
        second = predict(z_euler, step.log_snr_s)
        change = jnp.exp(-0.5 * step.log_snr_s) - jnp.exp(-0.5 * log_snr_t)
        return z_euler + 0.5 * alpha_s * change.reshape(alpha_s.shape) * (second.eps - first.eps), first.x0

    def _churned(
        self, z_t: Float[Array, "b *s"], log_snr: Float[Array, " b"], noise: Float[Array, "b *s"]
    ) -> tuple[Float[Array, "b *s"], Float[Array, " b"]]:
        sigma = jnp.exp(-0.5 * log_snr)
        growth = jnp.where((sigma >= self.churn_min) & (sigma <= self.churn_max), self.churn, 0.0)
        raised = log_snr - 2.0 * jnp.log1p(growth)
        alpha, _ = alpha_sigma(log_snr, z_t.ndim)
        alpha_raised, _ = alpha_sigma(raised, z_t.ndim)
        added = self.noise_scale * (sigma * jnp.sqrt(growth * (2.0 + growth))).reshape(alpha.shape)
        return alpha_raised * (z_t / alpha + added * noise), raised


def renoise(
    z_s: Float[Array, "b *s"], log_snr_s: Float[Array, " b"], log_snr_t: Float[Array, " b"], noise: Float[Array, "b *s"]
) -> Float[Array, "b *s"]:
    """Draws z_t from z_s, t > s: the forward process from s on, q(z_t | z_s)."""
    alpha_s, _ = alpha_sigma(log_snr_s, z_s.ndim)
    alpha_t, sigma_t = alpha_sigma(log_snr_t, z_s.ndim)
    one_minus = -jnp.expm1(log_snr_t - log_snr_s).reshape(sigma_t.shape)
    return (alpha_t / alpha_s) * z_s + sigma_t * jnp.sqrt(one_minus) * noise


def estimate_from_x0(x0: Float[Array, "b *s"], z_t: Float[Array, "b *s"], log_snr_t: Float[Array, " b"]) -> Estimate:
    """The estimate whose x0_hat is `x0` and whose eps_hat agrees with z_t."""
    return Estimate(x0, eps_from_x0(x0, z_t, log_snr_t))


def _check_eta(name: str, eta: float) -> None:
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"{name}.eta ({eta}) must be in [0, 1]: 0 is deterministic, 1 fully stochastic")
