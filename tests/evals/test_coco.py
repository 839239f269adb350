"""COCO's captions and images: what is whole is kept, what is not is counted and named."""

import json
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.evals.coco import read_coco

IMAGES = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in (9, 4, 7, 5)]
CAPTIONS = [
    {"id": 101, "image_id": 9, "caption": "A cat. "},
    {"id": 103, "image_id": 4, "caption": "A dog."},
    {"id": 102, "image_id": 9, "caption": "A grey cat."},
    {"id": 104, "image_id": 7, "caption": "Its image is not there."},
    {"id": 105, "image_id": 8, "caption": "Its image is not listed."},
    {"id": 106, "image_id": 5, "caption": " "},
]


def folder(root: Path, images: object = IMAGES, captions: object = CAPTIONS) -> str:
    (root / "annotations").mkdir(parents=True)
    (root / "val2014").mkdir()
    content = {"info": {}, "images": images, "annotations": captions}
    (root / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    for number in (9, 4, 5):
        (root / "val2014" / f"COCO_val2014_{number:012d}.jpg").write_bytes(b"x")
    (root / "val2014" / "stray.jpg").write_bytes(b"x")
    return str(root)


def test_whole_pairs_are_kept_and_the_rest_is_named(tmp_path):
    found = read_coco(folder(tmp_path), "val2014")
    assert found.files == {4: "COCO_val2014_000000000004.jpg", 9: "COCO_val2014_000000000009.jpg"}
    assert found.captions == {101: "A cat.", 102: "A grey cat.", 103: "A dog."}
    assert found.caption_ids == {4: (103,), 9: (101, 102)}
    assert found.captions_without_image == (104, 105)
    assert found.images_without_caption == ("COCO_val2014_000000000005.jpg", "stray.jpg")
    told = found.told()
    assert "2 images with 3 captions" in told and "104; 105" in told and "stray.jpg" in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [{"id": 1, "file_name": "../../secret"}]}, "'../../secret'"),
        ({"images": [{"id": 1}]}, "damaged"),
        ({"captions": CAPTIONS + CAPTIONS[:1]}, "two captions of one number"),
        ({"captions": [{"id": 1, "image_id": 9, "caption": 3}]}, "no text"),
        ({"captions": 3}, "damaged"),
    ],
)
def test_damaged_annotations_are_refused(tmp_path, change, said):
    with pytest.raises(UserError, match=said) as error:
        read_coco(folder(tmp_path, **change), "val2014")
    assert "\n" not in str(error.value)


def test_missing_files_are_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"annotations_trainval2014\.zip"):
        read_coco(str(tmp_path), "val2014")
    with pytest.raises(UserError, match="unknown"):
        read_coco(str(tmp_path), "test")
    root = Path(folder(tmp_path / "coco"))
    for path in (root / "val2014").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"val2014\.zip"):
        read_coco(str(root), "val2014")
