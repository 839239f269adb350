"""Training of LoRA (`finetune.lora`): the factors are the parameters, the base's parameters are frozen.

Base and factors are merged inside the loss, so that any network is trained as it is: optimizer, average and checkpoints
hold the factors alone.
"""

import dataclasses

import jax
from jax.sharding import Mesh

from imagen_jax.checkpoints import folders
from imagen_jax.checkpoints.processes import first_tells
from imagen_jax.errors import UserError
from imagen_jax.finetune import lora, source
from imagen_jax.finetune.lora import LoraConfig
from imagen_jax.finetune.source import LoraRecord, Source
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.objective import Batch
from imagen_jax.train.stage_objective import StageObjective
from imagen_jax.train.state import shardings_of
from imagen_jax.typing import Array, Float, PRNGKeyArray, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraObjective(StageObjective):
    """Trains LoRA factors of a stage on its loss.

    Args:
      lora: rank, alpha, targets.
      base: the trained parameters; None until they are needed: a plan does without.
    """

    lora: LoraConfig
    base: Source | None = None

    def init(self, rng: PRNGKeyArray) -> PyTree:
        """Fresh factors, boxed with the logical names of their kernels' axes.

        Raises:
          UserError: a target matches no kernel.
        """
        return lora.init(self.lora, source.abstract_network(self.stage), rng)

    def frozen_spec(self, mesh: Mesh) -> PyTree:
        """The base's parameters: those of the network."""
        return self.network_spec(mesh)

    def load_frozen(self, mesh: Mesh) -> PyTree:
        """The base's averaged parameters.

        Raises:
          UserError: they are gone, damaged or of another network.
        """
        assert self.base is not None
        return self.base.restore(self.frozen_spec(mesh))

    def network_params(self, params: PyTree, frozen: PyTree) -> PyTree:
        """The base with the factors merged."""
        return lora.merged(frozen, params, self.lora.scale)

    def diffusion_loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, rng: PRNGKeyArray, mesh: Mesh | None = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss of the merged network; its gradient by `params` is that of the factors alone."""
        network = self.network_params(params, frozen)
        if mesh is not None and mesh.size > 1:
            network = jax.lax.with_sharding_constraint(network, shardings_of(self.network_spec(mesh)))
        return super().diffusion_loss(network, frozen, batch, rng, mesh)


def lora_record(config: TrainConfig) -> LoraRecord | None:
    """LoRA and base of a run, the same in every process; None where it trains all parameters.

    A run that goes on keeps the base of its own checkpoints, also where its `init_from` was trained further.

    Raises:
      UserError: the base is not there, or the run's checkpoints are of another LoRA.
    """
    if config.lora is None:
        return None
    wanted, path, stage = config.lora, str(config.init_from), config.stage.name

    def base() -> dict[str, str]:
        if folders.latest_step(config.model_dir) is None:
            return dataclasses.asdict(Source.find(path, stage))
        own = folders.existing(config.model_dir, None)
        if not source.is_adapted(own):
            raise UserError(f"{own} holds all parameters of the stage, no LoRA; choose another model_dir")
        record = LoraRecord.read(own)
        if record.config != wanted:
            raise UserError(
                f"{own} was trained with {record.config}, the run asks for {wanted}; set that, or another model_dir"
            )
        return dataclasses.asdict(Source.find(path, stage, record.base.checkpoint))

    return LoraRecord(config=wanted, base=Source(**first_tells(base)))
