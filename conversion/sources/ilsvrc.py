"""ImageNet as image-net.org hands it out: tar files of classes inside a tar file, and validation images with a list.

    ILSVRC2012_img_train.tar            n01440764.tar, n01443537.tar ...: one for each class
    ILSVRC2012_img_val.tar              ILSVRC2012_val_00000001.JPEG ...
    ILSVRC2012_devkit_t12.tar.gz        whose data/ has the numbers of the validation images and what they stand for

ImageNet-21k is a tar of class tars too, or a folder of them. Order, names and labels are those that ImageFolder would
give after the usual unpacking to train/<synset>/ and val/<synset>/.
"""

import functools
import io
import os
import tarfile
from pathlib import Path

import numpy as np

from conversion import formats
from conversion.sources import synsets, tars
from conversion.sources.selection import LeftOut, junk_folder
from conversion.sources.source import Source, Spans, Split, Strings, first_few, in_one_line, joined, prefixed, stamps
from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import open_regular, read_regular

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"  # instead of both: the synset of each image in their order
MAX_DEVKIT_FILE = 2**24  # bytes; the real ones have less than a million


def ilsvrc(root: str, classes: str, workers: int) -> Source:
    """A folder with the files above. Without the validation tar there is one split."""
    root = Path(root).absolute()
    train, numbered = _of_class_tars(root / TRAIN, _inner(root / TRAIN), classes, workers)
    splits = {"train": train}
    if os.path.lexists(root / VAL):
        splits["val"] = _validation(root, numbered)
    return Source(str(root), numbered, splits, _reading([root / TRAIN, root / VAL][: len(splits)]))


def class_tars(path: str, classes: str, workers: int) -> Source:
    """A tar file of class tars, or a folder of them: <class>.tar each."""
    path = Path(path).absolute()
    regions = {file.stem: tars.whole(file) for file in tars.tar_paths(path)} if path.is_dir() else _inner(path)
    if path.is_dir() and classes == synsets.AUTO and all(name.isdigit() for name in regions):
        raise UserError(
            f"{path}: {first_few(sorted(regions))}.tar hold images without labels; where each is a class, set"
            " data.classes=numeric or data.classes=sorted"
        )
    train, numbered = _of_class_tars(path, regions, classes, workers)
    return Source(str(path), numbered, {"train": train}, _reading({region.path for region in regions.values()}))


def _reading(paths):
    return functools.partial(tars.read_bytes, known=stamps(paths))


def _inner(path: Path) -> dict[str, tars.Region]:
    """Class -> its tar inside of the tar file."""
    found = {}
    for name, offset, size in tars.members(tars.whole(path)):
        class_name, dot, end = in_one_line(name).rpartition("/")[2].rpartition(".")
        if junk_folder(name) or class_name.startswith("._"):
            continue
        if not dot or end != "tar" or class_name in found:
            reason = "is there twice" if class_name in found else "is not a class's tar file"
            raise UserError(f"{path}: {one_line(name)} {reason}; the archive must hold <class>.tar files")
        found[class_name] = tars.Region(str(path), offset, offset + size)
    return found


def _of_class_tars(path, regions, classes, workers):
    """(Split, class names) of {class: its tar}."""
    if not regions:
        raise UserError(f"{path} holds no class tars")
    numbered = synsets.ordered(list(regions), classes, str(path))
    found = [name for name in numbered if name in regions]
    scanned = tars.scanned(_class_images, [regions[name] for name in found], path.name, workers)
    counts = [len(names) for names, *_ in scanned]
    for class_name, count in zip(found, counts, strict=True):
        if not count:
            raise UserError(f"{path}: {one_line(class_name)}.tar has no images (known formats: {formats.NAMES})")
    names, offsets, sizes, left_out = joined(scanned)
    left_out.tell(one_line(str(path)))
    items = Spans([regions[name].path for name in found], counts, offsets, sizes)
    number = {name: k for k, name in enumerate(numbered)}
    labels = np.repeat(np.array([number[name] for name in found], np.int64), counts)
    names = prefixed([f"train/{name}/" for name in found], counts, names)
    return Split(items, names, labels, left_out.counts), numbered


def _class_images(region):
    """Names, offsets and sizes of the images in a class's tar, and what is left out."""
    images, left_out = _images(region)
    return Strings.of(name for name, _, _ in images), *_places(images), left_out


def _images(region) -> tuple[list[tars.Member], LeftOut]:
    """The images in the tar file in the order in which they would be found once unpacked, and what is left out."""
    left_out = LeftOut()
    found = [
        member._replace(name=in_one_line(member.name.removeprefix("./"))) for member in tars.images(region, left_out)
    ]
    return sorted(found, key=lambda member: member.name.rpartition("/")[::2]), left_out


def _places(images):
    return (np.array([image[k] for image in images], np.int64) for k in (1, 2))


def _validation(root, classes) -> Split:
    (images, left_out), truth = _images(tars.whole(root / VAL)), _validation_synsets(root)
    if len(truth) != len(images):
        raise UserError(f"{root / VAL} has {len(images):,} images, and the list of their classes {len(truth):,} lines")
    number = {name: k for k, name in enumerate(classes)}
    if unknown := sorted(set(truth) - set(number)):
        raise UserError(f"{root / VAL}: there are images of {first_few(unknown)}, which {TRAIN} lacks")
    labels = np.array([number[synset] for synset in truth], np.int64)
    order = np.argsort(labels, kind="stable")
    images = [images[k] for k in order]
    names = Strings.of(f"val/{classes[labels[k]]}/{image.name}" for k, image in zip(order, images, strict=True))
    items = Spans([str(root / VAL)], [len(images)], *_places(images))
    return Split(items, names, labels[order], left_out.counts)


def _validation_synsets(root) -> list[str]:
    """The synset of each validation image, in the order of their names."""
    if (root / SYNSETS).exists():
        return _devkit_file(root, SYNSETS).decode("ascii", "replace").split()
    synset = _synset_of_number(_devkit_file(root, META), root)
    try:
        return [synset[int(line)] for line in _devkit_file(root, TRUTH).split()]
    except (ValueError, KeyError) as error:
        raise UserError(f"{TRUTH} of {root}: {one_line(str(error))} is not the number of a class") from None


def _synset_of_number(content, root):
    """{1: "n02119789", ...} of the leaves, which are the classes of the challenge."""
    import scipy.io  # takes half a second

    try:
        rows = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if row["num_children"] == 0}
    except Exception as error:  # scipy raises a different one for each way in which a file can be damaged
        raise UserError(f"{META} of {root} cannot be read: {one_line(str(error))}") from None


def _devkit_file(root, name) -> bytes:
    """The file in the folder, in an unpacked devkit, or in the devkit's archive."""
    for place in (root / name, root / DEVKIT.removesuffix(".tar.gz") / "data" / name):
        if place.exists():
            return read_regular(place, MAX_DEVKIT_FILE)
    try:
        with open_regular(root / DEVKIT) as file, tarfile.open(fileobj=file) as archive:
            for entry in archive:
                if entry.isreg() and entry.name.endswith(f"/data/{name}") and entry.size <= MAX_DEVKIT_FILE:
                    return archive.extractfile(entry).read()
    except FileNotFoundError:
        raise UserError(f"{root} lacks {DEVKIT} (or {SYNSETS}), which tells the classes of {VAL}") from None
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{root / DEVKIT} cannot be read: {one_line(str(error))}") from None
    raise UserError(f"{root / DEVKIT} has no file data/{name}; get it again")
