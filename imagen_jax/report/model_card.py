"""A model card for a trained cascade: README.md with Hugging Face's fields, from what the run directory holds.

The fields of the header are those of huggingface/hub-docs, modelcard.md. A number stands in the card only if a file
of the run has it, and the card names what was not measured.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.files import AnyPath, as_path, write_text
from imagen_jax.report.card_data import CardCorpus, CardStage, read_card_stages, read_corpora
from imagen_jax.report.card_scores import Measured, read_measured
from imagen_jax.report.data import final_samples, is_number, read_commands, read_evaluation, read_json, read_picture
from imagen_jax.report.markdown import Markdown, Part, code, front_matter, line, plain, table
from imagen_jax.report.markup import number

CARD = "README.md"
_TAGS = ("text-to-image", "diffusion", "imagen", "jax", "flax")
_FAMILIES = {"T5Config": "T5", "CLIPConfig": "CLIP", "BertConfig": "BERT"}
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_LONGEST_CAPTION = 120


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Fields that no file of a run holds.

    Args:
      output: path of the card; None: README.md in the run directory.
      overwrite: replace a file that is there.
      name: of the model; None: that of the run directory.
      license: an id of the Hub, or the name of another license.
      languages: codes of the captions' languages; none: those that the data cards state.
      datasets: ids of the training data on the Hub.
      corpora: folders of the corpora trained on; none: RUN_DIR/corpus, where the stages were trained on it.
    """

    output: str | None = None
    overwrite: bool = False
    name: str | None = None
    license: str = "unknown"
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    corpora: Sequence[str] = ()


def write_model_card(run_dir: str, options: CardOptions) -> str:
    """Writes the card.

    Args:
      run_dir: cascade directory, or run directory of one stage.
      options: see `CardOptions`.

    Returns:
      Its path.

    Raises:
      UserError: there is no trained stage, a file is malformed, a corpus is not that of the stages, or the card is
        there already.
    """
    folder = as_path(run_dir)
    path = folder / CARD if options.output is None else as_path(options.output)
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} is there already; give --overwrite to replace it, or --output=FILE for another place")
    content = model_card(folder, options)
    write_text(path, content)
    return os.fspath(path)


def model_card(run_dir: AnyPath, options: CardOptions) -> str:
    """The content of the card; see `write_model_card`."""
    stages = read_card_stages(run_dir)
    corpora = read_corpora(run_dir, options.corpora, stages)
    measured, absent = read_measured(run_dir, "-".join(one.settings["config_hash"] for one in stages))
    name = options.name or run_dir.resolve().name
    fields = _fields(name, options, corpora, measured)
    sections: list[tuple[str, Sequence[Markdown]]] = [
        ("Model", _model(stages)),
        ("Intended use", _use(stages)),
        ("Limits", _limits(stages, absent)),
        ("Training data", _data(corpora, stages)),
        ("Evaluation", _evaluation(measured, absent)),
        ("How to use it", _usage(run_dir, stages)),
        ("How it was trained", _training(run_dir, stages)),
    ]
    parts: list[str] = [front_matter(fields), line("# ", name)]
    for title, blocks in sections:
        parts += [f"## {title}", *blocks]
    return "\n\n".join(parts) + "\n"


def _fields(
    name: str, options: CardOptions, corpora: Sequence[CardCorpus], measured: Sequence[Measured]
) -> dict[str, Any]:
    """The header; a field without content is left out."""
    known = bool(_LICENSE_ID.fullmatch(options.license))
    stated = [code for one in corpora if one.card for code in one.card["values"].get("language", {})]
    languages = options.languages or sorted({one for one in stated if _LANGUAGE.fullmatch(one)})
    results = [result for one in measured for result in one.results]
    fields: dict[str, Any] = {
        "license": options.license if known else "other",
        "license_name": None if known else options.license,
        "language": list(languages),
        "library_name": "imagen_jax",
        "pipeline_tag": "text-to-image",
        "tags": list(_TAGS),
        "datasets": list(options.datasets),
        "model-index": [{"name": name, "results": results}] if results else [],
    }
    return {field: value for field, value in fields.items() if value}


def _model(stages: Sequence[CardStage]) -> list[Markdown]:
    last = stages[-1].draw_size
    kinds = "One stage" if len(stages) == 1 else f"A cascade of {len(stages)} stages"
    what = "draws from captions" if stages[0].settings["stage"].get("low_res_size") is None else "enlarges pictures"
    rows: list[list[Part]] = []
    drawing: list[list[Part]] = []
    for one in stages:
        stage, sampling = one.settings["stage"], one.settings["sampling"]
        low, batch = stage.get("low_res_size"), one.position.get("batch_size")
        source = "the caption" if low is None else f"the caption and {low}x{low} pixels"
        crops = f", trained on crops of {stage['image_size']}" if one.draw_size != stage["image_size"] else ""
        rows.append(
            [one.name, f"{one.draw_size}x{one.draw_size}{crops}", source, stage["model"]["type"],
             one.num_parameters or "not noted", stage["prediction"], number(one.step), number(batch),
             number(one.step * batch) if is_number(batch) else "–"]
        )  # fmt: skip
        drawing.append(
            [one.name, sampling["sampler"]["type"], number(sampling["num_steps"]),
             _number(sampling.get("guidance_weight")), sampling["thresholding"],
             "" if low is None else _number(sampling.get("aug_level"))]
        )  # fmt: skip
    header = ["Stage", "Draws, in pixels", "From", "Network", "Parameters", "Predicts", "Updates", "Batch",
              "Examples seen"]  # fmt: skip
    how = ["Stage", "Sampler", "Steps", "Guidance weight", "Thresholding", "aug_level"]
    return [
        line(f"{kinds} of the Imagen design (Saharia et al., 2022, arXiv 2205.11487) that {what}, up to {last}x{last} "
             "pixels. It draws with the running average of its parameters."),
        table(header, rows),
        line("As it is sampled unless another way is asked for:"),
        table(how, drawing),
        line("Captions are read by ", _encoder(stages[0]), ", which was frozen in training."),
    ]  # fmt: skip


def _number(value: Any) -> str:
    return number(value) if is_number(value) else "–"


def _pretrained(stage: CardStage) -> bool:
    return stage.settings["text"]["encoder"]["type"] == "Pretrained"


def _encoder(stage: CardStage) -> str:
    """The text encoder in words."""
    encoder = stage.settings["text"]["encoder"]
    sizes: Mapping[str, Any] = encoder
    if _pretrained(stage):
        sizes = encoder["sizes"] if isinstance(encoder.get("sizes"), Mapping) else {}
    family = _FAMILIES.get(str(sizes.get("type")), str(sizes.get("type", "text")))
    layers = f", {sizes['num_layers']} layers" if is_number(sizes.get("num_layers")) else ""
    width = f", width {sizes['embed_dim']}" if is_number(sizes.get("embed_dim")) else ""
    kind = f"{family} encoder{layers}{width}"
    # Its place on the machine of the training is nobody's business.
    name = str(encoder.get("path", "")).rstrip("/").rsplit("/", 1)[-1]
    return f"the pretrained {kind} of {name}" if _pretrained(stage) else f"a {kind} with random parameters"


def _use(stages: Sequence[CardStage]) -> list[Markdown]:
    side = stages[-1].draw_size
    return [
        line(f"Drawing pictures of {side}x{side} pixels from captions like those of its training data, and the study "
             "of such models. Its pictures show nothing that happened. It is not made for pictures of real persons, "
             "nor for decisions about people.")
    ]  # fmt: skip


def _limits(stages: Sequence[CardStage], absent: Sequence[str]) -> list[Markdown]:
    told = [
        "Things that its training data do not show it draws badly or not at all, and what is one-sided in them is "
        "one-sided in its pictures.",
        f"Captions are cut after {stages[0].settings['text']['max_length']} tokens.",
        "Nothing filters captions or pictures.",
    ]
    if not _pretrained(stages[0]):
        told.insert(1, "The text encoder has random parameters: words outside the training captions mean nothing.")
    if absent:
        told.append(f"Not measured: {'; '.join(absent)}.")
    return [Markdown("\n".join(line(Markdown("- "), one) for one in told))]


def _data(corpora: Sequence[CardCorpus], stages: Sequence[CardStage]) -> list[Markdown]:
    rows: list[list[Part]] = []
    for one in stages:
        mixed = one.position.get("corpora")
        named = mixed if isinstance(mixed, Mapping) else {"": one.position.get("corpus")}
        shares = [f"{name} {digest}".strip() for name, digest in named.items() if digest]
        split = one.position.get("split")
        rows.append(
            [one.name, ", ".join(shares) or "not noted", "" if split is None else str(split),
             _number(one.position.get("num_examples"))]
        )  # fmt: skip
    blocks = [table(["Stage", "Digest of the corpus", "Split", "Examples"], rows)]
    for corpus in corpora:
        blocks += _corpus(corpus)
    if not corpora:
        blocks.append(line("No data card was found where this card was made: nothing is said of its origin."))
    return blocks


def _corpus(corpus: CardCorpus) -> list[Markdown]:
    rows: list[list[Part]] = [[f"examples in split {name}", number(n)] for name, n in corpus.num_examples.items()]
    rows += [["side of the pictures, in pixels", number(corpus.image_size)], ["digest", corpus.digest]]
    card = corpus.card
    if card is None:
        note = line("It has no data card: its licences, consent and origin are not stated.")
        return [line("### Corpus ", corpus.name), table(["Fact", "Value"], rows), note]
    source = card["source"]
    rows += [[f"source, {name}", str(value)] for name, value in sorted(source.items())]
    rows += [[name, "not stated"] for name in ("licence", "consent") if name not in source]
    rows += [[f"left out by: {name}", number(count)] for name, count in card["num_dropped"].items()]
    rows += [["inputs refused, all reasons", number(card["num_rejected"])]]
    rows += [["kept in spite of a flaw", number(card["num_repaired"])]]
    words = card["caption_words"]
    rows += [[f"words of a caption, {key}", number(words[key])] for key in words if is_number(words[key])]
    counted = {**card["values"], "script": card["caption_scripts"], "shorter side": card["shorter_sides"]}
    values: list[list[Part]] = [[n, value, number(count)] for n, of in counted.items() for value, count in of.items()]
    measured = line(f"What {number(card['num_described'])} examples state, and what was measured of them:")
    return [line("### Corpus ", corpus.name), table(["Fact", "Value"], rows), measured,
            table(["Fact", "Value", "Examples"], values)]  # fmt: skip


def _evaluation(measured: Sequence[Measured], absent: Sequence[str]) -> list[Markdown]:
    blocks: list[Markdown] = []
    for one in measured:
        blocks += [line("### ", one.title), *one.about]
        if one.rows:
            blocks.append(table(one.header, one.rows))
    if absent:
        blocks.append(line(f"The run directory holds no results of: {'; '.join(absent)}."))
    return blocks


def _usage(run_dir: AnyPath, stages: Sequence[CardStage]) -> list[Markdown]:
    words = ["imagen_jax", "sample", "--checkpoint", ".", "--output", "drawn"]
    score = read_evaluation(run_dir / "eval.json")
    if score is not None and score.best_guidance_weight is not None:
        words += ["--guidance_weight", f"{score.best_guidance_weight:g}"]
    blocks = [line("In the folder of the run, with imagen_jax installed:")]
    if _pretrained(stages[0]):
        words += ["--text_encoder", "PATH"]
        blocks = [line("In the folder of the run, with imagen_jax installed; PATH is a copy of ", _encoder(stages[0]),
                       ", which is no part of this model:")]  # fmt: skip
    if stages[0].settings["stage"].get("low_res_size") is not None:
        words += ["--first_stage", stages[0].name, "--image", "IMAGE.png"]
    return [*blocks, code(shlex.join([*words, _caption(run_dir)]))]


def _caption(run_dir: AnyPath) -> str:
    """The caption of a sample of the run, or one that any corpus may know."""
    for path in final_samples(run_dir / "samples")[:1]:
        caption = plain(read_picture(path).text.get("prompt", "")).strip()
        if 0 < len(caption) <= _LONGEST_CAPTION and not caption.startswith("-"):
            return caption
    return "a red cube"


def _training(run_dir: AnyPath, stages: Sequence[CardStage]) -> list[Markdown]:
    devices: list[list[Part]] = [[one.name, one.mesh or "not noted"] for one in stages]
    blocks = [table(["Stage", "Devices"], devices)]
    metrics = read_json(run_dir / "metrics.json", dict) or {}
    seconds = metrics.get("seconds")
    rows: list[list[Part]] = [
        [phase, number(value)]
        for phase, value in (seconds.items() if isinstance(seconds, Mapping) else ())
        if is_number(value)
    ]
    if is_number(metrics.get("seconds_total")):
        rows.append(["all", number(metrics["seconds_total"])])
    if rows:
        blocks.append(table(["Phase", "Seconds"], rows))
    if is_number(metrics.get("peak_memory_gb")):
        blocks.append(line(f"At most {number(metrics['peak_memory_gb'])} GB of the host's memory at once."))
    if commands := read_commands(run_dir):
        lines = [row for phase, command in commands for row in (f"# {plain(phase)}", command)]
        blocks += [line("The commands of the run, as they were given:"), code("\n".join(lines))]
    names = dict.fromkeys(name for one in stages for name in one.versions)
    versions: list[list[Part]] = [[name, *(str(one.versions.get(name) or "–") for one in stages)] for name in names]
    if versions:
        blocks.append(table(["Version of", *(f"stage {one.name}" for one in stages)], versions))
    return blocks
