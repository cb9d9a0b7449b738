"""Pictures in: paths, bytes, file objects, PIL images and arrays become RGB uint8, and uint8 becomes network input.

Files are treated as untrusted. Formats are an allowlist, and what a file claims (bytes, pixels, JPEG scans, PNG chunks)
is checked before anything is decoded. EXIF orientation is applied, transparency is blended on `BACKGROUND`, 16-bit gray
is scaled to 8 bits, and of an animation the first frame counts.
"""

from __future__ import annotations

import inspect
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from vae_runtime.errors import (
    ImageArrayError,
    ImageError,
    ImageNotFoundError,
    ImagePermissionError,
    ImageTypeError,
    InputTypeError,
)
from vae_runtime.image_bytes import MAX_SCANS, PNG_SIGNATURE, clean_png, count_scans

Pixels: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | Pixels
Images: TypeAlias = ImageSource | Iterable[ImageSource]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""What Pillow may open, by content, where it can: HEIF needs pillow-heif. Other formats are refused under any name."""
BACKGROUND = (255, 255, 255)
"""The color that transparent pixels are blended on."""
MAX_BYTES = 64 * 2**20
"""Maximum size of a file in bytes."""
MAX_PIXELS = 50_000_000
"""Maximum number of pixels of a picture: about 150 MB decoded."""

_EXPECTED = "expected a path, bytes, a file object, a PIL image or a uint8 array (H, W, 3)"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc")


def load_image(source: ImageSource) -> Pixels:
    """One picture as RGB uint8 (H, W, 3), in its original size, upright.

    source: a path, the bytes of a file, a binary file object (anything with `read`), a PIL image, or a uint8 array
    (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Raises ImageError for what cannot be read or is refused:
    ImageNotFoundError, ImagePermissionError, ImageArrayError, and ImageTypeError for another type.
    """
    if isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[-1] == 3:
        return np.ascontiguousarray(_check_array(source))
    return np.array(_opaque(_open(source)))


def load_square(source: ImageSource, most: int) -> Pixels:
    """The central square of a picture, resampled to (most, most, 3) if it is larger.

    The same pixels as `fit_square(load_image(source), size)`; a large picture takes half the time and memory.
    Sources and errors: see `load_image`.
    """
    image = _open(source)
    left, top, side = _central(*image.size)
    square = _opaque(image.crop((left, top, left + side, top + side)))
    return np.array(square.resize((most, most), Image.Resampling.BILINEAR) if side > most else square)


def load_mask(source: ImageSource) -> NDArray[np.bool_]:
    """A mask (H, W) from a picture: where it is opaque if it has transparent pixels, else where it is bright.

    Bright means above 127 in a channel, or 1 where all values are 0 or 1. Sources and errors: see `load_image`.
    """
    pixels = np.asarray(_open(source))
    if pixels.shape[-1] == 4 and pixels[..., 3].min() < 255:
        return np.asarray(pixels[..., 3] > 127)
    bright = pixels[..., :3].max(axis=2)
    return np.asarray(bright > (0 if bright.max() == 1 else 127))


def load_each(images: Images, skipped: list[tuple[int, ImageError]] | None = None) -> Iterator[Pixels]:
    """`load_image` of one picture or of each of several; an error in several names the position.

    skipped: takes the position and the error of pictures that cannot be read, which are left out; None raises them.
    """
    several = not is_one_image(images)
    for index, source in enumerate(each_image(images)):
        try:
            picture = load_image(source)
        except ImageError as error:
            if several:
                error.args = (f"images[{index}]: {str(error.args[-1]).removeprefix('image: ')}",)
            if skipped is None:
                raise
            skipped.append((index, error))
        else:
            yield picture


def is_one_image(images: Images) -> bool:
    """Whether this is a single picture and not an iterable of pictures."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4 and not _is_list(images)
    return isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(images, "read")


def each_image(images: Images) -> Iterable[ImageSource]:
    """The pictures one by one. InputTypeError for what is neither a picture nor an ordered iterable of pictures."""
    if is_one_image(images):
        return [images]  # type: ignore[list-item]  # it is one
    if not isinstance(images, Iterable) or isinstance(images, (Mapping, Set)):
        hint = "; pass list(images.values())" if isinstance(images, Mapping) else ""
        raise InputTypeError(
            f"images: got {type(images).__name__}, expected a picture or an ordered iterable of pictures{hint}"
        )
    return cast(Iterable[ImageSource], images)


def prepare(images: Images, size: int) -> Pixels:
    """The central squares of one or many pictures, resampled: uint8 (n, size, size, 3)."""
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (size, size, 3):
        return images
    each_image(images)  # refuses what is not iterable
    return stack([fit_square(picture, size) for picture in load_each(images)], size)


def stack(pictures: Sequence[Pixels], size: int) -> Pixels:
    """Pictures (size, size, 3) as one array (n, size, size, 3), n >= 0."""
    return np.stack(pictures) if pictures else np.empty((0, size, size, 3), np.uint8)


def fit_square(image: Pixels, size: int) -> Pixels:
    """The central square of an RGB picture, resampled to (size, size, 3); a picture of that size comes back as it is.

    The filter is Pillow's antialiased bilinear (a triangle as wide as the new pixels), the default of torchvision's
    Resize too: metrics at 32 x 32 compare only if the pictures were resampled the same way.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    left, top, side = _central(width, height)
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def _central(width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of the central square."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def _is_list(array: NDArray[Any]) -> bool:
    """Whether an array is a list of pictures: paths, or objects."""
    return array.ndim == 1 and array.dtype.kind in "OU"


def _open(source: ImageSource) -> Image.Image:
    """The decoded picture, upright, of mode RGB, or RGBA if it has transparency."""
    if isinstance(source, np.ndarray):
        pixels = np.ascontiguousarray(_check_array(source))
        pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
        return _convert(Image.fromarray(pixels), "image")
    if isinstance(source, Image.Image):
        return _from_pil(source, "image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "image")
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        return _from_bytes(_read_file(path), str(path))
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return _from_bytes(_read_object(source), name if isinstance(name, str) and name else "image")
    raise ImageTypeError(f"image: got {type(source).__name__}, {_EXPECTED}")


def _read_file(path: str) -> bytes:
    try:
        # A FIFO or a device would block or never end, so the kind is asked for before the file is opened.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{path}: not a regular file, expected a picture")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageNotFoundError(f"{path}: no such file") from error
    except PermissionError as error:
        raise ImagePermissionError(f"{path}: no permission to read it") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{path}: cannot be read ({error})") from error


def _read_object(file: Any) -> bytes:
    """What is left of a binary file object, at most one byte more than is accepted."""
    data = bytearray()
    try:
        while len(data) <= MAX_BYTES:
            part = file.read(MAX_BYTES + 1 - len(data))
            if not isinstance(part, (bytes, bytearray, memoryview)):
                break
            if not part:
                return bytes(data)
            data += part
        else:
            return bytes(data)
    except Exception as error:  # the object's own errors: closed, a broken connection
        raise ImageError(f"image: the file object cannot be read ({_reason(error)})") from error
    if inspect.iscoroutine(part):
        part.close()
    raise ImageTypeError(
        f"image: got a file object whose read gives {type(part).__name__}, expected one opened as 'rb'"
    )


def _from_bytes(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(f"{name}: empty, expected a picture")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: more than {MAX_BYTES // 2**20} MiB, the most that is read")
    if data.startswith(b"\xff\xd8") and count_scans(data) > MAX_SCANS:
        raise ImageError(f"{name}: a JPEG of more than {MAX_SCANS} scans, refused because it takes minutes to decode")
    try:
        if data.startswith(PNG_SIGNATURE):
            return _from_png(data, name)
        with _pillow(data) as image:
            _check_size(image, name)
            return _convert(image, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow's errors have no common base: OSError, ValueError, SyntaxError, MemoryError ...
        raise ImageError(f"{name}: not a picture that can be read ({_reason(error)})") from error


def _from_png(data: bytes, name: str) -> Image.Image:
    png = clean_png(data)
    with _pillow(png.data) as image:
        _check_size(image, name)
        if png.transparent is None:
            return _convert(image, name)
        image.load()
        with _pillow(png.data) as low:  # Pillow gives the high bytes of 16 bits; this gives the low ones
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            key = np.array(png.transparent)
            same = (np.asarray(image) == key >> 8) & (np.asarray(low) == key & 255)
        alpha = np.where(same.all(axis=2), 0, 255).astype(np.uint8)
        keyed = image.copy()
        keyed.putalpha(Image.fromarray(alpha))
        return _convert(keyed, name)


def _pillow(data: bytes) -> ImageFile.ImageFile:
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)] if data[4:8] == b"ftyp" else b""
    if b"avif" not in brands and any(brand in brands for brand in _HEIF_BRANDS):
        _register_heif()
    Image.init()
    return Image.open(io.BytesIO(data), formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImageError("a HEIC picture needs pillow-heif; pip install pillow-heif") from error
    register_heif_opener()


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    try:
        _check_size(image, name)
        return _convert(image, name)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: the PIL image cannot be decoded ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "expected JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
    return f"{type(error).__name__}: {str(error)[:120]}" if str(error) else type(error).__name__


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels, more than the {MAX_PIXELS // 10**6} million that are read"
        )
    if width == 0 or height == 0:
        raise ImageError(f"{name}: {width} x {height} pixels, expected at least one")


def _convert(image: Image.Image, name: str) -> Image.Image:
    """Decoded, upright, RGB or RGBA."""
    image.load()
    image = _upright(image)
    if image.mode.startswith("I"):
        image = _scale_gray16(image, name)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels, expected 8 or 16 bits a channel")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _opaque(image: Image.Image) -> Image.Image:
    """RGB, transparent pixels of an RGBA picture blended on `BACKGROUND`."""
    if image.mode == "RGB":
        return image
    ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(ground, image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        # It copies the pixels of a picture that is upright, too.
        return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image
    except Exception:  # damaged EXIF does not affect the pixels
        return image


def _scale_gray16(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name}: gray values from {values.min()} to {values.max()}, expected 16 bits")
    gray = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def _check_array(array: NDArray[Any]) -> Pixels:
    """An array of a valid type, shape and size, as it is."""
    if array.dtype != np.uint8:
        raise ImageArrayError(
            f"image: got an array of {array.dtype}, expected uint8 in 0..255; "
            "for floats in 0..1: (x * 255).round().astype(np.uint8)"
        )
    channels = array.shape[-1] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        hint = "; move the channels to the end" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageArrayError(f"image: got an array of shape {array.shape}, expected (height, width, 3){hint}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"image: {array.shape} is more than the {MAX_PIXELS // 10**6} million pixels that are read")
    return array


def to_unit(pixels: Pixels) -> NDArray[np.float32]:
    """uint8 (n, S, S, 3) -> float32 (n, 3, S, S) in [0, 1]"""
    # Turned while they are bytes: a strided array of floats would be copied once more on its way into the graph.
    return np.divide(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), np.float32(255), dtype=np.float32)


def to_pixels(pictures: NDArray[np.float32]) -> Pixels:
    """float32 (n, 3, S, S) in [0, 1] -> uint8 (n, S, S, 3)"""
    scaled = np.clip(pictures, 0, 1)
    scaled *= np.float32(255)
    np.rint(scaled, out=scaled)
    pixels = np.empty((len(scaled), *scaled.shape[2:], scaled.shape[1]), np.uint8)
    np.copyto(pixels, scaled.transpose(0, 2, 3, 1), casting="unsafe")
    return pixels


def psnr(images: Pixels, targets: Pixels) -> NDArray[np.float64]:
    """PSNR in dB of pictures (..., H, W, 3) to their targets: (...), infinite where they are equal.

    `vae_train.model.metrics.psnr` is the same for tensors in [0, 1].
    """
    error = np.square(images.astype(np.float64) - targets).mean(axis=(-3, -2, -1))
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255**2 / error))
