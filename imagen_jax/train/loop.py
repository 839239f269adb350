"""The training loop, an ordered contract:

    1. evaluate on the parameters as they are     so that a preview shows what the checkpoint beside it holds
    2. save                                       before the batch is drawn: the data position is then exact
    3. next batch
    4. step
    5. write metrics
A kill between any two of them loses at most the updates since the last checkpoint, and the data goes on
exactly where that checkpoint stood.

A run starts from the first of these that exists:
    1. the newest checkpoint of its own model_dir
    2. `resume`: the newest checkpoint, with data position, of another run
    3. `init_from`, or the teacher of `distill`: the averaged parameters of another run, at step 0
    4. scratch
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from imagen_jax.checkpoints import checkpoints
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.cost.flops import count_flops, peak_flops
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.progress import Progress
from imagen_jax.sampling.preview_hook import PreviewHook
from imagen_jax.sharding import rules
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.store.reader import EmbeddingStore
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.distill import DistillObjective
from imagen_jax.train.interrupt import StopRequest
from imagen_jax.train.metrics import MetricWriter, Window
from imagen_jax.train.run_dir import describe_run
from imagen_jax.train.state import abstract_state, init_state, shardings_of
from imagen_jax.train.step import abstract_batch, jit_train_step
from imagen_jax.typing import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """Parts of one training run, built from its config.

    Attributes:
      config: the run.
      mesh: the devices.
      optimizer: the optax transformation.
      state: abstract state with shardings.
      lesson: what the run learns from a teacher, if `config.distill` names one.
    """

    config: TrainConfig
    mesh: Mesh
    optimizer: optax.GradientTransformation
    state: TrainState
    lesson: DistillObjective | None = None

    @classmethod
    def build(cls, config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> "TrainSetup":
        """Lays the state of `config` out over its devices; compiles nothing.

        Args:
          config: the run.
          devices: what to lay it out over, also devices that are described only; None is all that are here.
        """
        mesh = config.mesh.build(devices)
        rules.per_device_batch(config.batch_size, mesh, config.accumulate_steps)
        optimizer = config.optimizer.build()
        state = abstract_state(config.stage, optimizer, mesh)
        return cls(config=config, mesh=mesh, optimizer=optimizer, state=state, lesson=DistillObjective.build(config))

    def compile(self, null: Conditioning | None = None) -> tuple[jax.stages.Compiled, int]:
        """The step, (state, batch, *teacher) -> (state, metrics), ahead of the first batch, and FLOPs of one update.

        Args:
          null: the null text that the stage's null_text names; None is zeros.
        """
        step = jit_train_step(self.config, self.optimizer, self.mesh, self.state, null, self.lesson)
        teacher = () if self.lesson is None else (self.state.params,)
        args = (self.state, abstract_batch(self.config, self.mesh), *teacher)
        return step.lower(*args).compile(), count_flops(step, *args)

    def teacher(self) -> tuple[PyTree, ...]:
        """Further argument of the step: the averaged parameters of the teacher, if there is one."""
        if self.config.distill is None:
            return ()
        return (checkpoints.restore_params(self.config.distill.teacher_dir, self.state.params),)


def start_state(config: TrainConfig, program: TrainSetup) -> tuple[TrainState, dict[str, Any] | None, str]:
    """The state a run starts from, its data position (None at step 0) and where it came from, in words."""
    own = checkpoints.latest_step(config.model_dir)
    if own is not None:
        state, position = checkpoints.restore(config.model_dir, program.state, own)
        return state, position, f"goes on from its own checkpoint of step {own}"
    if config.resume:
        state, position = checkpoints.restore(config.resume, program.state)
        return state, position, f"resumes {config.resume} at step {int(state.step)}"
    fresh = functools.partial(init_state, config.stage, program.optimizer, config.seed)
    state = jax.jit(fresh, out_shardings=shardings_of(program.state))()
    source = config.init_from or (config.distill and config.distill.teacher_dir)
    if source:
        params = checkpoints.restore_params(source, program.state.params)
        # The step donates its state, so that no buffer may stand in it twice.
        state = state.replace(params=params, ema_params=jax.tree.map(lambda leaf: leaf.copy(), params))
        return state, None, f"starts from the averaged parameters of {source}"
    return state, None, "starts from scratch"


def check_text(config: TrainConfig) -> TextEncoder:
    """The run's text encoder, after its fingerprint was found in the embedding store, if there is one.

    Raises:
      UserError: the store was made by another encoder; names the part that differs.
    """
    encoder = TextEncoder(config.text)
    if config.data.store_dir is None:
        return encoder
    store = EmbeddingStore.open(config.data.store_dir)
    store.check(encoder.fingerprint(store.fingerprint["dtype"]))
    return encoder


def null_text(config: TrainConfig, encoder: TextEncoder) -> Conditioning | None:
    """Null text of the stage: the embedding of "" (the store's, if there is one), or None for zeros."""
    if config.stage.null_text == "zeros":
        return None
    store_dir = config.data.store_dir
    embedding = EmbeddingStore.open(store_dir).null_text if store_dir else encoder.encode_unpadded([""])[0]
    text = np.zeros((1, config.stage.max_text_length, embedding.shape[1]), np.float32)
    text[0, : len(embedding)] = embedding
    mask = np.arange(text.shape[1])[None] < len(embedding)
    return Conditioning(text=jnp.asarray(text), text_mask=jnp.asarray(mask))


def open_data(config: TrainConfig, step: int, position: dict[str, Any] | None, encoder: TextEncoder) -> BatchIterator:
    """This process's batches from the one after `step` updates on.

    Raises:
      UserError: the data order would not be the one the checkpoint was trained with.
    """
    batches = BatchIterator(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        encoder=encoder,
    )
    here = dict(batches.position())
    if position is not None and position != here:
        changed = [
            f"{name}: got {here.get(name)!r}, the checkpoint has {position.get(name)!r}"
            for name in sorted(position.keys() | here.keys())
            if here.get(name) != position.get(name)
        ]
        raise UserError(
            f"the data order differs from the checkpoint's ({'; '.join(changed)}): set it back, "
            f"or start a new model_dir with init_from"
        )
    return batches


def global_batches(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Host batches as global arrays, rows split over the mesh."""
    sharding = rules.batch_sharding(mesh)
    for batch in batches:
        # On purpose, whatever the loop's guard says: with several processes jax takes it for an accident.
        with jax.transfer_guard_host_to_device("allow"):
            arrays = {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
        yield arrays


def say(text: str) -> None:
    """One line for people, from the first process."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def train(config: TrainConfig, operative_text: str = "", stop_at: int | None = None) -> TrainState:
    """Trains one stage; run again, it goes on from its newest checkpoint.

    Args:
      config: the run.
      operative_text: operative gin config, kept beside every checkpoint.
      stop_at: saves and returns after this many updates, as a signal would; None trains to the end.

    Returns:
      The last state.

    Raises:
      UserError: see the parts: mesh, batch, store, checkpoints, non-finite loss.
    """
    checkpoints.remove_partial(config.model_dir)
    encoder = check_text(config)
    program = TrainSetup.build(config)
    state, position, origin = start_state(config, program)
    start = int(state.step)
    end = config.num_steps if stop_at is None else min(stop_at, config.num_steps)
    say(f"{config.stage.name}: {origin}; {max(end - start, 0)} steps to go")
    if start >= end:
        return state
    batches = open_data(config, start, position, encoder)
    # After everything that can be refused: what a refused run says of itself must not replace what is true of this one,
    # and compiling takes minutes.
    describe_run(config.model_dir, program.state, program.mesh, operative_text)
    null = null_text(config, encoder)
    compiled, flops = program.compile(null)
    teacher = program.teacher()
    device_batches = global_batches(iter(batches), program.mesh)
    peak = peak_flops(program.mesh.devices.flat[0].device_kind)
    window = Window(start, config.batch_size, flops, peak and peak * program.mesh.size)
    writer = MetricWriter(config.model_dir, start)
    preview = config.previews and PreviewHook(config, config.previews, encoder, writer, null)
    progress = Progress(end, config.stage.name, "step", initial=start, shown=jax.process_index() == 0)
    with StopRequest() as stop, progress, contextlib.closing(batches):
        for step in range(start, end + 1):
            reason = stop.reason(step)
            last = step == end or reason is not None
            if step > start:
                if config.previews and preview and step % config.previews.every == 0:
                    window.check()
                    preview.draw(step, state.ema_params)
                if last or step % config.save_every == 0:
                    window.check()
                    checkpoints.save(
                        config.model_dir, state, batches.position(), operative_text, config.keep_checkpoints
                    )
            if last:
                break
            with jax.transfer_guard("disallow"):
                window.start()
                batch = next(device_batches)
                window.data_ready()
                state, metrics = compiled(state, batch, *teacher)
                window.add(metrics)
                shown: dict[str, float] = {}
                if (step + 1) % config.log_every == 0 or step + 1 == end:
                    line = window.close()
                    writer.write(line)
                    shown = {"loss": line["loss"], "images_per_s": line["images_per_s"]}
            progress.update(1, **shown)
    writer.close()
    if reason is not None:
        say(f"{config.stage.name}: stopped by {reason}, saved at step {step}; run the same command to go on")
    return state


def run(config: TrainConfig, operative_config: str = "") -> None:
    """The console command's door to `train`.

    Raises:
      UserError: also when the run directory cannot be written.
    """
    try:
        train(config, operative_config)
    except OSError as error:
        raise UserError(
            f"the run in {config.model_dir} stopped on a file: {error}. Its checkpoints are intact; free space or "
            f"fix the permissions, then run the same command again"
        ) from error
