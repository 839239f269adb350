"""A check that all devices compute the same bits: the gradient of the same rows, by each device for itself.

The copies of a run's state (`train.replicas`) tell nothing of a device that computes wrongly where results are summed
over devices, since all then have the same wrong sum. Here every device has whole parameters and the same rows, and
shares nothing until the checksums of loss and gradient are there.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from imagen_jax.checkpoints.trees import TrainState, named_leaves
from imagen_jax.errors import UserError, listed
from imagen_jax.sharding import rules
from imagen_jax.train.hooks import Hook, StepInfo
from imagen_jax.train.objective import Batch, Objective
from imagen_jax.train.replicas import ADVICE, checksums, described, odd_ones, of_all
from imagen_jax.typing import Array, PyTree


class GradientCheck(Hook):
    """Compares the gradient of one device's rows of a microbatch over all devices, every so many steps.

    A device holds meanwhile all parameters and their gradient, however the run shards them.

    Args:
      every: steps between two checks, >= 1.
      objective: gives the loss.
      mesh: the devices; where it is one alone, nothing is compared.
      accumulate_steps: microbatches of one update.
      frozen: the parameters that nobody trains.
    """

    def __init__(self, every: int, objective: Objective, mesh: Mesh, accumulate_steps: int = 1, frozen: PyTree = ()):
        self._every, self._mesh, self._frozen = every, mesh, frozen
        self._batch: Batch | None = None

        def part(params: PyTree, frozen: PyTree, rows: Batch, step: Array) -> Array:
            rng = jax.random.fold_in(jax.random.key(0), step)
            (loss, _), grads = jax.value_and_grad(objective.loss, has_aux=True)(params, frozen, rows, rng)
            return checksums([loss, *jax.tree.leaves(grads)])[None]

        def on_each(params: PyTree, frozen: PyTree, batch: Batch, step: Array) -> Array:
            num = rules.per_device_batch(len(jax.tree.leaves(batch)[0]), mesh, accumulate_steps)
            rows = jax.tree.map(lambda x: x[:num], batch)
            whole, each = PartitionSpec(), PartitionSpec(mesh.axis_names)
            run = jax.shard_map(part, mesh=mesh, in_specs=(whole,) * 4, out_specs=each, check_vma=False)
            return run(params, frozen, rows, step)

        self._sums = jax.jit(on_each)

    def remembered(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the newest one is what the next check takes rows of."""
        for batch in batches:
            self._batch = batch
            yield batch

    def wants(self, step: int) -> bool:
        """True at the steps that are checked."""
        return self._mesh.size > 1 and step % self._every == 0

    def before_step(self, info: StepInfo) -> None:
        """Computes the gradient on every device, with the parameters as they are.

        Raises:
          UserError: in every process, where results differ; names the devices.
        """
        if self._batch is None:
            return
        with jax.transfer_guard("allow"):
            self._check(info.state, self._batch, info.step)

    def _check(self, state: TrainState, batch: Batch, step: int) -> None:
        found = self._sums(state.params, self._frozen, batch, state.step)
        sums = of_all({shard.device.id: jnp.ravel(shard.data) for shard in found.addressable_shards})
        names = ["loss", *(f"the gradient of {name}" for name in named_leaves(state.params))]
        columns = [{device: row[number] for device, row in sums.items()} for number in range(len(names))]
        wrong = {name: odd for name, column in zip(names, columns, strict=True) if (odd := odd_ones(column))}
        if wrong:
            devices = described({device for odd in wrong.values() for device in odd})
            raise UserError(
                f"devices compute different bits of the same rows after step {step}: {devices}, in "
                f"{listed(list(wrong))}: {ADVICE}"
            )
