"""Thirty kinds of odd or bad source image through the writer, one at a time among good ones.

Each kind is made from a picture that is known, so that what was converted can be held against it. Refused is: an error
that names the file and leaves nothing under the final name.
"""

import contextlib
import io
import os
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.faults import campaign
from bench.faults.campaign import OURS, ROOT, STOCK, Fault
from conversion import beton

LIMIT, STOCK_LIMIT = 60, 20  # seconds; the good images alone take less than one
GOOD, BAD = 8, 3  # images beside the bad one; its place, in file order, is BAD
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


def _png16(width, height, colour, rows) -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
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
        "PNG named .jpg": Kind("x.jpg", _stored(image, "PNG"), rgb),
        "WebP": Kind("x.webp", _stored(image, "WEBP", lossless=True), rgb),
        "progressive JPEG, 4:4:4": Kind("x.jpg", _stored(image, quality=95, progressive=True, subsampling=0), rgb),
        "JPEG with rubbish behind it": Kind("x.jpg", good + b"rubbish" * 100, rgb),
        "name with blanks and umlauts": Kind("äö ü 図.jpg", good, rgb),
        "1 pixel wide, 5000 high": Kind("x.png", _stored(Image.fromarray(tall), "PNG"), tall),
        "5000 pixels wide, 1 high": Kind("x.png", _stored(Image.fromarray(wide), "PNG"), wide),
    }


def run(folder: Path, *, quick: bool) -> list[Fault]:
    names = list(kinds())[:: 6 if quick else 1]
    faults = []
    for who, convert, limit, at_once in ((OURS, _ours, LIMIT, 2), (STOCK, _stock, STOCK_LIMIT, 8))[: 1 if quick else 2]:
        cases = [(folder / who / str(number), name) for number, name in enumerate(names)]
        for (place, name), ended in campaign.each(cases, convert, limit=limit, at_once=at_once):
            outcome, note = ended.value or _judged_stock(ended) if who == STOCK else ended.value or ("hang", "")
            faults.append(Fault(who, name, outcome, note or ended.last_line))
            shutil.rmtree(place)
    return faults


def _judged_stock(ended):
    return ("hang", ended.last_line) if ended.status is None else ("detected", ended.last_line)


def prepare(folder: Path, name: str) -> str:
    """folder/images/train/a with GOOD images and the one of kind `name` among them. Returns the bad one's name."""
    kind = kinds()[name]
    images = folder / "images" / "train" / "a"
    images.mkdir(parents=True)
    for number in range(GOOD):
        beside = images / f"{'a' if number < BAD else 'z'}{number}.jpg"
        Image.fromarray(picture()).save(beside, quality=95)
    path = images / ("m" + kind.file)
    path.parent.mkdir(exist_ok=True)
    if kind.content is None:
        path.symlink_to("nowhere")
    else:
        path.write_bytes(kind.content)
    return path.name


def _ours(folder: Path, name: str):
    """Stops at the bad image and names it, and, told to skip, leaves out that one alone; or stores it rightly."""
    file = prepare(folder, name)
    command = [sys.executable, "write_datasets.py", f"--data.source={folder / 'images'}", f"--data.out={folder / 'x'}",
               "--data.workers=2"]  # fmt: skip
    seen = []
    for choice in ("stop", "skip"):
        done = subprocess.run([*command, f"--data.on_error={choice}"], cwd=ROOT, capture_output=True, text=True)
        error, path = done.stderr.strip().splitlines()[-1:] or [""], folder / "x_train.beton"
        if "Traceback" in done.stderr or done.returncode not in (0, 2):
            return "crash", error[0]
        if choice == "stop" and done.returncode == 2:
            if path.exists() or file not in error[0]:
                return "lost" if path.exists() else "silent", f"refused without its name: {error[0]}"
            seen.append(error[0])
            continue
        skipped = folder / "x_train.skipped.txt"
        left_out = skipped.read_text().count("\n") if skipped.exists() else 0
        stored = [image for image, _ in beton.read(path)]
        if bool(seen) != bool(left_out) or (left_out and file not in skipped.read_text()):
            return "silent", f"stop and skip differ, {left_out} left out"
        if len(stored) != GOOD + 1 - left_out:
            return "silent", f"{len(stored)} images stored"
        if not left_out:
            return _judged_picture(stored[BAD], kinds()[name])
    return "detected", seen[0]


def _judged_picture(found: np.ndarray, kind: Kind):
    """Harmless when what was stored is the picture, perhaps reduced."""
    if kind.picture is None:
        return "silent", "stored, though damaged"
    wanted = [Image.fromarray(picture) for picture in (kind.picture, kind.other) if picture is not None]
    small = [np.asarray(image.resize(found.shape[1::-1], Image.Resampling.BOX), float) for image in wanted]
    off = min(abs(picture - found).mean() for picture in small)
    return ("harmless", "") if off < TOLERANCE else ("silent", f"stored with a mean difference of {off:.0f} of 255")


def _stock(folder: Path, name: str):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    prepare(folder, name)
    warnings.simplefilter("ignore")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    fields = {"image": RGBImageField(write_mode="jpg", max_resolution=500, jpeg_quality=95), "label": IntField()}
    path, images = folder / "x.beton", ImageFolder(str(folder / "images" / "train"))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(images)
    return _judged_picture(_stored_by_stock(path), kinds()[name])


def _stored_by_stock(path: Path) -> np.ndarray:
    """Its image number BAD. FFCV hands RGB to an encoder that it tells so, and decodes to RGB."""
    from ffcv.reader import Reader

    reader = Reader(str(path))
    start = int(reader.metadata["f0"]["data_ptr"][BAD])
    size = int(reader.alloc_table["size"][reader.alloc_table["ptr"] == start][0])
    data = path.read_bytes()[start : start + size]
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
