"""The levels of a sample against Pillow's own reduction and encoder, from the original."""

import contextlib
import functools
import io

import numpy as np
import pytest
from PIL import Image

from conversion import jpeg
from conversion.encode import MIN_OVERSAMPLING, Encoded, ImageConfig, encode_item, encode_rgb
from conversion.sources import read_file
from ffcv_ops.errors import UserError

KEYS = {"max_side": None, "min_side": None, "mode": "jpg", "quality": 90}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """a photograph of 451 x 300, one of 100 x 64, which is smaller than some levels, and a thin one."""
    root = tmp_path_factory.mktemp("levels")
    cat = Image.fromarray(photos["cat"])
    cat.save(root / "large.png")
    cat.crop((0, 0, 100, 64)).save(root / "small.png")
    cat.crop((0, 0, 400, 1)).save(root / "thin.png")
    return root


def config(**options):
    return ImageConfig(**{"max_side": None, **options})


def below(folder):
    return functools.partial(read_file, root=str(folder))


def reduced(folder, name, size):
    with Image.open(folder / name) as image:
        return image.resize(size, Image.Resampling.BICUBIC)


def test_each_level_is_reduced_from_the_original(folder, encode):
    full, middle, small = encode_item("large.png", read=below(folder), image=config(**KEYS, levels=(300, 200, 64)))
    for found, size, colour in ((full, (300, 200), "4:2:0"), (middle, (200, 133), "4:4:4"), (small, (64, 43), "4:4:4")):
        expected = encode(np.asarray(reduced(folder, "large.png", size)), quality=90, subsampling=colour)
        assert found == Encoded.of("jpg", size[1], size[0], expected)


def test_the_full_level_is_the_image_without_levels(folder):
    for name in ("large.png", "small.png", "thin.png"):
        single = encode_item(name, read=below(folder), image=config(**{**KEYS, "max_side": 300}))
        pyramid = encode_item(
            name, read=below(folder), image=config(**{**KEYS, "max_side": 300}, levels=(300, 200, 64))
        )
        assert single == pyramid[:1] and len(pyramid) == 3


def test_limits_and_raw_pixels_at_every_level(folder):
    options = {**KEYS, "min_side": 100, "mode": "raw"}
    full, middle, small = encode_item("large.png", read=below(folder), image=config(**options, levels=(300, 200, 64)))
    assert [(image.width, image.height) for image in (full, middle, small)] == [(150, 100), (150, 100), (64, 43)]
    assert middle is full, "min_side makes it as small as the level would"
    assert small.data == reduced(folder, "large.png", (64, 43)).tobytes()


def test_levels_that_reduce_nothing(folder):
    full, middle, small = encode_item("small.png", read=below(folder), image=config(**KEYS, levels=(300, 200, 64)))
    assert (full.width, full.height) == (100, 64) and middle is full
    assert (small.width, small.height) == (64, 41)
    full, middle, small = encode_item("small.png", read=below(folder), image=config(**KEYS, levels=(300, 200, 100)))
    assert small is middle is full


def test_a_side_never_vanishes(folder):
    images = encode_item("thin.png", read=below(folder), image=config(**KEYS, levels=(300, 200, 64)))
    assert [(image.width, image.height) for image in images] == [(300, 1), (200, 1), (64, 1)]


def test_arrays_are_samples_of_one_level(photos):
    (image,) = encode_item(photos["cat"], read=np.asarray, image=config(mode="jpg", quality=80))
    assert image == encode_rgb(photos["cat"], mode="jpg", quality=80)


def as_jpeg(rgb, mode=None, **options):
    stream = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(stream, "JPEG", **{"quality": 80, **options})
    return stream.getvalue()


def stored(data, **options):
    (image,) = encode_item(data, read=bytes, image=config(mode="jpg", quality=90, **options))
    return image


def encoded_again(data, encode):
    return encode(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), quality=90, subsampling="4:2:0")


def unreduced(data):
    return jpeg.encode_again(data, jpeg.frame_of(data), quality=90)


def test_a_jpeg_within_the_limits_is_itself(photos):
    """But for what follows its end; at a limit and beyond; when it is not wanted."""
    data = as_jpeg(photos["cat"])
    height, width, _ = photos["cat"].shape
    for options in ({}, {"max_side": max(height, width)}, {"min_side": min(height, width)}):
        assert stored(data, **options) == Encoded.of("jpg", height, width, data)
        assert stored(data + b"more", **options).data == data
    smaller = stored(data, max_side=max(height, width) - 1)
    assert max(smaller.height, smaller.width) == max(height, width) - 1
    assert stored(data, passthrough=False) == Encoded.of("jpg", height, width, unreduced(data))
    (raw,) = encode_item(data, read=bytes, image=config(mode="raw", quality=90))
    assert raw.data == np.asarray(Image.open(io.BytesIO(data))).tobytes()


def damaged(data):
    """With eight other bytes, at the first place where Pillow passes over it and libjpeg warns."""
    for place in range(5000, len(data) - 1000, 101):
        changed = data[:place] + b"\x55\xaa\x12\x34\x99\x01\x7e\x33" + data[place + 8 :]
        if jpeg.image_alone(changed, jpeg.frame_of(changed)) is None:
            with contextlib.suppress(OSError):
                Image.open(io.BytesIO(changed)).load()
                return changed
    raise AssertionError("no such place")


@pytest.mark.parametrize("change", ["progressive", "progressive 4:4:4", "turned", "gray", "cmyk", "damaged"])
def test_other_jpegs_are_encoded_again(photos, encode, change):
    cat = photos["cat"]
    turned = Image.Exif()
    turned[0x0112] = 3
    data = {
        "progressive": as_jpeg(cat, progressive=True),
        "progressive 4:4:4": as_jpeg(cat, progressive=True, subsampling="4:4:4"),
        "turned": as_jpeg(cat, exif=turned),
        "gray": as_jpeg(cat[..., 0]),
        "cmyk": as_jpeg(cat, "CMYK"),
        "damaged": damaged(as_jpeg(cat)),
    }[change]
    found = stored(data)
    assert found.data != data
    if change == "turned":
        upright = np.asarray(Image.open(io.BytesIO(data)))[::-1, ::-1]
        assert found.data == encode(np.ascontiguousarray(upright), quality=90, subsampling="4:2:0")
    elif change == "progressive":
        assert found.data == unreduced(data)
    elif change != "cmyk":
        assert found.data == encoded_again(data, encode)


def test_a_cut_jpeg_is_refused(photos):
    data = as_jpeg(photos["cat"])
    for length in (len(data) - 2, len(data) // 2, 700):
        with pytest.raises(UserError, match="cannot be decoded: "):
            stored(data[:length])


def test_levels_of_a_jpeg_that_is_stored_itself(photos, encode):
    data = as_jpeg(photos["cat"])
    full, small = encode_item(data, read=bytes, image=config(mode="jpg", quality=90, levels=(500, 128)))
    pixels = Image.open(io.BytesIO(data)).resize((small.width, small.height), Image.Resampling.BICUBIC)
    assert full.data == data
    assert small.data == encode(np.asarray(pixels), quality=90, subsampling="4:4:4")


def test_reduced_jpegs_are_pillows_pixels(photos):
    """Up to a scale of MIN_OVERSAMPLING. Beyond, the decoder scales; that is nearer than the JPEG that is then made."""
    data = as_jpeg(photos["cat"], quality=95)
    image = Image.open(io.BytesIO(data))
    for side in (400, 300, 151, 110, 80, 60, 40):
        (found,) = encode_item(data, read=bytes, image=config(max_side=side, mode="raw", quality=90))
        size = (found.width, found.height)
        exact = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(float)
        error = np.frombuffer(found.data, np.uint8).reshape(exact.shape) - exact
        if MIN_OVERSAMPLING * 2 * side > image.width:
            assert not error.any()
        else:
            again = Image.open(io.BytesIO(as_jpeg(exact.astype(np.uint8), quality=90)))
            assert 10 * np.log10(255**2 / np.square(error).mean()) > 42
            assert np.square(error).mean() < np.square(np.asarray(again) - exact).mean() / 4
