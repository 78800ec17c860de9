"""What an image file means, by rule, against what is stored of it: every photometric interpretation of TIFF and colour
type of PNG, every depth, transparency and orientation. The files are written here bit by bit; the rules, in float64:

a sample is a share of its largest value; gray, RGB and palette colors are as they are; ink takes light away,
(1 - ink) (1 - black); YCbCr is JFIF's; L*a*b* goes over XYZ (D50) to sRGB; what is transparent shows white.

A file may be refused; what is not refused must be right. `must_be_taken` says which may not be refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from conversion.rgb import read_rgb
from ffcv_ops.errors import UserError
from ffcv_ops.modes import to_rgb

HEIGHT, WIDTH = 3, 5
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8  # TIFF's PhotometricInterpretation
CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
UNKNOWN, PREMULTIPLIED, ALPHA = 0, 1, 2  # TIFF's ExtraSamples
TURNS = {  # orientation -> the stored rows and columns, upright
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: a[:, ::-1].swapaxes(0, 1),
}  # fmt: skip


def numbers(channels: int, bits: int, seed: int = 0) -> np.ndarray:
    """Samples of every size, black and white among them: uint64 [HEIGHT, WIDTH, channels]."""
    drawn = np.random.default_rng(seed).integers(0, 2**bits, (HEIGHT, WIDTH, channels), np.uint64)
    drawn[0, 0], drawn[0, 1] = 0, 2**bits - 1
    return drawn


def packed(rows: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows of samples as files hold them: below 8 bits the highest first, each row filled up to a byte."""
    if bits >= 8:
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    flat = rows.reshape(len(rows), -1)
    single = (flat[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64) & np.uint64(1)).astype(np.uint8)
    return np.packbits(single.reshape(len(rows), -1), axis=1).tobytes()


# --- the rules ----------------------------------------------------------------------------------------------------


def shown(colors: np.ndarray, photometric: int) -> np.ndarray:
    """Shares of the samples' largest values [..., channels] -> shares of red, green and blue."""
    if photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        return np.repeat(colors if photometric == BLACK_IS_ZERO else 1 - colors, 3, axis=-1)
    if photometric == CMYK:
        return (1 - colors[..., :3]) * (1 - colors[..., 3:])
    if photometric == YCBCR:
        y, blue, red = colors[..., 0], colors[..., 1] - 128 / 255, colors[..., 2] - 128 / 255
        return np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], -1).clip(0, 1)
    return colors


def over_white(rgb: np.ndarray, alpha: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    return (rgb if premultiplied else rgb * alpha) + 1 - alpha


# --- TIFF -----------------------------------------------------------------------------------------------------------


def tiff(samples: np.ndarray, bits: int, tags: dict[int, list[int]], *, order="<", stored="plain") -> io.BytesIO:
    """samples: whole numbers [height, width, samples of a pixel]. tags: besides those of its size. stored: `plain`, in
    one strip; `deflated`, the same compressed; `planes`, a strip for each channel; and both."""
    height, width, count = samples.shape
    parts = np.split(samples, count, axis=-1) if "planes" in stored else [samples]
    strips = [packed(part, bits, order) for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if "deflated" in stored else strips
    start = 8 + 2 + 12 * (len(tags) + 9) + 4
    places = start + np.cumsum([0, *map(len, strips)])
    behind = b"".join(strips)
    tags = tags | {256: [width], 257: [height], 258: [bits] * count, 259: [8 if "deflated" in stored else 1],
                   273: places[:-1].tolist(), 277: [count], 278: [height], 279: list(map(len, strips)),
                   284: [2 if "planes" in stored else 1]}  # fmt: skip
    table = struct.pack(f"{order}H", len(tags))
    for tag, values in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}H", *values)
        if len(body) > 4:
            behind, body = behind + body, struct.pack(f"{order}I", start + len(behind))
        table += struct.pack(f"{order}HHI", tag, 3, len(values)) + body.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return io.BytesIO(head + table + bytes(4) + behind)


TIFFS = [
    (photometric, bits, extra, order, stored)
    for photometric in CHANNELS if photometric != LAB
    for bits in (1, 2, 4, 8, 16, 32)
    for extra in (None, UNKNOWN, PREMULTIPLIED, ALPHA)
    for order in "<>"
    for stored in ("plain", "deflated", "planes", "deflated planes")
]  # fmt: skip


def meant_tiff(photometric, bits, extra, order, stored, orientation=1):
    """(file, what it shows) of one kind of TIFF."""
    channels, white, tags = CHANNELS[photometric], 2**bits - 1, {262: [photometric], 274: [orientation], 530: [1, 1]}
    samples = numbers(channels + (extra is not None), bits, seed=bits)
    colors, last = samples[..., :channels] / white, samples[..., channels:] / white
    if extra == PREMULTIPLIED:
        inverse = photometric == WHITE_IS_ZERO
        samples[..., :channels] = np.rint(white * (1 - colors * last if inverse else colors * last))
        colors = samples[..., :channels] / white
    if photometric == PALETTE:
        palette = np.random.default_rng(bits).integers(0, 256, (2 ** min(bits, 16), 3)) * 257
        tags[320] = palette.T.ravel().tolist()
        rgb = palette[(samples[..., 0] % len(palette)).astype(int)] / 65535
    else:
        rgb = shown(colors, photometric)
    if extra in (PREMULTIPLIED, ALPHA):
        rgb = over_white(rgb, last, premultiplied=extra == PREMULTIPLIED)
    if extra is not None:
        tags[338] = [extra]
    return tiff(samples, bits, tags, order=order, stored=stored), TURNS[orientation](rgb * 255)


# --- PNG ------------------------------------------------------------------------------------------------------------


def png(samples: np.ndarray, bits: int, color: int, chunks: dict[bytes, bytes]) -> io.BytesIO:
    """color: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = samples.shape
    rows = b"".join(b"\0" + packed(row[None], bits) for row in samples)
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = {b"IHDR": head, **chunks, b"IDAT": zlib.compress(rows)}
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (parts | {b"IEND": b""}).items()))


PNGS = [
    (color, bits, clear)
    for color, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
    for bits in depths
    for clear in ((False, True) if color < 4 else (False,))
]


def meant_png(color, bits, clear, orientation=1):
    """(file, what it shows). clear: with a chunk tRNS, the transparent color, or the palette's alpha."""
    channels, white, chunks = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color], 2**bits - 1, {}
    samples = numbers(channels, bits, seed=bits)
    samples[1, 1] = samples[1, 0] ^ np.uint64(1)  # differs from the transparent color in the last bit
    shares, alpha = samples / white, None
    if color == 3:
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 4))
        chunks[b"PLTE"] = palette[:, :3].astype(np.uint8).tobytes()
        rgb, alpha = np.split(palette[samples[..., 0].astype(int)] / 255, [3], axis=-1)
        if clear:
            chunks[b"tRNS"] = palette[:, 3].astype(np.uint8).tobytes()
    else:
        rgb = np.broadcast_to(shares[..., : 1 if color in (0, 4) else 3], (HEIGHT, WIDTH, 3))
        alpha = shares[..., -1:] if color >= 4 else 1 - (samples == samples[1, 0]).all(-1, keepdims=True)
        if clear:
            chunks[b"tRNS"] = samples[1, 0].astype(">u2").tobytes()
    if clear or color >= 4:
        rgb = over_white(rgb, alpha)
    exif = Image.Exif()
    exif[274] = orientation
    return png(samples, bits, color, {**chunks, b"eXIf": exif.tobytes()[6:]}), TURNS[orientation](rgb * 255)


# --- modes that Pillow hands out itself, as torchvision's data sets may ---------------------------------------------


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIE 15 and IEC 61966-2-1, adapted from D50 by Bradford's matrix: L from 0 to 100, a, b -> shares."""
    f = np.stack([lab[..., 0] + 16 + lab[..., 1] * 116 / 500, lab[..., 0] + 16,
                  lab[..., 0] + 16 - lab[..., 2] * 116 / 200], axis=-1) / 116  # fmt: skip
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1, 0.82521]
    to_linear = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540],
                 [0.0719453, -0.2289914, 1.4052427]]  # fmt: skip
    linear = (xyz @ np.transpose(to_linear)).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """A. R. Smith's hexcone: shares of hue, saturation and value -> of red, green and blue."""
    hue, saturation, value = np.split(hsv, 3, axis=-1)
    k = (np.array([5, 3, 1]) + 6 * hue) % 6
    return value - value * saturation * np.minimum(k, 4 - k).clip(0, 1)


def of_mode(mode: str) -> tuple[Image.Image, np.ndarray, float]:
    """(image, what it shows, how far rounding may lead)."""
    depth = 16 if mode.startswith("I;16") else 8
    samples = numbers(len(Image.new(mode, (1, 1)).getbands()), depth, seed=len(mode))
    shares = samples / (2**depth - 1)
    if mode in ("La", "RGBa"):
        samples[..., :-1] = np.rint(shares[..., :-1] * shares[..., -1:] * 255)
        shares = samples / 255
    if mode == "1":
        bits = samples[..., 0] > 127
        return Image.fromarray(bits), np.repeat(255.0 * bits[..., None], 3, axis=-1), 0
    if mode in ("I", "F") or depth == 16:
        dtype = {"I": np.int32, "F": np.float32}.get(mode, ">u2" if mode.endswith("B") else "<u2")
        image = Image.frombytes(mode, (WIDTH, HEIGHT), samples.astype(dtype).tobytes())
        return image, 255 * shown(shares, BLACK_IS_ZERO), 0.5
    if mode == "LAB":  # within what sRGB can show
        samples = np.dstack([samples[..., :1] % 100 + 120, (samples[..., 1:] % 31).astype(np.int64) - 15])
    image = Image.frombytes(mode, (WIDTH, HEIGHT), samples.astype(np.uint8).tobytes())
    alpha = shares[..., -1:]
    if mode in ("P", "PA"):
        palette = np.random.default_rng(0).integers(0, 256, (256, 3))
        image.putpalette(palette.astype(np.uint8).tobytes())
        rgb = palette[samples[..., 0].astype(int)] / 255
        return image, 255 * (over_white(rgb, alpha) if mode == "PA" else rgb), 1
    if mode == "LAB":
        return image, 255 * lab_to_rgb(samples / [2.55, 1, 1]), 2
    if mode == "HSV":
        return image, 255 * hsv_to_rgb(shares), 1
    if mode in ("L", "LA", "La"):
        rgb = np.repeat(shares[..., :1], 3, axis=-1)
    else:
        rgb = shown(shares if mode == "CMYK" else shares[..., :3], {"CMYK": CMYK, "YCbCr": YCBCR}.get(mode, RGB))
    if mode in ("LA", "La", "RGBA", "RGBa"):
        rgb = over_white(rgb, alpha, premultiplied=mode.endswith("a"))
    return image, 255 * rgb, 1


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F",
         "I;16", "I;16L", "I;16B"]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    image, meant, rounding = of_mode(mode)
    assert np.abs(np.asarray(to_rgb(image)) - meant).max() <= rounding + 1e-9


def rounding(bits, of_colors):
    """16-bit colors lose their low byte, before white is mixed in or black takes light away."""
    return 2.5 if bits == 16 and of_colors else 1 + 1e-9


TAKEN = {WHITE_IS_ZERO: (1, 2, 4, 8), BLACK_IS_ZERO: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8),
         CMYK: (8, 16), YCBCR: (8,)}  # fmt: skip


def must_be_taken(photometric, bits, extra, stored):
    if "planes" in stored:
        return bits == 8 and photometric in (BLACK_IS_ZERO, RGB, CMYK) and extra is None
    return bits in TAKEN[photometric] if extra is None else bits == 8 and photometric in (BLACK_IS_ZERO, RGB)


def test_tiffs():
    wrong, refused = [], []
    for kind, orientation in zip(TIFFS, np.random.default_rng(0).integers(1, 9, len(TIFFS)).tolist(), strict=True):
        photometric, bits, extra, _, stored = kind
        file, meant = meant_tiff(*kind, orientation=orientation)
        try:
            found = read_rgb(file)
        except UserError:
            refused += [kind] if must_be_taken(photometric, bits, extra, stored) else []
            continue
        if found.shape != meant.shape or np.abs(found - meant).max() > rounding(bits, photometric >= RGB):
            wrong.append(kind)
    assert (wrong, refused) == ([], [])


@pytest.mark.parametrize("orientation", TURNS)
def test_pngs(orientation):
    for kind in PNGS:
        file, meant = meant_png(*kind, orientation=orientation)
        if kind == (2, 16, True):
            with pytest.raises(UserError, match="has 16-bit colors of which one is transparent, which Pillow decodes"):
                read_rgb(file)
        else:
            found = read_rgb(file)
            assert found.shape == meant.shape, kind
            assert np.abs(found - meant).max() <= rounding(kind[1], kind[0] > 0), kind


def test_tiffs_of_lab():
    """a* and b* are signed in the file."""
    image, meant, rounding = of_mode("LAB")
    samples = np.frombuffer(image.tobytes(), np.uint8).reshape(HEIGHT, WIDTH, 3).astype(np.uint64)
    assert np.abs(read_rgb(tiff(samples, 8, {262: [LAB]})) - meant).max() <= rounding


def test_text_of_a_png_is_no_reason_to_refuse_it():
    """Pillow takes no more than a MiB by itself."""
    samples = numbers(3, 8)
    for chunk in ({b"zTXt": b"notes\0\0" + zlib.compress(bytes(2**24))}, {b"tEXt": b"notes\0" + b"x" * 2**21}):
        assert np.array_equal(read_rgb(png(samples, 8, 2, chunk)), samples)
