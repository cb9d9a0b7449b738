from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vae_runtime import images
from vae_runtime.errors import ImageError, InputError, InputTypeError, VAEError
from vae_runtime.figures import image_grid, save_animation, save_png
from vae_runtime.images import fit_square, load_image

RED, GREEN, BLUE = (200, 30, 40), (20, 180, 60), (30, 40, 220)


def face() -> Image.Image:
    """12 x 8, four flat quarters: every turn and mirror of it is another picture."""
    picture = Image.new("RGB", (12, 8), RED)
    picture.paste(GREEN, (6, 0, 12, 4))
    picture.paste(BLUE, (0, 4, 6, 8))
    return picture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_formats(kind):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    pixels = load_image(encoded(face(), kind, **options))
    assert pixels.shape == (8, 12, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.astype(int), np.asarray(face()).astype(int), atol=3 if kind == "JPEG" else 0)


def test_all_kinds_of_sources_agree(tmp_path):
    path = tmp_path / "it's ünï côdé -rf %2e%2e"  # by content, not by name
    path.write_bytes(encoded(face(), "PNG"))
    expected = np.asarray(face())
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), face(), expected):
        np.testing.assert_array_equal(load_image(source), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = face().transpose(inverse[orientation]) if orientation > 1 else face()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    pixels = load_image(encoded(stored, kind, exif=exif.tobytes(), **options))
    np.testing.assert_allclose(pixels.astype(int), np.asarray(face()).astype(int), atol=4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_unknown_orientations_are_left_alone(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(load_image(encoded(face(), "PNG", exif=exif.tobytes())), np.asarray(face()))


def test_damaged_exif_keeps_the_picture():
    assert load_image(encoded(face(), "JPEG", exif=b"Exif\x00\x00garbage" * 9)).shape == (8, 12, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "PA"])
def test_colour_modes(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    source = Image.new("RGB", (16, 16), (255, 255, 255)) if mode == "1" else Image.new("RGB", (16, 16), (102, 102, 102))
    picture = source.convert(mode) if mode != "PA" else source.convert("P").convert("PA")
    if mode == "PA":
        assert np.ptp(load_image(picture).astype(int) - 102) <= 2
        return
    pixels = load_image(encoded(picture, kind))
    np.testing.assert_allclose(pixels.astype(int), np.asarray(source).astype(int), atol=3)


def test_transparency_is_blended_and_what_it_hides_stays_hidden():
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture.putpixel((0, 0), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    pixels = load_image(encoded(picture, "PNG"))
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert abs(int(pixels[0, 1, 0]) - 127) <= 1
    assert pixels[3, 3].tolist() == list(images.BACKGROUND)


def test_transparent_palette_and_colour_key():
    palette = face().convert("P")
    data = encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert load_image(data)[0, 0].tolist() == list(images.BACKGROUND)
    data = encoded(face(), "PNG", transparency=RED)
    assert load_image(data)[0, 0].tolist() == list(images.BACKGROUND)
    assert load_image(data)[0, 11].tolist() == list(GREEN)


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = load_image(encoded(Image.fromarray(values), "PNG"))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (6, 6), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert load_image(data)[3, 3].tolist() == list(RED)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_sides(size):
    pixels = load_image(encoded(Image.new("RGB", size, RED), "PNG"))
    assert fit_square(pixels, 8).tolist() == np.full((8, 8, 3), RED).tolist()


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"<html>", b"%PDF-1.7", b"PK\x03\x04" + bytes(64), bytes(4096)])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ImageError) as caught:
        load_image(data)
    assert isinstance(caught.value, VAEError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "PCX", "DDS", "TGA"])
def test_formats_outside_the_allowlist_are_refused_under_any_name(kind, tmp_path):
    path = tmp_path / "face.png"
    path.write_bytes(encoded(face(), kind))
    with pytest.raises(ImageError, match="expected JPEG, PNG, WebP, GIF or BMP"):
        load_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(kind, share, rng):
    data = encoded(Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)), kind)
    with pytest.raises(ImageError):
        load_image(data[: int(len(data) * share)])


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7_100, 12_000, 30_000, 2**31 - 1])
def test_too_many_pixels_are_refused_from_the_header(side):
    data = png_header(side, side) + png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError):
        load_image(data)


def test_wrong_checksums_are_refused():
    data = bytearray(encoded(face(), "PNG"))
    data[data.index(b"IDAT") + 8] ^= 1
    with pytest.raises(ImageError):
        load_image(bytes(data))


def test_text_bombs_are_refused():
    bomb = png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(80 * 2**20)))
    data = png_header(1, 1) + bomb + png_chunk(b"IDAT", zlib.compress(bytes(4))) + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError):
        load_image(data)


def test_jpegs_of_thousands_of_scans_are_refused():
    data = encoded(face(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="scans"):
        load_image(data[:-2] + scan * 300 + data[-2:])


def test_files_above_the_byte_limit_are_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(ImageError, match="1 MiB"):
        load_image(encoded(face(), "BMP") + bytes(2**20))


def test_paths_that_are_no_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="regular file"):
        load_image(tmp_path)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ImageError):
        load_image(tmp_path / "dangling.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(ImageError):
        load_image(tmp_path / "loop.png")
    with pytest.raises(ImageError):
        load_image("nul\0.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "face.png")
    with pytest.raises(ImageError, match="regular file"):
        load_image(tmp_path / "face.png")


@pytest.mark.parametrize("source", [None, 3, 1.5, object(), [1], {"a": 1}])
def test_other_types_are_refused(source):
    with pytest.raises(InputTypeError, match="expected a path") as caught:
        load_image(source)
    assert isinstance(caught.value, ImageError)


def test_arrays():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert load_image(grey)[1, 2].tolist() == [5, 5, 5]
    np.testing.assert_array_equal(load_image(grey[..., None]), load_image(grey))
    rgba = np.zeros((2, 2, 4), np.uint8)
    assert load_image(rgba)[0, 0].tolist() == list(images.BACKGROUND)
    view = np.asarray(face())[::-1, ::2]
    np.testing.assert_array_equal(load_image(view), view)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_, ">u2"])
def test_arrays_of_other_types_are_refused(dtype):
    with pytest.raises(ImageError, match="uint8") as caught:
        load_image(np.zeros((4, 4, 3), dtype))
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("shape", [(4,), (3, 8, 8), (4, 4, 2), (0, 4, 3), (2, 4, 4, 3), ()])
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"\(height, width, 3\)"):
        load_image(np.zeros(shape, np.uint8))


def test_fit_square_keeps_a_fitting_picture_and_cuts_the_centre():
    small = np.asarray(face())[:8, :8]
    assert fit_square(small, 8) is small
    wide = np.full((10, 30, 3), RED, np.uint8)
    wide[:, 10:20] = GREEN
    assert (fit_square(wide, 5) == GREEN).all()
    assert (fit_square(wide.transpose(1, 0, 2), 40) == GREEN).all()


def test_metadata_never_reaches_an_output(tmp_path):
    exif = Image.Exif()
    exif[0x013B] = "SECRET-OWNER"
    source = tmp_path / "in.jpg"
    source.write_bytes(encoded(face(), "JPEG", exif=exif.tobytes(), comment=b"SECRET-OWNER"))
    assert b"SECRET-OWNER" in source.read_bytes()
    out = save_png(load_image(source), tmp_path / "out.png")
    assert b"SECRET-OWNER" not in out.read_bytes()


def test_grid(rng):
    faces = rng.integers(0, 256, (5, 4, 6, 3), np.uint8)
    sheet = image_grid(faces, 3, scale=2, gap=3)
    assert sheet.shape == (2 * 8 + 3, 3 * 12 + 2 * 3, 3)
    np.testing.assert_array_equal(sheet[:8:2, :12:2], faces[0])
    np.testing.assert_array_equal(sheet[11:19:2, 15:27:2], faces[4])
    assert (sheet[8:11] == images.BACKGROUND).all()
    assert (sheet[11:, 30:] == images.BACKGROUND).all()
    with pytest.raises(InputError, match="n >= 1"):
        image_grid(faces[:0])


def test_png_is_lossless_and_leaves_nothing_else(tmp_path, rng):
    picture = rng.integers(0, 256, (9, 7, 3), np.uint8)
    path = save_png(picture, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_animation(tmp_path, ending):
    if ending == ".webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    frames = np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in (RED, GREEN, BLUE)])
    with Image.open(save_animation(frames, tmp_path / f"walk{ending}", fps=10)) as picture:
        assert picture.n_frames == 3
        assert picture.info["loop"] == 0
        picture.seek(2)
        picture.load()
        assert picture.info["duration"] == 100
        np.testing.assert_allclose(picture.convert("RGB").getpixel((4, 4)), BLUE, atol=2)
    with pytest.raises(InputError, match=r"\.gif, \.webp, \.webm"):
        save_animation(frames, Path("walk.mp4"))
    for wrong in ({"fps": 0}, {"fps": float("nan")}):
        with pytest.raises(InputError, match="fps"):
            save_animation(frames, tmp_path / "a.gif", **wrong)
    with pytest.raises(InputError, match="no frames"):
        save_animation(frames[:0], tmp_path / "a.gif")


def test_webm(tmp_path):
    cv2 = pytest.importorskip("cv2")
    frames = np.stack([np.full((33, 47, 3), colour, np.uint8) for colour in (RED, GREEN, BLUE)])
    path = save_animation(frames, tmp_path / "walk.webm", fps=10)
    video = cv2.VideoCapture(str(path))
    for colour in (RED, GREEN, BLUE):
        good, frame = video.read()
        assert good
        assert frame.shape == (34, 48, 3)
        np.testing.assert_allclose(frame[16, 20, ::-1].astype(int), colour, atol=12)
    assert not video.read()[0]
    assert video.get(cv2.CAP_PROP_FPS) == 10
    assert list(tmp_path.iterdir()) == [path]
