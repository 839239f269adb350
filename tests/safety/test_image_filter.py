"""Images that are refused: the real detector on a photograph, and a real CLIP network against transformers' cosines."""

from pathlib import Path

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals import load_extractor
from imagen_jax.safety import nudity
from imagen_jax.safety.audit import AuditLog
from imagen_jax.safety.finding import Finding
from imagen_jax.safety.guard import Guard
from imagen_jax.safety.image_filter import NEUTRAL, ConceptFilter, read_concepts
from imagen_jax.safety.nudity import NudityFilter

CLIP = Path(__file__).parents[1] / "golden" / "e_clip" / "clip"


def test_the_detector_finds_what_it_is_told_to_refuse(monkeypatch):
    """A portrait is allowed; with faces among what is refused it is not, mirrored neither."""
    pytest.importorskip("nudenet")
    portrait = pytest.importorskip("skimage.data").astronaut()
    judge = NudityFilter().judge
    assert judge(portrait) is None and judge(np.full((64, 64, 3), 128, np.uint8)) is None
    monkeypatch.setattr(nudity, "REFUSED", frozenset({"FACE_FEMALE", "FACE_MALE"}))
    for image in (portrait, portrait[:, ::-1]):
        found = judge(image)
        assert found is not None and found.category == "nudity" and 0.5 <= found.score <= 1


def test_without_the_library_the_filter_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(nudity, "installed", lambda: False)
    with pytest.raises(UserError, match="pip install"):
        NudityFilter()
    with pytest.raises(UserError, match="between 0 and 1"):
        NudityFilter(threshold=0.0)


def test_a_concept_is_refused_by_its_share_of_the_softmax():
    """Shares computed from the cosines that transformers gave."""
    clip, io = load_extractor(CLIP), np.load(CLIP / "io.npz")
    texts = clip.text_features(io["input_ids"])
    concepts = {"one": texts[:2], "two": texts[2:3], NEUTRAL: texts[3:]}
    logits = 100.0 * io["cosine"].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for image, share in zip(io["images_uint8_nhwc"], shares, strict=True):
        scores = {"one": share[:2].sum(), "two": share[2]}
        worst = max(scores, key=lambda name: scores[name])
        for threshold in (scores[worst] * 0.99, min(scores[worst] * 1.01, 0.9999)):
            found = ConceptFilter(clip.image_features, concepts, threshold).judge(image)
            if threshold > scores[worst]:
                assert found is None
            else:
                assert found is not None and found.category == worst
                assert abs(found.score - scores[worst]) < 1e-3


def test_concepts_come_from_a_file(tmp_path):
    path = tmp_path / "concepts.txt"
    path.write_text("[gore]\na photo of blood\n[neutral]\na photo\na drawing\n")
    assert read_concepts(path) == {"gore": ["a photo of blood"], "neutral": ["a photo", "a drawing"]}
    for wrong in ("[gore]\na photo of blood\n", "[neutral]\na photo\n"):
        path.write_text(wrong)
        with pytest.raises(UserError, match="category neutral"):
            read_concepts(path)


def test_a_guard_notes_what_it_refuses(tmp_path):
    class Dark:
        def judge(self, image: np.ndarray) -> Finding | None:
            return Finding(category="dark", score=0.75) if image.max() < 9 else None

    log = tmp_path / "log.jsonl"
    guard = Guard(image_filters=(Dark(),), audit=AuditLog(path=str(log)))
    assert guard.screen(np.full((2, 2, 3), 99, np.uint8), "a", 1) is None and not log.read_text()
    found = guard.screen(np.zeros((2, 2, 3), np.uint8), "a secret", 1)
    assert found == Finding(category="dark", score=0.75)
    assert '"verdict": "image refused", "category": "dark", "score": 0.75' in log.read_text()
    assert "secret" not in log.read_text()
