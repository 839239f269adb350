"""Weights of networks for features: Inception's three kinds of files, folders of CLIP and DINOv2."""

import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save

from imagen_jax.evals import load_extractor
from imagen_jax.evals.features import inception
from tests.evals.features.dinov2_folder import write_dinov2
from tests.evals.features.torch_files import Call, Name, old_layout, pickled, state, zipped
from tests.fuzz.folders import Folder
from tests.fuzz.mutate import ODD_TEXTS, changed, damaged, odd_value
from tests.fuzz.running import fuzz
from tests.fuzz.tensors import safetensors, weights

_CLIP = Path(__file__).parents[1] / "golden" / "e_clip" / "clip"
_PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
}
_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**20, 2**31, 2**32, 2**47, 2**48, 2**62, 2**63, 2**64, 2**70, 1.5, None, "1", ())
_CLASSES = (
    *("FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "ByteStorage", "BoolStorage"),
    *("UntypedStorage", "ComplexFloatStorage", "Tensor", ""),
)
_HOSTILE = ("os system", "builtins eval", "posix system", "torch load", "numpy frombuffer", "torch FloatStorage",
            "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
            "imagen_jax.errors UserError", "é x", " ")  # fmt: skip


class _Small(nn.Module):
    """Inception's place: one unit, and a last layer of two classes."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = inception.Unit(4, (3, 3), 2, False, name="Conv2d_1a_3x3")(x)
        return self.param("fc_kernel", nn.initializers.zeros, (2048, 2)), self.param(
            "fc_bias", nn.initializers.zeros, (2,)
        )


@pytest.fixture
def arrays(monkeypatch) -> dict[str, np.ndarray]:
    """Weights of an Inception of one unit."""
    monkeypatch.setattr(inception, "Inception", _Small)
    monkeypatch.setattr(inception, "CLASSES", 2)
    rng, unit = np.random.default_rng(0), "Conv2d_1a_3x3"
    shapes = {f"{unit}.conv.weight": (4, 3, 3, 3), "fc.weight": (2, 2048), "fc.bias": (2,)}
    shapes |= {f"{unit}.bn.{part}": (4,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def _load(path: Path) -> None:
    found = load_extractor(path, batch_size=1)
    assert all(np.asarray(leaf).dtype == np.float32 for leaf in jax.tree.leaves(found._params))


def _tried(pytestconfig, path: Path, door: str, make) -> None:
    def made(chance: random.Random) -> bytes:
        path.write_bytes(content := make(chance))
        return content

    fuzz(pytestconfig, door, made, lambda content: _load(path))


def _fields(chance: random.Random, arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Other facts of one to three tensors."""
    made: dict[str, dict[str, Any]] = {}
    for name in chance.sample(sorted(arrays), chance.randint(1, 3)):
        shape = arrays[name].shape
        odd = tuple(chance.choice(_NUMBERS) for _ in shape)
        one = [chance.choice((size, chance.choice(_NUMBERS))) for size in shape]
        field = chance.choice(("class", "count", "offset", "shape", "strides", "both"))
        if field == "class":
            made[name] = {"class": chance.choice(_CLASSES)}
        elif field == "both":
            made[name] = {"shape": (0, *one[1:]), "strides": odd}
        elif field in ("shape", "strides"):
            made[name] = {field: chance.choice((odd, tuple(one), one, (), (1,) * 40))}
        else:
            made[name] = {field: chance.choice(_NUMBERS)}
    return made


def _content(chance: random.Random, arrays: dict[str, np.ndarray], old: bool) -> Any:
    """What the pickle of a .pth holds: other tensors, calls, values or names."""
    kind = chance.randrange(6)
    made: Any = state(arrays, old, _fields(chance, arrays) if kind < 3 else None)
    if kind == 3:
        arguments = chance.choice(((), ("touch x",), (made["fc.bias"],), (1,) * 6))
        made[chance.choice(sorted(made))] = Call(Name(chance.choice(_HOSTILE)), *arguments)
    elif kind == 4:
        made[chance.choice((*ODD_TEXTS[:40], 10**600, "fc.bias"))] = odd_value(chance)
    elif kind == 5:
        deep: Any = made
        for _ in range(chance.choice((1, 900))):
            deep = [deep] if chance.random() < 0.5 else {"x": deep}
        made = chance.choice((deep, {"state_dict": made}, list(made), odd_value(chance)))
    return made


@pytest.mark.parametrize("old", [False, True])
def test_pth(pytestconfig, tmp_path, arrays, old):
    whole = old_layout(arrays, state(arrays, True)) if old else zipped(arrays, state(arrays, False))
    members = ("root/data.pkl", "root/data/0", "root/data/6", "root/data/7", "root/byteorder", "root/.data", "root/",
               "/root/x", "root/../x", "root/data/" + "0" * 300, "other/data.pkl")  # fmt: skip

    def make(chance: random.Random) -> bytes:
        kind = chance.randrange(10)
        if kind < 3:
            return damaged(chance, whole)
        content = _content(chance, arrays, old) if kind < 7 else state(arrays, old)
        try:
            if old:
                return old_layout(arrays, content) if kind < 9 else damaged(chance, whole[:1500]) + whole[1500:]
            change = {"root/data.pkl": damaged(chance, pickled(content))} if kind == 7 else {}
            if kind >= 8:
                change = {chance.choice(members): chance.choice((None, b"", b"x" * 8, whole))}
            pack = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            return zipped(arrays, content, change, pack)
        except (UnicodeEncodeError, RecursionError):
            return whole[: chance.randrange(len(whole))]

    path = tmp_path / "inception.pth"
    path.write_bytes(whole)
    _load(path)
    _tried(pytestconfig, path, f"pth {'old' if old else 'zip'}", make)


def test_npz(pytestconfig, tmp_path, arrays):
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    whole = buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def header(chance: random.Random, content: bytes) -> bytes:
        """Another npy header, of its own length or not."""
        old = content[10 : 10 + content[8]]
        facts = {"descr": "<f4", "fortran_order": False, "shape": [2, 2048]}
        kind = chance.randrange(5)
        if kind == 0:
            facts["descr"] = chance.choice(("<f8", "|O", "<M8[s]", "<c8", "|V4", "<U9", "x", "|S0", "<f4, <i4", ">f4"))
        elif kind == 1:
            facts["shape"] = [chance.choice(_NUMBERS) for _ in range(chance.randrange(5))]
        elif kind == 2:
            return content[:10] + damaged(chance, old) + content[10 + len(old) :]
        elif kind == 3:
            facts = changed(chance, facts)
        shape = tuple(facts["shape"]) if isinstance(facts, dict) and isinstance(facts.get("shape"), list) else ()
        text = repr({**facts, "shape": shape} if isinstance(facts, dict) else facts)
        if kind == 4:
            text = chance.choice(("(" * 3000, "{" * 300, "-" * 9000 + "1", "{'descr': '<f4'" + " " * 20000, "9" * 5000))
        made = text.encode(errors="surrogatepass") + b"\n"
        return content[:8] + min(len(made), 65535).to_bytes(2, "little") + made[:65535] + content[10 + len(old) :]

    def make(chance: random.Random) -> bytes:
        kind, parts = chance.randrange(6), dict(members)
        if kind == 0:
            return damaged(chance, whole)
        name = chance.choice(sorted(parts))
        if kind < 4:
            parts[name] = header(chance, parts[name])
        elif kind == 4:
            parts[name] = damaged(chance, parts[name])
        else:
            parts[chance.choice(("x", "x.npy", "a/b.npy", "é.npy"))] = parts.pop(name)
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return made.getvalue() if chance.random() < 0.8 else damaged(chance, made.getvalue())

    path = tmp_path / "inception.npz"
    path.write_bytes(whole)
    _load(path)
    _tried(pytestconfig, path, "npz", make)


def test_safetensors(pytestconfig, tmp_path, arrays):
    whole = save(arrays)
    path = tmp_path / "inception.safetensors"
    path.write_bytes(whole)
    _load(path)
    _tried(pytestconfig, path, "safetensors", lambda chance: safetensors(chance, whole))


@pytest.mark.parametrize("kind", ["clip", "dinov2", "dinov2_with_registers"])
def test_folders(pytestconfig, tmp_path, kind):
    """What is loaded gives features of an image, too."""
    if kind == "clip":
        for file in ("config.json", "model.safetensors"):
            shutil.copy(_CLIP / file, tmp_path)
            (tmp_path / file).chmod(0o644)
    else:
        write_dinov2(tmp_path, kind != "dinov2")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
    image = np.zeros((1, 9, 14, 3), np.uint8)

    def attempt(case: object) -> None:
        for made in load_extractor(tmp_path, batch_size=1).features(image).values():
            assert made.ndim == 2 and made.dtype == np.float32

    attempt(None)
    folder = Folder(tmp_path, "config.json", 0.3)
    fuzz(pytestconfig, kind, lambda chance: folder.spoil(chance, weights), attempt, share=1 / 5)
