"""The training loop, an ordered contract. At each step boundary:

    1. before_step hooks      evaluate on the parameters as they are: a preview shows what the checkpoint beside it has
    2. save                   before the batch is drawn: the data position is then exact
       on_save hooks          for each checkpoint that is whole now: `train.saving` writes while training goes on
    3. on_stop hooks          at the last boundary, and at the one where a signal asks to stop; the run ends here
    4. next batch
    5. step
    6. after_step hooks       metrics lines, progress

The boundary at which a process begins has neither 1 nor 2: its state was saved already, or is fresh. Before 1 and 2
the updates so far are checked: a step skips what is not finite, and too many in a row end the run. A kill between any
two of them loses at most the updates since the last checkpoint, and the data goes on exactly where that checkpoint
stood. An exception, also of a hook, calls the on_error hooks and ends the run; the checkpoints stay as they are.
`train.hooks` says what a hook sees at each event.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from imagen_jax.checkpoints import checkpoints, folders, marks
from imagen_jax.checkpoints.trained_stage import StageRecord
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.cost.flops import peak_flops
from imagen_jax.data.pipeline import BatchIterator
from imagen_jax.data.task_batches import TaskBatches
from imagen_jax.errors import ended_at_once
from imagen_jax.files import AnyPath
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.progress import Progress
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.train import hosts
from imagen_jax.train.bad_steps import BadSteps
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.fewer_devices import on_devices
from imagen_jax.train.fine_tuning import prepare
from imagen_jax.train.hooks import Hook, HookList, StepInfo
from imagen_jax.train.instruments import Instruments
from imagen_jax.train.interrupt import StopRequest
from imagen_jax.train.ledger import Ledger
from imagen_jax.train.lora import LoraObjective
from imagen_jax.train.metrics import MetricLines, MetricWriter, PassedOver, ShowProgress, Window, read_lines
from imagen_jax.train.objective import Batch
from imagen_jax.train.programs import kept_programs
from imagen_jax.train.recomputation import GradientCheck
from imagen_jax.train.replicas import ReplicaCheck
from imagen_jax.train.run_dir import check_one_folder, describe_run, only_trainer
from imagen_jax.train.saving import Saver, SaveTimes
from imagen_jax.train.setup import (
    TrainSetup,
    check_text,
    global_batches,
    null_text,
    open_data,
    preview_text,
    start_state,
)
from imagen_jax.train.state import shardings_of
from imagen_jax.train.step import Metrics
from imagen_jax.train.watchdog import Watchdog
from imagen_jax.typing import Bool, Float, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Period:
    """Steps at which a loop acts.

    Args:
      end: updates after which it ends.
      log_every: steps between metrics lines; the last step has one.
    """

    end: int
    log_every: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is about to begin, for whoever builds its hooks.

    Attributes:
      config: the run.
      setup: its step and state.
      encoder: its text encoder.
      preview_text: embeddings and mask of the captions that previews draw; None where they draw rows of the data.
      null: the stage's null text; None is zeros.
      writer: metrics.jsonl and TensorBoard; hooks may add pictures.
      frozen: the parameters that nobody trains.
      start: updates done.
    """

    config: TrainConfig
    setup: TrainSetup
    encoder: TextEncoder
    preview_text: tuple[Float[np.ndarray, "b n d"], Bool[np.ndarray, "b n"]] | None
    null: Conditioning | None
    writer: MetricWriter
    frozen: PyTree = ()
    start: int = 0

    def network_params(self, params: PyTree) -> PyTree:
        """The network's parameters, where `params` are those that are trained, or their average."""
        objective = self.setup.objective
        if not isinstance(objective, LoraObjective):
            return params
        placed = shardings_of(objective.network_spec(self.setup.mesh))
        return jax.jit(objective.network_params, out_shardings=placed)(params, self.frozen)


def companions(config: TrainConfig, encoder: TextEncoder, operative_text: str) -> dict[str, bytes]:
    """Files beside the arrays of every checkpoint of a run: its operative config, its record and its vocabulary."""
    record = StageRecord.of_run(config.stage, config.sampling, encoder, operative_text)
    where = folders.checkpoint_dir(config.model_dir, config.num_steps)
    return {"config.gin": operative_text.encode(), **record.files(where)}


def no_hooks(run: Run) -> Sequence[Hook]:
    """No hooks but the loop's own: metrics lines and progress."""
    return ()


def say(text: str) -> None:
    """One line for people, from the first process."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def update_loop(
    update: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[Batch],
    *,
    period: Period,
    window: Window,
    hooks: Hook,
    saver: Saver,
    stop: Callable[[int], str | None],
) -> tuple[TrainState, str | None]:
    """Runs the contract of this module, whatever the objective is.

    Args:
      update: one step; it may take the buffers of the state it is given.
      state: where to start.
      batches: global batches.
      period: when to end and log.
      window: opened at the state's step.
      hooks: called as `train.hooks` says.
      saver: saves, when it is due and at the end, with the position of the data.
      stop: the reason to stop at a step boundary, or None.

    Returns:
      The last state, and the reason that stopped it or None.

    Raises:
      UserError: too many updates in a row were not finite.
    """
    start = done = int(state.step)
    reason = None
    try:
        for step in range(start, period.end + 1):
            info = StepInfo(step=step, state=state)
            reason = stop(step)
            last = step == period.end or reason is not None
            if step > start:
                saving, wanted = saver.due(step) or last, hooks.wants(step)
                if saving or wanted:
                    window.check()
                if wanted:
                    hooks.before_step(info)
                for path in saver.boundary(state, saving, last):
                    hooks.on_save(dataclasses.replace(info, checkpoint=path))
            if last:
                hooks.on_stop(dataclasses.replace(info, reason=reason))
                break
            with jax.transfer_guard("disallow"):
                window.start()
                batch = next(batches)
                window.data_ready()
                state, metrics = update(state, batch)
                done = step + 1
                window.add(metrics)
                due = done % period.log_every == 0 or done == period.end
                hooks.after_step(StepInfo(step=done, state=state, line=window.close() if due else None))
    except BaseException as error:
        hooks.on_error(StepInfo(step=done, state=state), error)
        raise
    return state, reason


def train(
    config: TrainConfig,
    operative_text: str = "",
    stop_at: int | None = None,
    hooks: Callable[[Run], Sequence[Hook]] = no_hooks,
) -> TrainState:
    """Trains one stage; run again, it goes on from its newest checkpoint.

    Args:
      config: the run.
      operative_text: operative gin config, kept beside every checkpoint.
      stop_at: saves and returns after this many updates, as a signal would; None trains to the end.
      hooks: builds what happens beside training; called once nothing can be refused any more.

    Returns:
      The last state.

    Raises:
      UserError: see the parts: mesh, batch, store, checkpoints, non-finite loss; or another run trains there.
    """
    ledger = Ledger(config.model_dir, config.num_steps, active=jax.process_index() == 0)
    hosts.check_same(lambda: hosts.code_and_config(operative_text))
    encoder = check_text(config)
    config, fewer = on_devices(config, jax.device_count())
    if fewer:
        say(fewer)
    setup = TrainSetup.build(config)
    with only_trainer(config.model_dir) as check_alone:
        check_one_folder(config.model_dir)
        state = _train(config, setup, encoder, operative_text, stop_at, hooks, check_alone, ledger)
        done = int(state.step)
        if jax.process_index() == 0 and done >= config.num_steps and done == folders.latest_step(config.model_dir):
            marks.write_finished(config.model_dir, done)
        return state


def _peak_flops(setup: TrainSetup) -> float | None:
    """FLOPs a second of all devices, None where the kind has no published figure."""
    peak = peak_flops(setup.mesh.devices.flat[0].device_kind)
    return peak and peak * setup.mesh.size


def _save_after(
    first: Sequence[Callable[[], None]],
    config: TrainConfig,
    batches: BatchIterator | TaskBatches,
    beside: Mapping[str, bytes],
) -> Callable[[TrainState], Callable[[], AnyPath]]:
    """Makes what prepares the save of a state, see `train.saving`; `first` is called each time."""

    def prepare_save(state: TrainState) -> Callable[[], AnyPath]:
        for one in first:
            one()
        kept = (config.keep_checkpoints, config.keep_every)
        return functools.partial(checkpoints.save, config.model_dir, state, batches.position(), beside, *kept)

    return prepare_save


def _checked(
    config: TrainConfig, setup: TrainSetup, frozen: PyTree, batches: Iterator[Batch]
) -> tuple[list[Hook], Iterator[Batch]]:
    """Hooks that look for devices which compute wrongly, and the batches as they are to pass them."""
    if config.sdc_every is None:
        return [], batches
    gradients = GradientCheck(config.sdc_every, setup.objective, setup.mesh, config.accumulate_steps, frozen)
    return [ReplicaCheck(config.sdc_every), gradients], gradients.remembered(batches)


def _train(
    config: TrainConfig,
    setup: TrainSetup,
    encoder: TextEncoder,
    operative_text: str,
    stop_at: int | None,
    hooks: Callable[[Run], Sequence[Hook]],
    check_alone: Callable[[], None],
    ledger: Ledger,
) -> TrainState:
    read_lines(config.model_dir)  # Refuses a damaged file now, not after compiling.
    checkpoints.remove_partial(config.model_dir)
    null, previewed = null_text(config, encoder), preview_text(config, encoder)
    tuning = prepare(config, setup, encoder)
    beside = companions(config, encoder, operative_text) | dict(tuning.beside)
    if not config.data.encodes:
        # Nothing needs it from here on, and no plan of a device's memory counts it.
        encoder.release()
    state, position, origin = start_state(config, tuning.setup)
    start = int(state.step)
    end = config.num_steps if stop_at is None else min(stop_at, config.num_steps)
    say(f"{config.stage.name}: {origin}; {max(end - start, 0)} steps to go")
    if start >= end:
        return state
    if warning := config.stage.untrained_level(config.sampling.aug_level):
        say(warning)
    batches = open_data(config, setup.mesh, start, position, tuning.reader)
    hosts.check_same(lambda: hosts.data(config.data, batches.position()))
    # After everything that can be refused: what a refused run says of itself must not replace what is true of this one,
    # and compiling takes minutes.
    describe_run(config.model_dir, setup.state, setup.mesh, operative_text)
    setup = tuning.setup.with_text(null, batches.text_dtype)
    # With several processes SIGTERM is jax's own, which agrees with the others.
    at_once = ended_at_once() if jax.process_count() == 1 else contextlib.nullcontext()
    with kept_programs(config.model_dir), at_once, ledger.during("compile"):
        compiled, flops = setup.compile_sizes(), setup.model_flops()
    hosts.check_same(lambda: hosts.program(compiled))
    frozen = setup.load_frozen()
    bad_steps = BadSteps(config.max_bad_steps, config.model_dir, batches.examples_of)
    window = Window(start, config.batch_size, flops, _peak_flops(setup), setup.objective.metrics, bad_steps)
    writer = MetricWriter(config.model_dir, start)
    run = Run(
        config=config,
        setup=setup,
        encoder=encoder,
        preview_text=previewed,
        null=null,
        writer=writer,
        frozen=frozen,
        start=start,
    )
    extra = hooks(run)
    progress = Progress(end, config.stage.name, "step", initial=start, shown=jax.process_index() == 0)
    # Where none may be passed over the processes have nothing to tell each other.
    passed_over = PassedOver(lambda: batches.bad_records) if config.data.bad_records == "skip" else None
    instruments = Instruments(ledger, config.model_dir, config.log_every)
    lines = MetricLines(writer, batches.epochs, passed_over, instruments.fields)
    times = SaveTimes(every=config.save_every, minutes=config.save_minutes, look_every=config.log_every)
    save = _save_after((check_alone, writer.send, ledger.send), config, batches, beside)
    saver = Saver(save, times, config.background_saves, say, instruments.saving)
    watchdog = Watchdog(config.watchdog_seconds, config.model_dir, start)
    drawn = instruments.batches(global_batches(iter(batches), setup.mesh, config.batch_size))
    checks, drawn = _checked(config, setup, frozen, drawn)
    closing, told = contextlib.closing, instruments.running(start)
    with StopRequest() as stop, told, watchdog, progress, closing(batches), closing(writer), closing(saver):
        state, reason = update_loop(
            lambda state, batch: compiled(state, batch, frozen),
            state,
            drawn,
            period=Period(end=end, log_every=config.log_every),
            window=window,
            hooks=HookList(
                (instruments, watchdog, *checks, lines, ShowProgress(progress), instruments.evaluating(extra))
            ),
            saver=saver,
            stop=stop.reason,
        )
    if reason is not None:
        say(f"{config.stage.name}: stopped by {reason}, saved at step {int(state.step)}; run the same command to go on")
    return state
