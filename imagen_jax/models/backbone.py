"""The contract between a network and the stage that trains and samples it.

A `Stage` reads of its network what `Backbone` lists and nothing else, so a new architecture is a Linen module with
these properties.
"""

from typing import Any, Protocol, runtime_checkable

from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.typing import Array, Float, PRNGKeyArray, PyTree

# Conditioning that a stage may give: token embeddings with their mask; a low-resolution image with its aug_level
# (Stage.low_res_size); an estimate of x0 (Stage.self_cond_rate); how the picture is framed (Stage.framing).
CONDITIONS = ("text", "low_res", "self_cond", "framing")


@runtime_checkable
class Backbone(Protocol):
    """A denoising network without its parameters: a Linen module, hashable, that any stage may hold.

    Attributes:
      size_factor: height and width of z_t must be multiples of this.
      learned_variance: the output has 2 c channels: the prediction, then a variance for each of its values.
      conditions: the CONDITIONS that the network reads.
    """

    @property
    def size_factor(self) -> int: ...

    @property
    def learned_variance(self) -> bool: ...

    @property
    def conditions(self) -> tuple[str, ...]: ...

    def init(
        self, rng: PRNGKeyArray, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> PyTree:
        """{"params": fresh parameters}; the fields of `cond` that are None have no parameters."""

    def apply(
        self,
        variables: PyTree,
        z_t: Float[Array, "b h w c"],
        log_snr: Float[Array, " b"],
        cond: Conditioning,
    ) -> Float[Array, "b h w c2"]:
        """One prediction for every row of z_t, c channels or, with a learned variance, 2 c."""


def check_backbone(model: Any, wanted: tuple[str, ...]) -> None:
    """Checks that a value is a Backbone and reads what a stage will give it.

    Args:
      model: the value.
      wanted: of CONDITIONS.

    Raises:
      UserError: it is no network, lacks a property, has one of another type, or does not read what is wanted.
    """
    is_network = all(callable(getattr(model, name, None)) for name in ("init", "apply"))
    if isinstance(model, type) or not is_network:
        raise UserError(f"Stage.model ({model!r}) must be a network, e.g. @unet.UNet(); in gin the trailing () matters")
    name = type(model).__name__
    fields = ("size_factor", "learned_variance", "conditions")
    factor, learned, conditions = (getattr(model, field, None) for field in fields)
    for field, good, value, expected in (
        ("size_factor", type(factor) is int and factor >= 1, factor, "a positive whole number, e.g. 1"),
        ("learned_variance", isinstance(learned, bool), learned, "True or False"),
        (
            "conditions",
            isinstance(conditions, tuple) and set(conditions) <= set(CONDITIONS),
            conditions,
            f"a tuple of some of {CONDITIONS}",
        ),
    ):
        if not good:
            raise UserError(
                f"Stage.model ({name}) has {field} {value!r}, expected {expected}; define it on the network, "
                "as models/backbone.py says"
            )
    missing = [one for one in wanted if one not in (conditions or ())]
    if missing:
        raise UserError(
            f"Stage.model ({name}) has conditions {conditions}, expected {wanted}: a stage gives text always, low_res "
            "with low_res_size, self_cond with self_cond_rate and framing where it is set; choose a network that reads "
            f"{missing[0]!r}, or unset that of the stage"
        )
