"""load_extractor: the extractor that a weights file or folder holds."""

import os

from imagen_jax.checks import check_path
from imagen_jax.errors import UserError
from imagen_jax.evals.features.arrays import ENDINGS, read_arrays
from imagen_jax.evals.features.clip import CLIPExtractor
from imagen_jax.evals.features.dinov2 import DINOv2Extractor
from imagen_jax.evals.features.inception import InceptionExtractor
from imagen_jax.files import as_path, read_json
from imagen_jax.text.weights.checkpoint_arrays import is_safetensors

# Torch's hub names a file by the first digits of its sha256.
SOURCES = (
    "the Inception of FID is weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0 or "
    "pt_inception-2015-12-05-6726825d.pth of pytorch-fid's release fid_weights; CLIP and DINOv2 are folders of "
    "config.json and .safetensors, such as openai/clip-vit-large-patch14 and facebook/dinov2-large on the Hugging Face "
    "hub. No weights come with this package; the fingerprint beside each result is their sha256"
)
_KINDS: dict[str, type[CLIPExtractor] | type[DINOv2Extractor]] = {
    "clip": CLIPExtractor,
    "dinov2": DINOv2Extractor,
    "dinov2_with_registers": DINOv2Extractor,
}


def load_extractor(
    path: str | os.PathLike[str], *, batch_size: int = 16
) -> InceptionExtractor | CLIPExtractor | DINOv2Extractor:
    """Loads the network that turns images into features.

    Args:
      path: an Inception file (.pth of torch-fidelity or pytorch-fid, .npz or .safetensors under the same names), or the
        Hugging Face folder of a CLIP or DINOv2 model with .safetensors files; local or in a bucket.
      batch_size: images computed at a time; >= 1.

    Raises:
      UserError: there is no such file, or it is damaged or of another network.
    """
    if not os.fspath(path):
        raise UserError(f"no weights are named; {SOURCES}")
    check_path("path", path)
    name = os.fspath(path)
    place = as_path(name)
    if place.is_dir():
        return _from_folder(name, batch_size)
    if not place.is_file():
        raise UserError(f"no weights at {name}; {SOURCES}")
    if os.path.splitext(name)[1] not in ENDINGS:
        raise UserError(f"{name} is no weights file: expected one that ends in {', '.join(ENDINGS)}; {SOURCES}")
    return InceptionExtractor(name, read_arrays(name), batch_size)


def _from_folder(path: str, batch_size: int) -> CLIPExtractor | DINOv2Extractor:
    if not is_safetensors(path):
        raise UserError(f"{path} has no .safetensors files; {SOURCES}")
    try:
        config = read_json(os.path.join(path, "config.json"))
        kind = config.get("model_type")
    except FileNotFoundError as error:
        raise UserError(f"{path} lacks config.json; download it beside the weights") from error
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}/config.json is damaged ({error}); download it again") from error
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"{path} is of a {str(kind)[:80]!r} model; expected one of {', '.join(_KINDS)}: give a whole CLIP model "
            "or a DINOv2"
        )
    return _KINDS[kind](path, config, batch_size)
