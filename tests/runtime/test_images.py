from __future__ import annotations

import importlib.util
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vae_runtime import figures, images
from vae_runtime.errors import ImageError, InputError, InputTypeError, VAEError
from vae_runtime.figures import image_grid, save_animation, save_png
from vae_runtime.images import fit_square, load_image, load_square, psnr

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


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG", "TIFF", "AVIF"])
def test_formats(kind):
    lossy = {"quality": 100, "subsampling": 0}
    options = {"WEBP": {"lossless": True}, "JPEG": lossy, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(
        kind, {}
    )
    pixels = load_image(encoded(face(), kind, **options))
    assert pixels.shape == (8, 12, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(
        pixels.astype(int), np.asarray(face()).astype(int), atol=3 if kind in ("JPEG", "AVIF") else 0
    )


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
def test_color_modes(mode):
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


def test_transparent_palette_and_color_key():
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
    frames = [Image.new("RGB", (6, 6), color) for color in (RED, GREEN, BLUE)]
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


@pytest.mark.parametrize("kind", ["ICO", "PPM", "PCX", "DDS", "TGA"])
def test_formats_outside_the_allowlist_are_refused_under_any_name(kind, tmp_path):
    path = tmp_path / "face.png"
    path.write_bytes(encoded(face(), kind))
    with pytest.raises(ImageError, match="expected JPEG, PNG"):
        load_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
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


@pytest.mark.parametrize("keyword", [b"x", b"Raw profile type exif"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"iCCP"])
def test_text_and_color_profiles_of_any_size_are_passed_over(kind, keyword):
    """Some are damaged, some unpack to 80 MB; the pixels are good."""
    rest = {b"iTXt": b"\1\0\0\0", b"zTXt": b"\0", b"iCCP": b"\0"}.get(kind, b"")
    bomb = png_chunk(kind, keyword + b"\0" + rest + zlib.compress(bytes(80 * 2**20)))
    damaged = bomb[:-1] + bytes([bomb[-1] ^ 1])
    for chunk in (bomb, damaged, bomb * 50):
        data = encoded(face(), "PNG")
        np.testing.assert_array_equal(load_image(data[:33] + chunk + data[33:]), np.asarray(face()))


def test_the_orientation_in_a_text_is_applied():
    """As ImageMagick writes it."""
    exif = Image.Exif()
    exif[0x0112] = 3
    raw = exif.tobytes()
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(raw), raw.hex().encode()))
    data = encoded(face().transpose(Image.Transpose.ROTATE_180), "PNG")
    np.testing.assert_array_equal(load_image(data[:33] + png_chunk(b"zTXt", text) + data[33:]), np.asarray(face()))


@pytest.mark.parametrize("missing", [12, 8, 4, 1])
def test_a_png_without_its_end_is_whole(missing):
    np.testing.assert_array_equal(load_image(encoded(face(), "PNG")[:-missing]), np.asarray(face()))


@pytest.mark.parametrize("junk", [b"", bytes(100), b"trailing"])
def test_a_png_of_many_parts_cut_between_them_is_refused(junk):
    data = encoded(face(), "PNG")
    start = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    pixels = data[start + 8 : start + 8 + length]
    with pytest.raises(ImageError):
        load_image(data[:start] + png_chunk(b"IDAT", pixels[: length // 2]) + junk)


def gray_png(depth: int, values: list[int], transparent: int) -> bytes:
    """One row of gray pixels of 1 to 16 bits, with a transparent value."""
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, depth, 0, 0, 0, 0))
    parts = header + png_chunk(b"tRNS", struct.pack(">H", transparent)) + png_chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + parts + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_of_any_depth(depth):
    top = 2**depth - 1
    values = [0, 1, top // 2, top]
    for transparent in values:
        shown = load_image(gray_png(depth, values, transparent))[0, :, 0].tolist()
        scaled = [round(value * 255 / top) for value in values]
        assert shown == [255 if value == transparent else gray for value, gray in zip(values, scaled, strict=True)]


def test_a_transparent_color_of_16_bits_is_matched_in_all_of_them():
    pixels = [(0x1234, 0x5678, 0x9ABC), (0x1235, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x0000)]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0))
    row = b"\0" + b"".join(struct.pack(">3H", *pixel) for pixel in pixels)
    key = png_chunk(b"tRNS", struct.pack(">3H", *pixels[0]))
    data = b"\x89PNG\r\n\x1a\n" + header + key + png_chunk(b"IDAT", zlib.compress(row)) + png_chunk(b"IEND", b"")
    assert load_image(data)[0].tolist() == [[255] * 3, [0x12, 0x56, 0x9A], [0x12, 0x56, 0]]


def test_jpegs_with_much_behind_their_end_or_in_their_header():
    """Motion photos carry a video; a thumbnail in the header has scans of its own."""
    data = encoded(face(), "JPEG", quality=95)
    thumbnail = b"\xff\xda\0\x08" * 5000
    header = b"\xff\xe3" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    for changed in (data + b"\xff\xda" * 5000, data[:2] + header + data[2:]):
        np.testing.assert_array_equal(load_image(changed), load_image(data))


def test_heic_names_the_package_that_reads_it():
    if importlib.util.find_spec("pillow_heif"):
        pytest.skip("pillow-heif is installed")
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        load_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))


# ---- sources --------------------------------------------------------------------------------------------------------


class Upload:
    """What a web framework hands over: bytes in small parts."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.buffer.read(min(size, 100) if size >= 0 else 100)


def test_a_file_object_is_one_picture(tmp_path):
    data, expected = encoded(face(), "PNG"), np.asarray(face())
    (tmp_path / "f.png").write_bytes(data)
    with open(tmp_path / "f.png", "rb") as file:
        for source in (file, io.BytesIO(data), Upload(data)):
            np.testing.assert_array_equal(load_image(source), expected)
    assert images.prepare(io.BytesIO(data), 8).shape == (1, 8, 8, 3)
    assert images.prepare([io.BytesIO(data), Upload(data)], 8).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("source", [io.BytesIO(), io.StringIO("text")])
def test_file_objects_that_give_no_picture_are_refused(source):
    with pytest.raises(ImageError):
        images.prepare(source, 8)


def test_a_closed_or_asynchronous_file_object_is_refused():
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(closed)

    class Asynchronous:
        async def read(self, size: int = -1) -> bytes:
            return b""

    with pytest.raises(InputTypeError, match="coroutine"):
        load_image(Asynchronous())


def test_arrays_and_series_of_paths_are_lists(tmp_path):
    path = tmp_path / "f.png"
    path.write_bytes(encoded(face(), "PNG"))
    for sources in (np.array([path] * 2, object), np.array([str(path)] * 2), (path, str(path)), iter([path, path])):
        assert images.prepare(sources, 8).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("value", [{"a": "b.png"}, {"b.png"}, frozenset(), 3, None])
def test_what_has_no_order_or_no_pictures_is_refused(value):
    with pytest.raises(InputTypeError, match="images"):
        images.prepare(value, 8)


def test_an_array_of_objects_with_two_axes_is_refused():
    with pytest.raises(ImageError, match="object"):
        images.prepare(np.array([["a", "b"]], object), 8)


def test_one_picture_has_no_position_in_its_error_and_one_of_many_has(tmp_path):
    with pytest.raises(ImageError) as caught:
        images.prepare(b"no picture", 8)
    assert "images[" not in str(caught.value)
    with pytest.raises(ImageError, match=r"images\[1\]: .*gone\.png"):
        images.prepare([face(), tmp_path / "gone.png"], 8)


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


def test_fit_square_keeps_a_fitting_picture_and_cuts_the_center():
    small = np.asarray(face())[:8, :8]
    assert fit_square(small, 8) is small
    wide = np.full((10, 30, 3), RED, np.uint8)
    wide[:, 10:20] = GREEN
    assert (fit_square(wide, 5) == GREEN).all()
    assert (fit_square(wide.transpose(1, 0, 2), 40) == GREEN).all()


@pytest.mark.parametrize("most", [4, 8, 100])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG", "TIFF", "AVIF"])
def test_a_square_is_that_of_the_whole_picture(kind, mode, most):
    picture = face().convert("RGB" if kind == "JPEG" else mode)
    if picture.mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture, kind, exif=exif)
    assert (load_square(data, most) == fit_square(load_image(data), min(most, 8))).all()


def test_a_picture_of_the_caller_is_left_alone():
    picture = face()
    load_square(picture, 4)[:] = 0
    load_image(picture)[:] = 0
    assert (np.asarray(picture) == np.asarray(face())).all()


def test_metadata_never_reaches_an_output(tmp_path):
    exif = Image.Exif()
    exif[0x013B] = "SECRET-OWNER"
    source = tmp_path / "in.jpg"
    source.write_bytes(encoded(face(), "JPEG", exif=exif.tobytes(), comment=b"SECRET-OWNER"))
    assert b"SECRET-OWNER" in source.read_bytes()
    out = save_png(load_image(source), tmp_path / "out.png")
    assert b"SECRET-OWNER" not in out.read_bytes()


@pytest.mark.parametrize(
    ("name", "shape", "frames"),
    [("a.webp", (8, 16_384), 1), ("a.gif", (65_536, 8), 1), ("a.webm", (8, 20_000), 1), ("a.gif", (999, 999), 1000)],
)
def test_figures_beyond_their_format_or_memory_are_refused(tmp_path, name, shape, frames):
    with pytest.raises(InputError, match=name):
        figures.check_figure(tmp_path / name, *shape, frames)
    picture = np.lib.stride_tricks.as_strided(np.zeros(3, np.uint8), (frames, *shape, 3), (0, 0, 0, 1))
    with pytest.raises(InputError, match=name):
        save_animation(picture, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_sheet_beyond_memory_is_refused(tmp_path):
    faces = np.lib.stride_tricks.as_strided(np.zeros(3, np.uint8), (4096, 64, 64, 3), (0, 0, 0, 1))
    with pytest.raises(InputError, match="GiB"):
        image_grid(faces, scale=32)


@pytest.mark.parametrize(("count", "columns"), [(1, None), (5, None), (7, 3), (3, 8)])
def test_the_shape_of_a_sheet_is_known_before_it_is_made(count, columns):
    sheet = image_grid(np.zeros((count, 4, 6, 3), np.uint8), columns, scale=3, gap=2)
    assert figures.sheet_shape(count, 4, 6, columns, scale=3, gap=2) == sheet.shape[:2]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("ending", [b".gif", b".webp", b".webm", b".png"])
def test_figures_in_folders_that_are_not_utf8(tmp_path, rng, ending):
    if ending == b".webm":
        pytest.importorskip("cv2")
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    frames = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    path = os.fsdecode(folder + b"/\xff" + ending)
    saved = save_png(frames[0], path) if ending == b".png" else save_animation(frames, path)
    assert os.listdir(folder) == [b"\xff" + ending]
    if ending != b".webm":
        assert load_image(saved).shape == (16, 16, 3)


def test_grid(rng):
    faces = rng.integers(0, 256, (5, 4, 6, 3), np.uint8)
    sheet = image_grid(faces, 3, scale=2, gap=3)
    assert sheet.shape == (2 * 8 + 3, 3 * 12 + 2 * 3, 3)
    for face, place in ((faces[0], sheet[:8, :12]), (faces[4], sheet[11:19, 15:27])):
        expected = Image.fromarray(face).resize((12, 8), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(place, np.asarray(expected))
    np.testing.assert_array_equal(image_grid(faces, 3, gap=3)[:4, :6], faces[0])
    assert (sheet[8:11] == images.BACKGROUND).all()
    assert (sheet[11:, 30:] == images.BACKGROUND).all()
    with pytest.raises(InputError, match="n >= 1"):
        image_grid(faces[:0])


@pytest.mark.parametrize(
    ("faces", "named", "wrong"),
    [
        ([np.zeros((4, 4, 3), np.uint8)], {}, "images: got list"),
        (np.zeros((2, 4, 4, 3)), {}, "float64"),
        (np.zeros((2, 4, 4, 4), np.uint8), {}, "4, 4, 4"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"columns": -1}, "columns"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"scale": 0}, "scale"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"gap": -70}, "gap"),
    ],
)
def test_what_makes_no_sheet_is_refused(faces, named, wrong):
    with pytest.raises(InputError, match=wrong):
        image_grid(faces, **named)


@pytest.mark.parametrize(
    "picture", [np.zeros((1, 4, 4, 3), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)]
)
def test_what_is_no_single_picture_is_not_saved(tmp_path, picture):
    with pytest.raises(InputError, match="image: got"):
        save_png(picture, tmp_path / "a.png")
    with pytest.raises(InputError, match=r"frames\[0\]"):
        save_animation([picture], tmp_path / "a.gif")


def test_a_png_has_the_name_of_one(tmp_path):
    with pytest.raises(InputError, match=r"c\.jpg"):
        save_png(np.zeros((4, 4, 3), np.uint8), tmp_path / "c.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", figures.ANIMATIONS)
def test_frames_are_of_one_size_and_counted(tmp_path, ending):
    frames = [np.zeros((side, 4, 3), np.uint8) for side in (6, 4)]
    with pytest.raises(InputError, match=r"frames\[1\]: got \(4, 4, 3\), expected \(6, 4, 3\)"):
        save_animation(frames, tmp_path / f"a{ending}")
    with pytest.raises(InputError, match="generator"):
        save_animation((frame for frame in frames), tmp_path / f"a{ending}")


def test_png_is_lossless_and_leaves_nothing_else(tmp_path, rng):
    picture = rng.integers(0, 256, (9, 7, 3), np.uint8)
    path = save_png(picture, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_animation(tmp_path, ending):
    if ending == ".webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    frames = np.stack([np.full((8, 8, 3), color, np.uint8) for color in (RED, GREEN, BLUE)])
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


def test_a_webm_that_the_disk_cut_is_not_published(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")

    class FullDisk:
        def __init__(self, *arguments):
            self.writer = cv2_writer(*arguments)
            self.isOpened, self.release, self.left = self.writer.isOpened, self.writer.release, 3

        def write(self, frame):
            self.left -= 1
            if self.left >= 0:
                self.writer.write(frame)

        fourcc = staticmethod(cv2.VideoWriter.fourcc)

    cv2_writer = cv2.VideoWriter
    monkeypatch.setattr(cv2, "VideoWriter", FullDisk)
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    with pytest.raises(OSError, match="3 of 8 frames"):
        save_animation(frames, tmp_path / "walk.webm")
    assert list(tmp_path.iterdir()) == []


def test_webm(tmp_path):
    cv2 = pytest.importorskip("cv2")
    frames = np.stack([np.full((33, 47, 3), color, np.uint8) for color in (RED, GREEN, BLUE)])
    path = save_animation(frames, tmp_path / "walk.webm", fps=10)
    video = cv2.VideoCapture(str(path))
    for color in (RED, GREEN, BLUE):
        good, frame = video.read()
        assert good
        assert frame.shape == (34, 48, 3)
        np.testing.assert_allclose(frame[16, 20, ::-1].astype(int), color, atol=12)
    assert not video.read()[0]
    assert video.get(cv2.CAP_PROP_FPS) == 10
    assert list(tmp_path.iterdir()) == [path]


def test_psnr_is_that_of_the_definition():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert (psnr(black, black) == np.inf).all()
    assert (psnr(black, black + np.uint8(255)) == 0).all()
    found = psnr(black, black + np.uint8(51))
    assert found.shape == (2,)
    np.testing.assert_allclose(found, 20 * np.log10(5))
