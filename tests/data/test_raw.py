"""Images of every mode become upright RGB squares; closed forms and TensorFlow's resize say which pixels."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from imagen_jax.data.raw import PictureForm, Prepared, RawExample, Rejection, prepare
from imagen_jax.image_files import decode_and_tell, decode_image


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def _form(image_size: int, min_size: int, **options) -> PictureForm:
    return PictureForm(image_size=image_size, min_size=min_size, **options)


def test_transparency_is_composited_on_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[..., 3] = [[0, 51], [102, 255]]
    alpha = rgba[..., 3:].astype(np.float64) / 255
    expected = alpha * rgba[..., :3] + (1 - alpha) * 255
    for image in (rgba, _encoded(Image.fromarray(rgba), "PNG"), _encoded(Image.fromarray(rgba), "TIFF")):
        decoded = decode_image(image)
        assert decoded.mode == "RGB"
        np.testing.assert_allclose(np.asarray(decoded), expected, atol=1)


def test_palette_with_a_transparent_entry():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette = palette.convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    decoded = decode_image(_encoded(palette, "PNG", transparency=0))
    assert np.asarray(decoded).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_greyscale_and_grey_with_alpha():
    grey = np.array([[0, 77, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=-1)
    assert np.array_equal(np.asarray(decode_image(grey)), expected)
    assert np.array_equal(np.asarray(decode_image(_encoded(Image.fromarray(grey), "PNG"))), expected)
    with_alpha = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(np.array([[0, 255, 255]], np.uint8))))
    assert np.asarray(decode_image(_encoded(with_alpha, "PNG")))[0, :, 0].tolist() == [255, 77, 255]


def test_sixteen_bits_are_scaled_to_eight():
    wide = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    decoded = decode_image(_encoded(Image.fromarray(wide), "PNG"))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_is_converted():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = np.asarray(decode_image(_encoded(cmyk, "JPEG", quality=95)))[4, 4]
    np.testing.assert_allclose(red, (255, 0, 0), atol=6)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_rotation_is_applied(orientation, turn):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(_encoded(Image.fromarray(pixels), "PNG", exif=exif))
    assert np.array_equal(np.asarray(decoded), np.rot90(pixels, turn))


@pytest.mark.parametrize(("tag", "value"), [(0x011A, "72 dpi"), (0x0132, 3.5)], ids=["XResolution", "DateTime"])
def test_broken_exif_leaves_the_pixels_as_they_lie(tag, value):
    """A rotated picture one of whose other tags has a wrong type: its pixels are good."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    # Two entries: turned, and one of text or of a double where a fraction or text belongs.
    content = b"72 dpi\0" if isinstance(value, str) else struct.pack("<d", value)
    kind = 2 if isinstance(value, str) else 12
    data = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    data += struct.pack("<HHII", tag, kind, len(content) if kind == 2 else 1, 38) + b"\0\0\0\0" + content
    encoded = _encoded(Image.fromarray(pixels), "PNG", exif=data)
    decoded, problem = decode_and_tell(encoded)
    assert "EXIF data are broken" in problem and np.array_equal(np.asarray(decoded), pixels)
    prepared = prepare(RawExample(key="k", image=encoded, caption="c"), _form(2, 1))
    assert isinstance(prepared, Prepared) and prepared.repair == problem


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animation = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode_image(animation))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_centre_square_is_kept(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[shape[0] // 2 - 2 : shape[0] // 2 + 2, shape[1] // 2 - 2 : shape[1] // 2 + 2] = 200
    prepared = prepare(RawExample(key="k", image=pixels, caption="c"), _form(4, 4))
    assert (_pixels(prepared.image) == 200).all()


def test_resize_is_antialiased_like_tensorflows():
    rng = np.random.default_rng(0)
    coarse = tf.image.resize(rng.uniform(40, 215, (12, 12, 3)), (96, 96), method="bicubic")
    raw = np.clip(np.round(coarse + rng.normal(0, 8, (96, 96, 3))), 0, 255).astype(np.uint8)
    prepared = prepare(RawExample(key="k", image=raw, caption="c"), _form(32, 32))
    expected = tf.image.resize(raw, (32, 32), method="bicubic", antialias=True)
    np.testing.assert_allclose(_pixels(prepared.image), expected, atol=1.5)
    without = tf.image.resize(raw, (32, 32), method="bicubic", antialias=False)
    assert np.abs(without - expected).max() > 10


def test_an_image_of_the_right_size_keeps_its_pixels():
    raw = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    prepared = prepare(RawExample(key="k", image=raw, caption=" a \n b ", meta={"b": 1, "a": 2}), _form(16, 16))
    assert isinstance(prepared, Prepared)
    assert np.array_equal(_pixels(prepared.image), raw)
    assert prepared.caption == "a b"
    assert prepared.meta == '{"a": 2, "b": 1}'


def test_refusals(tmp_path):
    whole = _encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)), "PNG")
    image = np.zeros((8, 8, 3), np.uint8)
    cases = {
        "empty caption": RawExample(key="k", image=image, caption=" \n"),
        "image is 8x6; the shorter side must be at least 8 pixels": RawExample(key="k", image=image[:6], caption="c"),
        "cannot identify image file": RawExample(key="k", image=b"no image", caption="c"),
        "truncated": RawExample(key="k", image=whole[: len(whole) // 2], caption="c"),
        "No such file": RawExample(key="k", image=str(tmp_path / "absent.png"), caption="c"),
        "expected uint8": RawExample(key="k", image=image.astype(np.float32), caption="c"),
        "floating-point pixels": RawExample(
            key="k", image=_encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), caption="c"
        ),
        "the key must have 1 to 256 bytes": RawExample(key="é" * 129, image=image, caption="c"),
    }
    for reason, raw in cases.items():
        refused = prepare(raw, _form(8, 8))
        assert isinstance(refused, Rejection), reason
        assert reason in refused.reason
        assert refused.source == raw.key


def test_what_a_format_raises_of_its_own_is_a_refusal():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "DDS")
    dds = bytearray(buffer.getvalue())
    dds[80:84] = bytes(4)  # Flags of a pixel format that is none: Pillow raises NotImplementedError.
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "AVIF")
    avif = buffer.getvalue()[:-4]  # Pillow raises RuntimeError or ValueError, by its version.
    for content in (bytes(dds), avif):
        refused = prepare(RawExample(key="k", image=content, caption="c"), _form(8, 8))
        assert isinstance(refused, Rejection) and "cannot be decoded" in refused.reason


def test_postscript_is_refused_and_no_program_runs_it(monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: started.append(args))
    refused = prepare(RawExample(key="k", image=buffer.getvalue(), caption="c"), _form(8, 8))
    assert isinstance(refused, Rejection) and "PostScript" in refused.reason
    assert not started


def _photo(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("image_format", "quality", "kind", "most"),
    [("png", None, "PNG", 0), ("webp", None, "WEBP", 0), ("webp", 90, "WEBP", 40), ("jpeg", 95, "JPEG", 12)],
)
def test_squares_are_kept_in_each_format(image_format, quality, kind, most):
    photo = _photo(32, 32)
    form = _form(32, 32, image_format=image_format, quality=quality)
    prepared = prepare(RawExample(key="k", image=_encoded(photo, "PNG"), caption="c"), form)
    assert isinstance(prepared, Prepared) and Image.open(io.BytesIO(prepared.image)).format == kind
    assert (prepared.height, prepared.width, prepared.orientation) == (32, 32, 1)
    assert np.abs(_pixels(prepared.image).astype(int) - np.asarray(photo)).max() <= most


def test_a_stated_quality_is_that_of_pillow_with_colours_at_full_resolution():
    photo, files = _photo(32, 32), {}
    for quality in (60, 90):
        form = _form(32, 32, image_format="jpeg", quality=quality)
        files[quality] = prepare(RawExample(key="k", image=np.asarray(photo), caption="c"), form).image
        assert files[quality] == _encoded(photo, "JPEG", quality=quality, subsampling="4:4:4")
    assert len(files[60]) < len(files[90])


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_original_keeps_its_bytes_and_says_how_it_is_turned(orientation, as_path, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = _encoded(_photo(20, 30), "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(file)
    image = str(tmp_path / "a.jpg") if as_path else file
    prepared = prepare(RawExample(key="k", image=image, caption="c"), _form(8, 8, image_format="original"))
    assert isinstance(prepared, Prepared) and prepared.image == file and prepared.orientation == orientation
    assert (prepared.width, prepared.height) == ((30, 20) if orientation < 5 else (20, 30))
    square = prepare(RawExample(key="k", image=image, caption="c"), _form(8, 8))
    assert prepared.picture_mark == square.picture_mark


def test_what_is_no_plain_jpeg_becomes_a_png_square_among_originals():
    form = _form(8, 8, image_format="original")
    others = [_encoded(_photo(20, 30), "PNG"), _encoded(_photo(20, 30), "WEBP"), np.asarray(_photo(20, 30))]
    others.append(_encoded(Image.new("CMYK", (20, 30), (0, 255, 255, 0)), "JPEG"))
    for image in others:
        prepared = prepare(RawExample(key="k", image=image, caption="c"), form)
        assert prepared == prepare(RawExample(key="k", image=image, caption="c"), _form(8, 8))
    grey = _encoded(_photo(20, 30).convert("L"), "JPEG")
    assert prepare(RawExample(key="k", image=grey, caption="c"), form).image == grey


def test_an_original_with_broken_exif_is_kept_and_counts_as_upright():
    broken = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHHHHII", 0x0112, 3, 1, 6, 0, 0x011A, 2, 7, 38)
    file = _encoded(_photo(20, 30), "JPEG", exif=broken + b"\0\0\0\0" + b"72 dpi\0")
    prepared = prepare(RawExample(key="k", image=file, caption="c"), _form(8, 8, image_format="original"))
    assert isinstance(prepared, Prepared) and "EXIF data are broken" in prepared.repair
    assert (prepared.image, prepared.orientation, prepared.width, prepared.height) == (file, 1, 30, 20)
