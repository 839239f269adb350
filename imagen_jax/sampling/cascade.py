"""The cascade: captions → base image → super-resolution → … → final image, and the changes of given images.

cascade = Cascade.load("runs/demo")
*_, images = cascade.sample(["a red cube", "a blue ring"])        # uint8 [2, 64, 64, 3]
*_, images = cascade.inpaint(["a red cube"], photo, mask)         # photo float [1, 64, 64, 3] in [-1, 1]
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.checkpoints.trained_stage import TrainedStage
from imagen_jax.cost import memory
from imagen_jax.errors import UserError
from imagen_jax.export.bundle import export_bundle
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.progress import Progress
from imagen_jax.sampling.drawing import (
    CascadePrograms,
    RowInputs,
    StageInputs,
    as_trained,
    draw_all,
    estimate_bytes,
    prepare,
)
from imagen_jax.sampling.images import finite, to_uint8
from imagen_jax.sampling.loading import drawing_devices, load_stages, stage_sizes, with_lora
from imagen_jax.sampling.programs import export_programs
from imagen_jax.sampling.prompts import tell_lost
from imagen_jax.sampling.request import (
    MODES,
    SETTINGS,
    EditRequest,
    Request,
    check_images,
    reduce_images,
    seeds_and_ids,
    with_border,
)
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage.guided import EditArrays
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.inversion import open_encoder
from imagen_jax.typing import Array, Bool, Float, UInt8

WEIGHTS = ("auto", "resident", "offload")
Images = UInt8[np.ndarray, "b _h _w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cascade:
    """Stages in the order they run, and the text encoder they share.

    Args:
      stages: at least one; each draws from what the one before drew.
      encoder: of their text.
      mesh: devices that draw; None is the first local one.
      weights: "resident": all stages in one program, their parameters on the devices; "offload": stage by stage, each
        stage's parameters on the devices while it runs; "auto": resident if `drawing.estimate_bytes` says that it fits.
    """

    stages: tuple[TrainedStage, ...]
    encoder: TextEncoder
    mesh: Mesh | None = None
    weights: str = "auto"

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise UserError(f"weights ({self.weights!r}) must be one of {', '.join(WEIGHTS)}")

    @classmethod
    def load(
        cls,
        path: str,
        *,
        mesh: MeshConfig | None = None,
        weights: str = "auto",
        text_encoder: str | None = None,
        steps: Mapping[str, int | str] | None = None,
        lora: Sequence[str] = (),
        embeddings: Sequence[str] = (),
    ) -> "Cascade":
        """Loads a cascade directory, the run directory of one stage, a bundle, or a gin file (see `loading`).

        Args:
          path: where the trained stages are.
          mesh: how the local devices share the work; None: `data` over all of them.
          weights: see the class.
          text_encoder: where the pretrained text encoder is; None: where the checkpoints say.
          steps: see `loading.load_stages`.
          lora: LoRAs to merge into the stages they were trained on, "DIR" or "DIR:WEIGHT"; see `loading.with_lora`.
          embeddings: files of learned words (`text.inversion`), which captions may then hold.

        Raises:
          UserError: nothing trained there, stages that do not fit each other, or another vocabulary or encoder than
            they were trained with.
        """
        stages = with_lora(load_stages(path, text_encoder, steps), lora)
        devices = drawing_devices()
        built = (mesh or MeshConfig()).build(devices) if mesh is not None or len(devices) > 1 else None
        encoder = open_encoder(stages[0].text, embeddings, stages[0].text_fingerprint)
        return cls(stages=tuple(stages), encoder=encoder, mesh=built, weights=weights)

    def export(self, directory: str, format: str = "bundle", **options: Any) -> dict[str, float]:
        """Writes the cascade in a form that leaves the house, loads that and compares it with this one.

        Args:
          directory: where to; of this machine or in a bucket.
          format, options: "bundle" (docs/export.md) and keyword arguments of `export.bundle.export_bundle`, or
            "stablehlo" (docs/export_programs.md) and those of `programs.export_programs`.

        Returns:
          What `export_bundle` does; {} for programs.
        """
        if format == "bundle":
            return export_bundle(self.stages, directory, **options)
        if format != "stablehlo":
            raise UserError(f"format ({format!r}) must be bundle or stablehlo")
        export_programs(self, directory, **options)
        return {}

    @property
    def config_hash(self) -> str:
        """One word that changes when the config of any stage does."""
        return "-".join(loaded.config_hash for loaded in self.stages)

    @property
    def names(self) -> list[str]:
        """Names of the stages."""
        return [loaded.stage.name for loaded in self.stages]

    def configure(self, change: Callable[[Stage, SamplingConfig], SamplingConfig]) -> "Cascade":
        """The same cascade with every stage's sampling settings passed through `change`."""
        stages = [dataclasses.replace(one, sampling=change(one.stage, one.sampling)) for one in self.stages]
        return dataclasses.replace(self, stages=tuple(stages))

    def only(self, first: str | None = None, last: str | None = None) -> "Cascade":
        """The stages from the one named `first` to the one named `last`, both included.

        Raises:
          UserError: there is no such stage, or they are the wrong way round.
        """
        for name in (first, last):
            if name is not None and name not in self.names:
                raise UserError(f"no stage {name!r} in this cascade; it has {', '.join(self.names)}")
        begin = 0 if first is None else self.names.index(first)
        end = len(self.stages) if last is None else self.names.index(last) + 1
        if begin >= end:
            raise UserError(f"stage {first!r} comes after {last!r}; the order is {', '.join(self.names)}")
        return dataclasses.replace(self, stages=self.stages[begin:end])

    def above_base(self) -> "Cascade":
        """The super-resolution stages alone.

        Raises:
          UserError: there is none.
        """
        above = [one.stage.name for one in self.stages if one.stage.low_res_size is not None]
        if not above:
            raise UserError(f"no super-resolution stage in this cascade; it has {', '.join(self.names)}")
        return self.only(first=above[0])

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        negative_prompts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        low_res: Float[np.ndarray, "b h w 3"] | None = None,
        batch_size: int = 64,
        label: str = "sample",
    ) -> list[Images]:
        """Draws one image a prompt through every stage.

        Args:
          prompts: captions; "" is each stage's null text and draws unconditionally.
          seed: of the noise, one for all or one an image. Image i depends on prompt i, and on the seed and i or on its
            own seed, whatever the batch size.
          negative_prompts: what guidance leads away from in place of the null text, one a prompt; "" is the null text.
          size: height and width of the last stage's images; None: the stages' own.
          low_res: needed where the first stage is a super-resolution stage: its inputs, in [-1, 1].
          batch_size: images drawn at a time; the last batch is filled up so that nothing compiles twice.
          label: what the progress shows.

        Returns:
          For each stage, its images as uint8.
        """
        options = {"seed": seed, "negative_prompts": negative_prompts, "size": size, "low_res": low_res}
        return self._run("text", prompts, None, batch_size=batch_size, label=label, **options)

    def upscale(self, prompts: Sequence[str], images: Float[np.ndarray, "b h w 3"], **options: Any) -> list[Images]:
        """Super-resolution only: the user's images through the stages above the base.

        Args:
          prompts: what they show.
          images: in [-1, 1], of any height and width that the networks can take.
          options: aug_level of every stage (None: as configured); seed, negative_prompts, batch_size and label of
            `sample`.
        """
        return self._run("upscale", prompts, images, **options)

    def vary(self, prompts: Sequence[str], images: Float[np.ndarray, "b h w 3"], **options: Any) -> list[Images]:
        """Variations: images made small, corrupted and drawn large again (paper section 2.4, figure A.32).

        Args:
          prompts: what they show.
          images: in [-1, 1], of the size that the last stage draws.
          options: aug_level (0.3), in [0, 1]: the larger, the less of the image is left, None: as configured; those of
            `upscale`.
        """
        return self._run("vary", prompts, images, **options)

    def image_to_image(
        self, prompts: Sequence[str], images: Float[np.ndarray, "b h w 3"], *, strength: float = 0.6, **options: Any
    ) -> list[Images]:
        """Changes images: each stage diffuses them to time `strength` and draws from there.

        Args:
          prompts: what to make of them.
          images: in [-1, 1], of the size that the last stage is to draw.
          strength: time in (0, 1]: near 0 keeps the image, 1 keeps nothing of it.
          options: seed, negative_prompts, batch_size and label of `sample`.
        """
        return self._run("image_to_image", prompts, images, strength=strength, **options)

    def inpaint(
        self,
        prompts: Sequence[str],
        images: Float[np.ndarray, "b h w 3"],
        masks: Bool[np.ndarray, "b h w"],
        **options: Any,
    ) -> list[Images]:
        """Draws the masked part of images anew, so that it fits the rest (RePaint, arXiv 2201.09865).

        Args:
          prompts: what the whole shows.
          images: in [-1, 1], of the size that the last stage is to draw.
          masks: True where to draw; what is False comes back as it was.
          options: num_resamples (4) and jump_length (4): every stretch of jump_length steps is gone through
            num_resamples times; RePaint has 10 of each, at as many times the cost. strength (1): time that the masked
            part is diffused to first; 1 keeps nothing of it. Besides, those of `image_to_image`.
        """
        return self._run("inpaint", prompts, images, masks=masks, **options)

    def outpaint(
        self, prompts: Sequence[str], images: Float[np.ndarray, "b h w 3"], border: Sequence[int], **options: Any
    ) -> list[Images]:
        """Draws what lies around images.

        Args:
          prompts: what the larger picture shows.
          images: in [-1, 1].
          border: four numbers, pixels to add at top, bottom, left and right; the result must be a size that the stages
            can draw.
          options: those of `inpaint`.
        """
        return self._run("outpaint", prompts, images, border=border, **options)

    def job(
        self,
        mode: str,
        prompts: Sequence[str],
        images: Float[np.ndarray, "b h w 3"] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        negative_prompts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        **settings: Any,
    ) -> tuple["Cascade", Request]:
        """The stages that a mode runs, and what is asked of them: what the methods above give to `stream`.

        Args:
          mode: one of MODES: the name of a method above; "text" is `sample`.
          prompts, images, seed, negative_prompts, size, settings: arguments of that method.

        Raises:
          UserError: they do not agree with each other or with the stages.
        """
        if mode not in MODES:
            raise UserError(f"mode ({mode!r}) must be one of {', '.join(MODES)}")
        if (images is None) != (mode == "text"):
            raise UserError(f"mode {mode!r} takes {'no image' if mode == 'text' else 'images to work on'}")
        known = SETTINGS[mode]
        for name in settings:
            if name not in known:
                takes = ", ".join(known) or "no settings of its own"
                raise UserError(f"mode {mode!r} does not take {name}; it takes {takes}")
        for name in ("masks", "border"):
            if name in known and name not in settings:
                raise UserError(f"mode {mode!r} needs {name}")
        common: dict[str, Any] = {"prompts": prompts, "seed": seed, "negative_prompts": negative_prompts}
        if images is None:
            return self, Request(**common, size=size, low_res=settings.get("low_res"))
        check_images("images", images)
        if mode in ("upscale", "vary"):
            above = self.above_base()
            level = settings.get("aug_level", 0.3 if mode == "vary" else None)
            if level is not None:
                above = above.configure(lambda _, sampling: dataclasses.replace(sampling, aug_level=level))
            if mode == "vary":
                stages = [one.stage for one in above.stages]
                stage_sizes(stages, images.shape[1:3])
                images = reduce_images(images, math.prod(stage.scale for stage in stages))
            return above, Request(**common, low_res=images)
        if mode == "outpaint":
            images, settings["masks"] = with_border(images, settings.pop("border"))
        if mode != "image_to_image":
            settings = {"num_resamples": 4, "jump_length": 4, **settings}
            settings["masks"] = np.asarray(settings["masks"], bool)
        return self, Request(**common, size=images.shape[1:3], edit=EditRequest(images=images, **settings))

    def stream(
        self,
        request: Request,
        *,
        rows: Sequence[int] | None = None,
        batch_size: int = 64,
        label: str = "sample",
        fill: bool = False,
        on_stage: Callable[[int, Images], None] | None = None,
        tell: bool = True,
    ) -> Iterator[tuple[list[int], list[Images]]]:
        """Draws batch after batch, holding one at a time.

        Args:
          request: what to draw.
          rows: which of its images; None: all.
          batch_size: images drawn at a time.
          label: what the progress shows; "" shows none.
          fill: fill up a batch also where there are fewer images in all, so that every call has one program.
          on_stage: called with each stage's number and the images of each batch, filled rows too, as they are drawn.
          tell: show on stderr the first of the prompts that the text encoder does not take whole.

        Yields:
          Numbers of some images, and for each stage those images.

        Raises:
          UserError: the request does not fit the stages; before anything is drawn.
        """
        rows = list(range(len(request.prompts))) if rows is None else list(rows)
        programs = prepare(self.stages, request)
        ways = 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        batch_size = -(-(batch_size if fill else min(batch_size, len(rows))) // ways) * ways
        for one in self.stages:
            if warning := one.stage.untrained_level(one.sampling.aug_level):
                print(warning, file=sys.stderr)
        for kind, texts in (("prompts", request.prompts), ("negative prompts", request.negative_prompts)):
            if tell and texts is not None:
                tell_lost(self.encoder, kind, [texts[i] for i in rows])
        resident = self._stays(programs, batch_size)
        with Progress(len(rows), label, "image", shown=bool(label)) as progress:
            for start in range(0, len(rows), batch_size):
                chosen = rows[start : start + batch_size]
                padded = np.asarray([*chosen, *[chosen[-1]] * (batch_size - len(chosen))])
                drawn = self._batch(request, programs, padded, resident, on_stage)
                yield chosen, [to_uint8(array)[: len(chosen)] for array in finite(self.names, drawn)]
                progress.update(len(chosen))

    def _run(
        self, mode: str, prompts: Sequence[str], images: Any, batch_size: int = 64, label: str = "sample", **more: Any
    ) -> list[Images]:
        cascade, request = self.job(mode, prompts, images, **more)
        drawn: list[list[np.ndarray]] = [[] for _ in cascade.stages]
        for _, batch in cascade.stream(request, batch_size=batch_size, label=label):
            for parts, part in zip(drawn, batch, strict=True):
                parts.append(part)
        return [np.concatenate(parts) for parts in drawn]

    def _stays(self, programs: CascadePrograms, batch_size: int) -> bool:
        if self.weights != "auto":
            return self.weights == "resident"
        return estimate_bytes(self.stages, programs, batch_size, self.mesh) <= 0.9 * memory.device_bytes()

    def _batch(
        self,
        request: Request,
        programs: CascadePrograms,
        rows: np.ndarray,
        resident: bool,
        on_stage: Callable[[int, Images], None] | None,
    ) -> list[Array]:
        prompts = [request.prompts[i] for i in rows]
        seeds, ids = (values[rows] for values in seeds_and_ids(request.seed, len(request.prompts)))
        cond = Conditioning(*map(jnp.asarray, self.encoder.encode(prompts)))
        avoided = [""] * len(rows)
        if request.negative_prompts is not None:
            avoided = [request.negative_prompts[i] for i in rows]
        null = Conditioning(*map(jnp.asarray, self.encoder.encode(avoided)))
        inputs = []
        for one, table, own in zip(self.stages, programs.tables, programs.sizes, strict=True):
            edit = None if request.edit is None else request.edit.at(rows, programs.sizes[-1][0] // own[0])
            inputs.append(
                StageInputs(
                    table=table,
                    aug_level=np.float32(one.sampling.aug_level),
                    cond=as_trained(one.stage, cond, prompts),
                    null=as_trained(one.stage, null, avoided),
                    given=None if edit is None else EditArrays(edit.image, edit.mask),
                )
            )
        low_res = None if request.low_res is None else np.asarray(request.low_res[rows], np.float32)
        shared = RowInputs(seeds, ids, low_res)
        if resident and on_stage is None:
            params = [one.weights.on_devices(one.stage, self.mesh) for one in self.stages]
            return draw_all(programs.stages, programs.settings, self.mesh, params, shared, inputs)
        drawn: list[Array] = []
        for number, one in enumerate(self.stages):
            params = [one.weights.on_devices(one.stage, self.mesh)]
            kind = (programs.stages[number : number + 1], programs.settings[number : number + 1], self.mesh)
            below = shared._replace(low_res=drawn[-1] if drawn else low_res)
            drawn += draw_all(*kind, params, below, inputs[number : number + 1], first=np.int32(number))
            drawn[-1].block_until_ready()
            if not resident:
                one.weights.release()
            if on_stage is not None:
                on_stage(number, to_uint8(np.asarray(drawn[-1])))
        return drawn
