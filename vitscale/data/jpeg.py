"""Partial decoding of JPEG images: a thin ctypes layer over libjpeg-turbo's TurboJPEG 3 API, and the header's facts.

Only the rows and the columns of blocks that a crop needs are transformed, at full or reduced scale;
ctypes releases the GIL for as long as libjpeg works. The library is the one inside the `turbojpeg`
wheel, else the system's.
https://rawcdn.githack.com/libjpeg-turbo/libjpeg-turbo/main/doc/html/group___turbo_j_p_e_g.html
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vitscale.data.crops import Box
from vitscale.data.records import BadExample

SIGNATURE = b"\xff\xd8\xff"
END_OF_IMAGE = b"\xff\xd9"
# Markers, https://www.w3.org/Graphics/JPEG/itu-t81.pdf table B.1
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the rest of the range are tables
START_OF_SCAN, EXIF_SEGMENT = 0xDA, 0xE1
WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD8), 0xFF))  # 0xFF: padding, 0: no marker
ORIENTATION_TAG = 0x0112

# Of turbojpeg.h
TJINIT_DECOMPRESS = 1
TJPARAM_SUBSAMP, TJPARAM_JPEGWIDTH, TJPARAM_JPEGHEIGHT, TJPARAM_SCANLIMIT = 4, 5, 6, 13
TJPF_RGB = 0
TJSAMP_UNKNOWN = -1
TJERR_WARNING = 0
SCAN_LIMIT = (
    100  # a progressive file has some 10; each scan costs time that its few bytes do not show
)
# A reduced scale averages blocks of pixels before the antialiasing filter weighs them. With 3 pixels for each one of
# the result, photos come out within 0.3 to 0.4 grey levels on average and all within 1.0; with 2 within 0.8 and 3.2.
OVERSAMPLING = 3.0
# The last pixel of a reduced image may stand for fewer pixels than the others, which shows in an image of a few.
LEAST_PIXELS = 40
SCALES = (8, 4, 2)  # denominators of the reduced scales that libjpeg-turbo has SIMD code for


@dataclass(frozen=True)
class Header:
    """What a JPEG says of itself before its pixels."""

    width: int  # as stored, before the orientation is applied
    height: int
    components: int  # 1: grey, 3: colour, 4: CMYK or YCCK
    block_width: (
        int  # of the blocks that are decoded together, in pixels: 8 x the largest sampling factor
    )
    orientation: int  # of EXIF, 1 .. 8


@dataclass(frozen=True)
class Region:
    """Decoded pixels of a part of the image."""

    pixels: bytes  # height * width * 3, packed rows of RGB
    left: int  # of the part, in pixels of the scaled image
    upper: int
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """The facts of the header, from a walk over its markers.

    Raises `BadExample`: "truncated" (no end of the image behind the header, or no whole header),
    "unsupported" (arithmetic coding, lossless, 12 bits: nothing that a browser shows), "corrupt".
    """
    frame: tuple[int, int, int, int] | None = None
    orientation = 1
    for marker, start, end in _segments(data):
        if marker in FRAMES:
            frame = _frame(marker, data[start:end])
        elif marker == EXIF_SEGMENT and data[start : start + 6] == b"Exif\0\0":
            orientation = _orientation(data[start + 6 : end])
        elif marker == START_OF_SCAN:
            # Inside of coded pixels these two bytes cannot occur: there 0 follows every 255.
            if data.rfind(END_OF_IMAGE, end) < 0:
                raise BadExample("truncated")
            break
    else:
        raise BadExample("truncated")
    if frame is None:
        raise BadExample("corrupt")
    return Header(*frame, orientation)


def available() -> bool:
    """Whether a TurboJPEG library was found."""
    return _library() is not None


def choose_scale(width: float, height: float, columns: int, rows: int) -> int:
    """The scale, 1 / (1, 2, 4 or 8), to decode a box of `width` x `height` at that becomes `columns` x `rows`.

    The smallest one that leaves `OVERSAMPLING` pixels for each of the result's, and `LEAST_PIXELS`, on both axes.
    """
    shrink = min(
        width / max(OVERSAMPLING * columns, LEAST_PIXELS),
        height / max(OVERSAMPLING * rows, LEAST_PIXELS),
    )
    return next((scale for scale in SCALES if shrink >= scale), 1)


def decode_region(data: bytes, header: Header, box: Box, scale: int) -> Region:
    """Decodes the part of a stored image (1 or 3 components) that covers `box`, at 1 / `scale`.

    Args:
        box: left, upper, right, lower in pixels of the scaled image; the part reaches to whole blocks
            on the left and is cut to the image.

    Raises `BadExample`: "corrupt", or "truncated" where data ended before the part's last row. Other
    damage that libjpeg has a way around is accepted, as by Pillow.
    """
    library = _library()
    if library is None:
        raise RuntimeError("no libjpeg-turbo: ask `available()` first")
    # A decoder for each image (0.8 microseconds): an old one keeps tables of the images before, which one that
    # lacks its own would be decoded with.
    decoder = library.tj3Init(TJINIT_DECOMPRESS)
    if not decoder:
        raise MemoryError("libjpeg-turbo cannot be started")
    try:
        return _decode(library, decoder, data, header, box, scale)
    finally:
        library.tj3Destroy(decoder)


def _decode(
    library: ctypes.CDLL, decoder: int, data: bytes, header: Header, box: Box, scale: int
) -> Region:
    library.tj3Set(decoder, TJPARAM_SCANLIMIT, SCAN_LIMIT)
    if library.tj3DecompressHeader(decoder, data, len(data)) and _failed(library, decoder):
        raise BadExample("corrupt")
    stored = [library.tj3Get(decoder, what) for what in (TJPARAM_JPEGWIDTH, TJPARAM_JPEGHEIGHT)]
    if stored != [header.width, header.height]:  # the buffer below has the header's size
        raise BadExample("corrupt")
    # The factor first: the region is checked against the scaled image.
    if library.tj3SetScalingFactor(decoder, _Fraction(1, scale)):
        raise BadExample("corrupt")
    if library.tj3Get(decoder, TJPARAM_SUBSAMP) == TJSAMP_UNKNOWN:  # is decoded, but not cropped
        part = _Region(0, 0, -(-header.width // scale), -(-header.height // scale))
    else:
        part = _part(header, box, scale)
        if library.tj3SetCroppingRegion(decoder, part):
            raise BadExample("corrupt")
    # Fresh bytes filled in place, which is what this function of the C API is for: the resizer takes nothing else.
    pixels = _new_bytes(None, part.w * part.h * 3)
    address = _bytes_address(pixels)
    if library.tj3Decompress8(decoder, data, len(data), address, part.w * 3, TJPF_RGB):
        # "Premature end of JPEG file", "Corrupt JPEG data: premature end of data segment"
        if b"remature end" in library.tj3GetErrorStr(decoder):
            raise BadExample("truncated")
        if _failed(library, decoder):
            raise BadExample("corrupt")
    return Region(pixels, part.x, part.y, part.w, part.h)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment's body, until the data ends inside of one."""
    at, last = 2, len(data) - 4
    while at <= last:
        marker = data[at + 1]
        if data[at] != 0xFF or marker in WITHOUT_LENGTH:
            at = data.find(0xFF, at + 1)  # libjpeg skips bytes between segments, too
            if at < 0:
                return
            continue
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if end > len(data):
            return
        yield marker, at + 4, end
        at = max(end, at + 4)


def _frame(marker: int, body: bytes) -> tuple[int, int, int, int]:
    """Width, height, number of components and width of the blocks of a frame header."""
    if len(body) < 6:
        raise BadExample("corrupt")
    precision, height, width, components = struct.unpack_from(">BHHB", body)
    if marker not in (BASELINE, EXTENDED, PROGRESSIVE) or precision != 8:
        raise BadExample("unsupported")
    factors = [byte >> 4 for byte in body[7 : 6 + 3 * components : 3]]  # horizontal ones
    if not width or not height or components not in (1, 3, 4):
        raise BadExample("corrupt")
    if len(factors) < components or not all(factors):
        raise BadExample("corrupt")
    return width, height, components, 8 * max(factors)


def _orientation(tiff: bytes) -> int:
    """The orientation in an EXIF block; 1 if it is broken, which is no reason to lose the picture."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Fraction(ctypes.Structure):
    _fields_ = [("num", ctypes.c_int), ("denom", ctypes.c_int)]


def _part(header: Header, box: Box, scale: int) -> _Region:
    """The pixels of the scaled image that are decoded for `box`."""
    step = header.block_width // scale
    left, upper = max(0, int(box[0])) // step * step, max(0, int(box[1]))
    right = min(-(-header.width // scale), math.ceil(box[2]))
    lower = min(-(-header.height // scale), math.ceil(box[3]))
    return _Region(left, upper, right - left, lower - upper)


def _failed(library: ctypes.CDLL, decoder: int) -> bool:
    """Whether the last call failed for good, rather than with a warning. Raises `MemoryError`."""
    if library.tj3GetErrorCode(decoder) == TJERR_WARNING:
        return False
    if b"emory" in library.tj3GetErrorStr(decoder):
        raise MemoryError("libjpeg-turbo ran out of memory")
    return True


_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t]
_bytes_address = ctypes.pythonapi.PyBytes_AsString
_bytes_address.restype, _bytes_address.argtypes = ctypes.c_void_p, [ctypes.py_object]


@cache
def _library() -> ctypes.CDLL | None:
    """libjpeg-turbo 3 or later, of the `turbojpeg` wheel or of the system."""
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            _declare(library)
        except (OSError, AttributeError):  # cannot be loaded, or is older than TurboJPEG 3
            continue
        return library
    return None


def _candidates() -> Iterator[str]:
    spec = importlib.util.find_spec("turbojpeg")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        # Where the tools that repair wheels put it: auditwheel, delocate.
        for pattern in ("turbojpeg.libs/libturbojpeg*", "turbojpeg.dylibs/libturbojpeg*"):
            yield from (str(path) for path in sorted(folder.glob(pattern)))
    system = ctypes.util.find_library("turbojpeg")
    if system is not None:
        yield system


def _declare(library: ctypes.CDLL) -> None:
    handle, data, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    number = ctypes.c_int
    signatures: dict[str, tuple[object, list[object]]] = {
        "tj3Init": (ctypes.c_void_p, [number]),
        "tj3Destroy": (None, [handle]),
        "tj3Get": (number, [handle, number]),
        "tj3Set": (number, [handle, number, number]),
        "tj3GetErrorCode": (number, [handle]),
        "tj3GetErrorStr": (ctypes.c_char_p, [handle]),
        "tj3DecompressHeader": (number, [handle, data, size]),
        "tj3SetScalingFactor": (number, [handle, _Fraction]),
        "tj3SetCroppingRegion": (number, [handle, _Region]),
        "tj3Decompress8": (number, [handle, data, size, ctypes.c_void_p, number, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
