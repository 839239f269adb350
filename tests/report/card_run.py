"""A trained cascade's directory as `model_card` reads it: records and scores as the code writes them, no weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from imagen_jax.checkpoints import plain_data
from imagen_jax.evals.protocols import PROTOCOLS
from imagen_jax.evals.suites.summaries import geneval_summary
from imagen_jax.files import sha256_of_file
from imagen_jax.models.unet import UNet
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.text.encoder import TextConfig
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.weights.pretrained import Pretrained
from tests.report.report_page import write_json

ATTACK = '</td><script>alert("x")</script> | --- [a](javascript:b) `c` **d** _e_ $f$ \\ \n---\n# g: "h" \u202e end'
HASHES = ("9f86d081884c", "7d659a2feaa0")


def build_corpus(folder: Path) -> Path:
    """Manifest and data card of a corpus of two pictures; the licence is hostile."""
    folder.mkdir()
    splits = {"train": {"num_examples": 2, "shards": []}}
    write_json(folder / "corpus.json", {"name": "pictures", "image_size": 64, "num_rejected": 3, "splits": splits})
    words = {"count": 2, "least": 3, "median": 3.5, "mean": 3.5, "greatest": 4}
    card = {
        "num_described": 2, "num_rejected": 3, "num_repaired": 1, "num_dropped": {"aesthetic > 5": 2},
        "source": {"kind": "folder", "licence": ATTACK}, "caption_words": words, "caption_scripts": {"latin": 2},
        "shorter_sides": {"not stated": 2}, "values": {"licence": {ATTACK: 2}, "language": {"en": 1, "not stated": 1}},
    }  # fmt: skip
    write_json(folder / "card.json", card)
    return folder


def write_stage(run: Path, number: int, digest: str, encoder: Any) -> None:
    """The newest checkpoint of a stage, without weights, and the files beside it."""
    size, low = ((16, None), (64, 16))[number]
    network = UNet(dim=8, dim_mults=(1,), num_res_blocks=1, attention=("none",))
    stage = Stage(
        name=("base", "sr")[number], model=network, image_size=size, low_res_size=low, text_embed_dim=16,
        max_text_length=7,
    )  # fmt: skip
    parts = {
        "stage": stage,
        "sampling": SamplingConfig(num_steps=12 + number, guidance_weight=2.5),
        "text": TextConfig(encoder=encoder, vocabulary_path="bytes", max_length=7),
    }
    record = {name: plain_data.to_data(part) for name, part in parts.items()}
    for step in (30, 4800):
        checkpoint = run / f"checkpoints/checkpoint_{step}"
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "stage.json", {"schema": 1, **record, "config_hash": HASHES[number]})
        place = {"step": step, "seed": 0, "batch_size": 32, "split": "train", "num_examples": 2, "corpus": digest}
        write_json(checkpoint / "position.json", {"step": step, "position": place})
    (run / "model-info.txt").write_text("kernel  3x3\n\ntotal parameters: 123,456\nmesh: data 8 (8 TPU v4)\n")
    write_json(run / "versions.json", {"python": "3.11.2", "imagen_jax": "0.1.0", "git_revision": None})


def scores() -> dict[str, Any]:
    """Results of every evaluation, by their files."""
    weights = {"1": {"single_both": 0.55, "heldout_both": 0.503}, "2.5": {"single_both": 0.91301, "heldout_both": None}}
    rows = [
        {"protocol": dataclasses.asdict(PROTOCOLS[name]), "fid": fid, "num_generated": 29_999, "num_reference": 40_504,
         "identity": {"inception/2048": "inception"}, "warnings": [f"29999 images, {ATTACK}"]}
        for name, fid in (("imagen_30k", 27.123456), ("clean_fid_30k", 26.5))
    ]  # fmt: skip
    verdicts = [(True, "two_object"), (True, "two_object"), (False, "counting")]
    single = [{"tag": tag, "correct": right, "metadata": str(i)} for i, (right, tag) in enumerate(verdicts)]
    suite = {
        "suite": "geneval",
        "seed": 3,
        "num_images_per_prompt": 4,
        "num_prompts": 553,
        "command": ["score", ATTACK],
    }
    points = [
        {"key": f"k{i}", "images": 640, "warnings": ["few images"] * i, "failed": "", "samples": [], "samples_by": "",
         "settings": {"base": {"guidance_weight": weight, "sampler": "ddim"}, "sr": {"aug_level": 0.1}},
         "scores": {"fid": 20.25 - i, "clip_score": 31.0625 + i}}
        for i, weight in enumerate((1.0, 1.35))
    ]  # fmt: skip
    share = {"value": 0.6125, "low": 0.55, "high": 0.7, "majorities": 20}
    figures = {"num_prompts": 200, "num_votes": 1000, "first": share, "indifferent": share, "second": share}
    return {
        "eval.json": {
            "guidance_weights": [1.0, 2.5], "alignment": weights, "best_guidance_weight": 2.5,
            "unconditional_both": 0.061, "chance_both": 0.042, "num_prompts": 1512, "config_hash": "-".join(HASHES),
        },
        "image_scores.json": {
            "weights_sha256": {"inception": "ab12" * 16}, "metrics": ["fid"], "scores": rows,
            "spread": {"fid": 0.623456},
        },
        "suites/geneval/suite_scores.json": {
            **suite, "command": ["score", ATTACK], "config_hash": "another",
            "summary": geneval_summary(single), "scores": single
        },
        "sweep/sweep.json": {
            "version": "0.1.0", "stages": [{"name": "a", "checkpoint": "c", "config_hash": one} for one in HASHES],
            "prompts": {"source": "COCO", "seed": 0, "protocol": {"name": "imagen_30k"}, "number": 640},
            "weights": {"inception": "ab12"}, "points": points,
        },
        "sweep/sweep_run.json": {"command": "imagen_jax sweep", "seconds": {"base": 77.5}, "devices": ["TPU v4"]},
        "study/ratings.json": {
            "study": "s1", "models": ["ours", ATTACK], "num_ratings": 2000, "num_raters": 7,
            "questions": {"fidelity": {"kind": "preference", "alpha": 0.4375, "categories": {ATTACK: figures}}},
        },
    }  # fmt: skip


def build_run(root: Path, corpus: Path, evaluated: bool = True, pretrained: bool = False) -> Path:
    """Writes the directory.

    Args:
      root: the directory.
      corpus: that the stages were trained on.
      evaluated: it holds results of every evaluation.
      pretrained: the text encoder is that of a checkpoint.
    """
    sizes = T5Config(vocab_size=259, embed_dim=16, num_heads=2, head_dim=8, num_layers=3, mlp_dim=32)
    digest = sha256_of_file(corpus / "corpus.json")[:16]
    for number, name in enumerate(("base", "sr")):
        encoder = Pretrained(path="/home/somebody/t5-v1_1-xxl", sizes=sizes) if pretrained else sizes
        write_stage(root / name, number, digest, encoder)
    write_json(root / "commands.json", [{"phase": "train", "command": "imagen_jax train '````\n---'"}])
    write_json(root / "metrics.json", {"seconds_total": 4000.5, "seconds": {"train": 3000.25, "export": None}})
    for name, content in scores().items() if evaluated else ():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    return root
