"""Odd and bad source images among good ones, through the program: each is stored as the picture that it
was made from, or refused with its name."""

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from conversion import beton

TOLERANCE = 8.0  # of 255, mean difference that JPEG and a reduction may leave of these pictures


def picture(height=90, width=120) -> np.ndarray:
    """Smooth, without symmetry: JPEG leaves it nearly as it is, and turning it shows. uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    red, green = 255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1)
    return np.stack([red, green, (red + 2 * green) / 3], axis=2).astype(np.uint8)


def _gray(rgb):
    return np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"))


class Kind(NamedTuple):
    """A kind of source image: its file name, its bytes (None: a link to nowhere), and the picture that is stored if it
    is converted (None: it must be refused). `other`: what is as good by another rule."""

    file: str
    content: bytes | None
    picture: np.ndarray | None
    other: np.ndarray | None = None


def _stored(image, kind="JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _rgba(alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([picture(), np.full((90, 120), alpha, np.uint8)]))


def _png16(width, height, color, rows) -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def _claiming(width, height) -> bytes:
    """A PNG of a few kB that claims to be so large."""
    small = _stored(Image.new("L", (8, 8)), "PNG")
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return small[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + small[33:]


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _stored(Image.fromarray(np.rot90(picture()).copy()), quality=95, exif=exif)


def _cut_exif() -> bytes:
    """Pillow warns of it, without a name."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0"
    return _stored(Image.fromarray(picture()), quality=95, exif=exif)


def _overwritten() -> bytes:
    """What libjpeg decodes to its end is stored as it decodes: by the rule, this is no damaged file."""
    good = bytearray(_stored(Image.fromarray(picture()), quality=95))
    good[len(good) // 2 : len(good) // 2 + 8] = b"\x55" * 8
    return bytes(good)


def kinds() -> dict[str, Kind]:
    rgb, image = picture(), Image.fromarray(picture())
    good, gray, overwritten = _stored(image, quality=95), _gray(rgb), _overwritten()
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    palette = image.quantize(256)
    bits = image.convert("L").point(lambda value: 255 * (value > 127)).convert("1")
    tall, wide, long = picture(5000, 1), picture(1, 5000), picture(2, 70_000)
    return {
        "truncated JPEG": Kind("x.jpg", good[: len(good) // 2], None),
        "JPEG without its end marker": Kind("x.jpg", good[:-2], None),
        "JPEG with 8 bytes overwritten": Kind("x.jpg", overwritten, np.asarray(Image.open(io.BytesIO(overwritten)))),
        "empty file": Kind("x.jpg", b"", None),
        "text named .jpg": Kind("x.jpg", b"no image at all\n" * 50, None),
        "a link to nowhere": Kind("x.jpg", None, None),
        "a folder named x.jpg": Kind("x.jpg/inside.jpg", good, rgb),
        "PNG that claims 200 megapixels": Kind("x.png", _claiming(20_000, 10_000), None),
        "PNG that claims 4 gigapixels": Kind("x.png", _claiming(65_000, 65_000), None),
        "truncated PNG": Kind("x.png", _stored(image, "PNG")[:-300], None),
        "70,000 pixels wide": Kind("x.png", _stored(Image.fromarray(long), "PNG"), long),
        "CMYK JPEG": Kind("x.jpg", _stored(image.convert("CMYK"), quality=95), rgb),
        "gray JPEG": Kind("x.jpg", _stored(image.convert("L"), quality=95), gray),
        "RGBA, opaque": Kind("x.png", _stored(_rgba(255), "PNG"), rgb),
        "RGBA, transparent": Kind("x.png", _stored(_rgba(0), "PNG"), np.full_like(rgb, 255), rgb),
        "gray with alpha": Kind("x.png", _stored(_rgba(255).convert("LA"), "PNG"), gray),
        "palette": Kind("x.png", _stored(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        "one bit": Kind("x.png", _stored(bits, "PNG"), np.asarray(bits.convert("RGB"))),
        "16-bit gray PNG": Kind("x.png", _png16(120, 90, 0, deep), gray),
        "16-bit RGB PNG": Kind("x.png", _png16(120, 90, 2, rgb.astype(np.uint16) * 257), rgb),
        "32-bit gray TIFF": Kind("x.tif", _stored(Image.fromarray(gray[..., 0].astype(np.int32)), "TIFF"), gray),
        "32-bit float TIFF": Kind("x.tif", _stored(Image.fromarray(gray[..., 0] / np.float32(255)), "TIFF"), gray),
        "turned by EXIF": Kind("x.jpg", _turned(), rgb),
        "cut EXIF": Kind("x.jpg", _cut_exif(), rgb),
        "PNG named .jpg": Kind("x.jpg", _stored(image, "PNG"), rgb),
        "WebP": Kind("x.webp", _stored(image, "WEBP", lossless=True), rgb),
        "progressive JPEG, 4:4:4": Kind("x.jpg", _stored(image, quality=95, progressive=True, subsampling=0), rgb),
        "JPEG with rubbish behind it": Kind("x.jpg", good + b"rubbish" * 100, rgb),
        "name with blanks and umlauts": Kind("äö ü 図.jpg", good, rgb),
        "1 pixel wide, 5000 high": Kind("x.png", _stored(Image.fromarray(tall), "PNG"), tall),
        "5000 pixels wide, 1 high": Kind("x.png", _stored(Image.fromarray(wide), "PNG"), wide),
    }


def write(folder, wanted):
    """Good images in a class folder, and one of each of the kinds `wanted`, in this order behind the first good one."""
    images = folder / "images" / "train" / "a"
    images.mkdir(parents=True)
    for name in ("a.jpg", "z.jpg"):
        Image.fromarray(picture()).save(images / name, quality=95)
    for number, kind in enumerate(wanted):
        path = images / f"m{number:02}{kind.file}"
        path.parent.mkdir(exist_ok=True)
        if kind.content is None:
            path.symlink_to("nowhere")
        else:
            path.write_bytes(kind.content)
    return ["write_datasets.py", f"--data.source={folder / 'images'}", f"--data.out={folder / 'x'}", "--data.workers=1"]


def test_odd_ones_are_stored_as_their_pictures(tmp_path, run_python):
    odd = {name: kind for name, kind in kinds().items() if kind.picture is not None}
    done = run_python(write(tmp_path, odd.values()))
    assert done.returncode == 0, done.stderr
    names = (tmp_path / "x_train.files.txt").read_text(encoding="utf-8").splitlines()
    stored = {Path(name).relative_to("train/a").parts[0][:3]: image
              for name, (image, _) in zip(names, beton.read(tmp_path / "x_train.beton"), strict=True)}  # fmt: skip
    assert len(stored) == len(odd) + 2 == 25
    assert "Warning" not in done.stderr
    for number, (name, kind) in enumerate(odd.items()):
        found = stored[f"m{number:02}"]
        wanted = [Image.fromarray(picture) for picture in (kind.picture, kind.other) if picture is not None]
        small = [np.asarray(image.resize(found.shape[1::-1], Image.Resampling.BOX), float) for image in wanted]
        assert min(abs(picture - found).mean() for picture in small) < TOLERANCE, name


def test_bad_ones_are_refused_or_left_out_by_name(tmp_path, run_python):
    bad = [kind for kind in kinds().values() if kind.picture is None]
    words = write(tmp_path, bad)
    done = run_python(words)
    assert done.returncode == 2
    *progress, said = done.stderr.splitlines()
    assert said.startswith("error: ")
    assert f"m00{bad[0].file}" in said
    assert not any("error" in line or "Traceback" in line for line in progress)
    assert not (tmp_path / "x_train.beton").exists()
    done = run_python([*words, "--data.on_error=skip"])
    assert done.returncode == 0, done.stderr
    skipped = (tmp_path / "x_train.skipped.txt").read_text().splitlines()
    assert len(skipped) == len(bad) == 8
    for number, (line, kind) in enumerate(zip(skipped, bad, strict=True)):
        assert f"m{number:02}{kind.file}" in line
    assert len(list(beton.read(tmp_path / "x_train.beton"))) == 2
