"""A zip or tar file of class folders, read in place: names make classes and splits, and never become paths.

Of a zip file the directory at its end is read, of a tar file the header of every member.
"""

import bisect
import functools
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from conversion import formats
from conversion.sources import tars
from conversion.sources.folder import Tree, class_folders
from conversion.sources.selection import NO_IMAGE, has_image_name, junk_folder
from conversion.sources.source import MAX_FILE, Made, Source, Spans, in_one_line, require_unchanged, stamps
from ffcv_ops.errors import UserError, one_line, reading
from ffcv_ops.files import open_regular

DEFLATED_HEAD = 4096  # bytes that give formats.HEAD, whatever codes stand before them
LOCAL_HEADER = 30  # bytes, of which the last four are the lengths of what follows: the name, and further fields
ROW = np.dtype([("at", "i8"), ("packed", "i8"), ("size", "i8"), ("crc", "u4"), ("deflated", "?")])


def zip_file(place: str, classes: str) -> Source:
    """An item is (path, place of the header, stored bytes, bytes, CRC-32, whether deflated)."""
    path = os.path.abspath(place)
    names, rows = _zip_directory(path)

    def items_of(numbers):
        chosen = rows[numbers]
        return Made(len(chosen), lambda number: (path, *chosen[number].tolist()))

    read = functools.partial(read_zip_member, known=stamps([path]))
    return class_folders(_tree(path, names, items_of, zip_head, read), classes)


def tar_file(place: str, classes: str) -> Source:
    path = os.path.abspath(place)
    members = list(tars.members(tars.whole(path)))
    spans = np.array([member[1:] for member in members], np.int64)
    names, read = [member.name for member in members], functools.partial(tars.read_bytes, known=stamps([path]))
    return class_folders(
        _tree(path, names, lambda numbers: Spans([path], [len(numbers)], *spans[numbers].T), tars.head, read), classes
    )


def read_zip_member(item, known: Mapping[str, tuple[int, int]]) -> bytes:
    """The bytes of a member; a `UserError` where they are not those that were packed, a `ReadError` where the archive
    has not its `known` stamp."""
    path, _, packed, size, crc, _ = item
    if size > MAX_FILE:
        raise UserError(f"has {size:,} bytes, where at most {MAX_FILE:,} are expected")
    require_unchanged(path, known)
    data = _inflated(item, packed, size + 1)
    if len(data) != size or zlib.crc32(data) != crc:
        raise UserError("is damaged in the zip file (CRC-32)")
    return data


def zip_head(item) -> bytes:
    """What tells the format of an image file."""
    return _inflated(item, min(item[2], DEFLATED_HEAD), formats.HEAD)


def _inflated(item, packed, most):
    """At most so many bytes, out of the first `packed` that are stored."""
    path, at, *_, deflated = item
    header = tars.read_bytes((path, at, LOCAL_HEADER))
    name, further = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    data = tars.read_bytes((path, at + LOCAL_HEADER + name + further, packed))
    if not deflated:
        return data[:most]
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most)
    except zlib.error:
        return b""


def _zip_directory(path):
    """The names of the files, and their ROWs."""
    names, rows = [], []
    with reading(path), open_regular(path) as file:
        try:
            members = _members(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            raise UserError(f"{path} is not a whole zip file: {one_line(str(error))}; get it again") from None
    for member in members:
        if member.flag_bits & 1:
            raise UserError(f"{path} is encrypted; unpack it with its password and give the folder")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{path}: {one_line(member.filename)} is neither stored nor deflated; unpack it and give the folder"
            )
        names.append(member.filename)
        deflated = member.compress_type == zipfile.ZIP_DEFLATED
        rows.append((member.header_offset, member.compress_size, member.file_size, member.CRC, deflated))
    return names, np.array(rows, ROW)


def _members(file):
    """Names are UTF-8, whatever the archive says of it (macOS says nothing), or else those of MS-DOS."""
    try:
        archive = zipfile.ZipFile(file, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        archive = zipfile.ZipFile(file)
    return [member for member in archive.infolist() if not member.is_dir()]


def _tree(path: str, names: list[str], items_of: Callable, head: Callable, read: Callable) -> Tree:
    """names: of the archive's files. items_of: of numbers of them, what `read` takes; head: of such an item, the first
    bytes of the file."""
    numbers, folders = {}, {"": []}
    for number, name in enumerate(names):
        parts = [part for part in in_one_line(name).replace("\\", "/").split("/") if part not in ("", ".")]
        for depth in range(len(parts)):
            folders.setdefault("/".join(parts[:depth]), [])
        if parts:
            folders["/".join(parts[:-1])].append(parts[-1])
        if numbers.setdefault("/".join(parts), number) != number:
            raise UserError(f"{path}: {one_line(name)} is there twice")
    order = sorted(folders)

    def below(place):
        """The folders below a place, at any depth."""
        if not place:
            return order[1:]
        return order[bisect.bisect_left(order, f"{place}/") : bisect.bisect_left(order, f"{place}0")]  # 0 follows /

    def entries(place):
        inside = len(place) + 1 if place else 0
        return sorted({folder[inside:].partition("/")[0] for folder in below(place)}), sorted(folders[place])

    def images(place, left_out):
        for folder in (place, *below(place)):
            for name in (f"{folder}/{file}" for file in sorted(folders[folder])):
                if reason := junk_folder(name) or (None if is_image(name) else NO_IMAGE):
                    left_out.add(reason, name)
                else:
                    yield name

    def is_image(name):
        return has_image_name(name) or formats.is_image(head(items_of([numbers[name]])[0]))

    return Tree(path, entries, images, lambda paths: items_of([numbers[name] for name in paths]), read)
