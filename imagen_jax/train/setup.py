"""Parts of a training run, built from its config: step, state, data, text.

A run starts from the first of these that exists:
    1. the newest checkpoint of its own model_dir
    2. `resume`: the newest checkpoint, with data position, of another run
    3. `init_from`, or the teacher of `distill`: the parameters of another run or of a bundle, at step 0
    4. scratch
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.checkpoints.processes import first_tells
from imagen_jax.checkpoints.proof import DamagedCheckpointError
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.cost.flops import model_flops
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.data.sizes import Size
from imagen_jax.data.task_batches import TaskBatches
from imagen_jax.data.tasks import shares_of
from imagen_jax.errors import UserError
from imagen_jax.finetune.source import Source, check_fits
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sharding import rules
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.store.reader import EmbeddingStore
from imagen_jax.train import spikes
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.distill import DistillObjective, check_teacher_text
from imagen_jax.train.inversion import InversionObjective
from imagen_jax.train.lora import LoraObjective, lora_record
from imagen_jax.train.objective import Batch
from imagen_jax.train.stage_objective import StageObjective
from imagen_jax.train.state import abstract_state, init_state, shardings_of
from imagen_jax.train.step import Metrics, StepSettings, abstract_batch, jit_train_step
from imagen_jax.typing import Bool, Float, Int, PyTree


def objective_of(config: TrainConfig) -> StageObjective:
    """Objective of `config`: its stage or LoRA, on the corpus alone or on a teacher; the null text is zeros.

    Raises:
      UserError: see `DistillObjective.build`.
    """
    shares = shares_of(config.data)
    sources = tuple(str(share.name) for share in shares) if len(shares) > 1 else ()
    objective: StageObjective
    if config.lora is not None:
        objective = LoraObjective(stage=config.stage, lora=config.lora)
    elif config.inversion is not None:
        sizes = config.text.sizes()
        assert isinstance(sizes, T5Config)
        objective = InversionObjective(stage=config.stage, num_vectors=config.inversion.num_vectors, sizes=sizes)
    else:
        objective = DistillObjective.build(config) or StageObjective(stage=config.stage)
    weights = tuple(share.loss_weight for share in shares) if sources else ()
    return dataclasses.replace(objective, sources=sources, loss_weights=weights if {*weights} - {1.0} else ())


def step_settings(config: TrainConfig) -> StepSettings:
    """Parts of one update that `config` asks for."""
    optimizer = config.optimizer.build()
    return StepSettings(
        optimizer=optimizer if config.max_spike_sigmas is None else spikes.watched(optimizer),
        rate=config.optimizer.rate(),
        seed=config.seed,
        ema_decay=config.ema_decay,
        ema_warmup=config.ema_warmup,
        accumulate_steps=config.accumulate_steps,
        max_spike_sigmas=config.max_spike_sigmas,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """A run's step and state, laid out over its devices.

    Attributes:
      objective: what is trained.
      settings: optimizer, average, seed, microbatches.
      batch_size: rows of one update.
      mesh: the devices.
      state: abstract state with shardings.
      sizes: heights and widths of x0, one a batch; empty: squares.
    """

    objective: StageObjective
    settings: StepSettings
    batch_size: int
    mesh: Mesh
    state: TrainState
    sizes: tuple[Size, ...] = ()

    @classmethod
    def build(cls, config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> "TrainSetup":
        """Lays the state of `config` out over its devices; compiles nothing.

        Args:
          config: the run.
          devices: what to lay it out over, also devices that are described only; None is all that are here.

        Raises:
          UserError: mesh or batch do not fit the devices, or the teacher cannot teach this stage.
        """
        mesh = config.mesh.build(devices)
        rules.per_device_batch(config.batch_size, mesh, config.accumulate_steps)
        settings, objective = step_settings(config), objective_of(config)
        return cls(
            objective=objective,
            settings=settings,
            batch_size=config.batch_size,
            mesh=mesh,
            state=abstract_state(objective, settings.optimizer, mesh),
            sizes=config.data.sizes,
        )

    def with_text(self, null: Conditioning | None, dtype: np.dtype) -> "TrainSetup":
        """The same, with the null text that the stage's null_text names (None is zeros) and the dtype of the data's."""
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, null=null, text_dtype=dtype))

    def with_base(self, base: Source) -> "TrainSetup":
        """The same, with the parameters that LoRA is trained on."""
        assert isinstance(self.objective, LoraObjective)
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, base=base))

    def with_word(self, base: Source, encoder: TextEncoder, start: np.ndarray) -> "TrainSetup":
        """The same, with what a word's vectors are trained on, and where they begin."""
        parts: dict[str, Any] = {"base": base, "encoder": encoder, "start": start}
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, **parts))

    def of_size(self, size: Size | None) -> "TrainSetup":
        """The same for batches of one size alone; None: of squares."""
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, size=size), sizes=())

    def largest(self) -> "TrainSetup":
        """The same for batches of the size of most pixels alone."""
        return self.of_size(max(self.sizes, key=math.prod)) if self.sizes else self

    def compile(self) -> jax.stages.Compiled:
        """The step, (state, batch, frozen) -> (state, metrics), ahead of the first batch; of sizes for the largest."""
        if self.sizes:
            return self.largest().compile()
        step = jit_train_step(self.objective, self.settings, self.mesh, self.state)
        batch = abstract_batch(self.objective, self.batch_size, self.mesh)
        return step.lower(self.state, batch, self.objective.frozen_spec(self.mesh)).compile()

    def compile_sizes(self) -> Callable[[TrainState, Batch, PyTree], tuple[TrainState, Metrics]]:
        """The step for batches of any of the sizes, one program each, compiled ahead of the first batch."""
        if not self.sizes:
            return self.compile()
        programs = {size: self.of_size(size).compile() for size in self.sizes}

        def step(state: TrainState, batch: Batch, frozen: PyTree) -> tuple[TrainState, Metrics]:
            _, height, width, _ = batch["x0"].shape
            return programs[height, width](state, batch, frozen)

        return step

    def model_flops(self) -> int:
        """FLOPs that one update needs, over all devices: what recomputation repeats is not counted.

        Of several sizes it is their mean.
        """
        if self.sizes:
            return sum(self.of_size(size).model_flops() for size in self.sizes) // len(self.sizes)
        objective = self.objective
        batch = abstract_batch(objective, self.batch_size, self.mesh)
        args = (self.state.params, objective.frozen_spec(self.mesh), batch, jax.eval_shape(lambda: jax.random.key(0)))
        # The one conditional of a stage's loss is the first look of self-conditioning.
        return model_flops(objective.loss, *args, taken=objective.stage.self_cond_rate)

    def load_frozen(self) -> PyTree:
        """The parameters that the step reads and nobody trains, e.g. a teacher's."""
        return self.objective.load_frozen(self.mesh)


def _own_checkpoint(config: TrainConfig, setup: TrainSetup) -> tuple[TrainState, dict[str, Any], str] | None:
    """Start from the run's own newest whole checkpoint, as `start_state` returns it; damaged ones are set aside.

    All processes take the step that the first one sees, and all go back where one of them finds damage.
    """
    aside: list[str] = []
    while steps := first_tells(lambda: folders.saved_steps(config.model_dir)[-2:]):
        own = steps[-1]
        try:
            state, position = checkpoints.restore(config.model_dir, setup.state, own)
        except DamagedCheckpointError as error:
            if len(steps) == 1:  # The last one is not given up for a start from scratch.
                raise
            path = folders.checkpoint_dir(config.model_dir, own)
            place = first_tells(functools.partial(folders.quarantine, path))
            aside.append(f"{str(error).split(';')[0]}; kept as {place}")
        else:
            return state, position, "; ".join([*aside, f"goes on from its own checkpoint of step {own}"])
    return None


def start_state(config: TrainConfig, setup: TrainSetup) -> tuple[TrainState, dict[str, Any] | None, str]:
    """The state a run starts from, its data position (None at step 0) and where it came from, in words."""
    own = _own_checkpoint(config, setup)
    if own is not None:
        return own
    if config.resume:
        state, position = checkpoints.restore(config.resume, setup.state)
        return state, position, f"resumes {config.resume} at step {int(state.step)}"
    source = start_source(config)
    fresh = functools.partial(init_state, setup.objective, setup.settings.optimizer, setup.settings.seed)
    state = jax.jit(fresh, out_shardings=shardings_of(setup.state))()
    if config.lora is not None:
        return state, None, f"starts LoRA of rank {config.lora.rank} on {config.init_from}"
    if config.inversion is not None:
        return state, None, f"starts the vectors of {config.inversion.word!r} on {config.init_from}"
    if source is None:
        return state, None, "starts from scratch"
    params = source.restore(setup.state.params, config.init_ema)
    # The step donates its state, so that no buffer may stand in it twice.
    state = state.replace(params=params, ema_params=jax.tree.map(lambda leaf: leaf.copy(), params))
    which = "averaged" if config.init_ema else "last"
    return state, None, f"starts from the {which} parameters of {source.path}, {source.checkpoint}"


def start_source(config: TrainConfig) -> Source | None:
    """Parameters that a new run starts from, or that LoRA is trained on; the same in every process."""
    if (record := lora_record(config)) is not None:
        return record.base
    path = config.init_from or (config.distill and config.distill.teacher_dir)
    if not path:
        return None
    return Source(**first_tells(lambda: dataclasses.asdict(Source.find(path, config.stage.name))))


def check_text(config: TrainConfig) -> TextEncoder:
    """The run's text encoder, after its fingerprint was found in the embedding store, if there is one.

    Raises:
      UserError: the store was made by another encoder, or the run starts from parameters of another network or
        encoder; names what differs.
    """
    encoder = TextEncoder(config.text)
    check_teacher_text(config, encoder)
    goes_on = first_tells(lambda: folders.latest_step(config.model_dir) is not None)
    if config.init_from and (config.lora is not None or config.inversion is not None or not goes_on):
        source = start_source(config)
        assert source is not None
        check_fits(source, config.stage, encoder.fingerprint())
    for share in shares_of(config.data):
        if share.store_dir is not None:
            store = EmbeddingStore.open(share.store_dir)
            store.check(encoder.fingerprint(store.fingerprint["dtype"]))
    return encoder


def null_text(config: TrainConfig, encoder: TextEncoder) -> Conditioning | None:
    """Null text of the stage: the embedding of "" (the store's, if there is one), or None for zeros."""
    if config.stage.null_text == "zeros":
        return None
    store_dir = next((share.store_dir for share in shares_of(config.data)), None)
    embedding = EmbeddingStore.open(store_dir).null_text if store_dir else encoder.encode_unpadded([""])[0]
    text, mask = _as_trained(config, embedding[None], np.ones((1, len(embedding)), bool), "the null text")
    return Conditioning(text=jnp.asarray(text), text_mask=jnp.asarray(mask))


def preview_text(
    config: TrainConfig, encoder: TextEncoder
) -> tuple[Float[np.ndarray, "b n d"], Bool[np.ndarray, "b n"]] | None:
    """Embeddings and mask of the captions that previews draw; None where they draw rows of the data.

    Raises:
      UserError: a caption is longer than the stage's text.
    """
    if config.previews is None or not config.previews.captions or config.stage.low_res_size is not None:
        return None
    return _as_trained(config, *encoder.encode(config.previews.captions), "a caption of the previews")


def _as_trained(
    config: TrainConfig, text: Float[np.ndarray, "b n d"], mask: Bool[np.ndarray, "b n"], what: str
) -> tuple[Float[np.ndarray, "b m d"], Bool[np.ndarray, "b m"]]:
    """Text padded to the length that the stage is trained with, whatever the encoder's is."""
    length, longest = config.stage.max_text_length, int(mask.sum(1).max())
    if longest > length:
        raise UserError(
            f"{what} has {longest} tokens, but the stage's max_text_length is {length}; raise it, or lower the text "
            f"encoder's max_length ({config.text.max_length}) to it"
        )
    ends = ((0, 0), (0, max(0, length - text.shape[1])))
    return np.pad(text, (*ends, (0, 0)))[:, :length], np.pad(mask, ends)[:, :length]


def open_data(
    config: TrainConfig, mesh: Mesh, step: int, position: dict[str, Any] | None, encoder: TextEncoder
) -> BatchIterator | TaskBatches:
    """This process's rows of the batches from the one after `step` updates on.

    Raises:
      UserError: the data order would not be the one the checkpoint was trained with.
    """
    kind = BatchIterator if config.data.task is None else TaskBatches
    batches = kind(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=step,
        rows=_own_rows(mesh, config.batch_size).tolist(),
        encoder=encoder,
    )
    here = dict(batches.position())
    # Checkpoints of older versions do not name their corpus.
    position = {"corpus": here.get("corpus"), **position} if position is not None else here
    changed = [
        f"{name}: got {here.get(name)!r}, the checkpoint has {position.get(name)!r}"
        for name in sorted(position.keys() | here.keys())
        if here.get(name) != position.get(name)
    ]
    if changed:
        batches.close()
        raise UserError(
            f"the data order differs from the checkpoint's ({'; '.join(changed)}): set it back, "
            f"or start a new model_dir with init_from"
        )
    return batches


def _own_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    placed = rules.batch_sharding(mesh).devices_indices_map((batch_size,))
    return rules.rows_of_process(placed, batch_size, jax.process_index())


def global_batches(
    batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, batch_size: int
) -> Iterator[dict[str, jax.Array]]:
    """Makes global arrays, rows split over the mesh, of the rows that this process has (`rules.rows_of_process`)."""
    sharding = rules.batch_sharding(mesh)
    own = _own_rows(mesh, batch_size)
    place = np.zeros(batch_size, np.int64)
    place[own] = np.arange(len(own))

    def array(rows: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return rows[place[index[0]]]

        return jax.make_array_from_callback((batch_size, *rows.shape[1:]), sharding, part)

    for batch in batches:
        # On purpose, whatever the loop's guard says: with several processes jax takes it for an accident.
        with jax.transfer_guard_host_to_device("allow"):
            arrays = {name: array(rows) for name, rows in batch.items()}
        yield arrays
