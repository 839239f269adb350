"""The guard of `imagen_jax serve`, as its flags say."""

import argparse
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.evals import load_extractor
from imagen_jax.export.bundle import DIGESTS, is_bundle
from imagen_jax.files import as_path, sha256_of_file
from imagen_jax.safety.audit import AuditLog
from imagen_jax.safety.guard import Guard
from imagen_jax.safety.image_filter import ConceptFilter, ImageFilter, read_concepts
from imagen_jax.safety.nudity import NudityFilter, installed
from imagen_jax.safety.prompt_filter import PromptFilter
from imagen_jax.safety.provenance import Provenance
from imagen_jax.safety.signing import ManifestSigner
from imagen_jax.versions import code_version


def guard_of(args: argparse.Namespace) -> Guard:
    """The parts of safety that the flags leave on.

    Raises:
      UserError: the list of words is none, the log cannot be written, or a library or file is missing.
    """
    provenance = _provenance(args.checkpoint)
    return Guard(
        prompt_filter=None if args.prompt_filter == "off" else PromptFilter.load(args.prompt_filter),
        watermark=None if args.watermark == "off" else args.watermark,
        image_filters=(*_image_filters(args.image_filter), *_concept_filters(args.concept_filter)),
        provenance=provenance if args.provenance == "on" else None,
        signer=None if args.c2pa is None else ManifestSigner(args.c2pa[0], args.c2pa[1], provenance),
        audit=None if args.audit_log == "off" else AuditLog(path=args.audit_log, prompts=args.audit_prompts),
    )


def _image_filters(asked: str) -> tuple[ImageFilter, ...]:
    if asked == "auto" and not installed():
        told = (
            "images are not filtered: nudenet is not installed; pip install 'imagen_jax[filter]', or --image_filter=off"
        )
        print(told, flush=True)
        return ()
    return () if asked == "off" else (NudityFilter(),)


def _concept_filters(asked: list[str] | None) -> tuple[ImageFilter, ...]:
    if asked is None:
        return ()
    concepts = read_concepts(asked[0])
    clip: Any = load_extractor(asked[1])
    if not hasattr(clip, "text_features"):
        raise UserError(f"{asked[1]} holds no CLIP model; name the folder of one that embeds images and captions")
    embedded = {name: clip.text_features(captions) for name, captions in concepts.items()}
    return (ConceptFilter(clip.image_features, embedded),)


def _provenance(checkpoint: str) -> Provenance:
    digests = as_path(checkpoint) / DIGESTS
    # That a bundle has none, who loads it tells.
    bundle = sha256_of_file(digests) if is_bundle(checkpoint) and digests.is_file() else None
    return Provenance(generator=f"imagen_jax {code_version()}", bundle=bundle)
