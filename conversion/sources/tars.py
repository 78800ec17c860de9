"""Tar files read in place: header by header for what is in them, then each member by its offset.

Nothing is extracted and no name in an archive becomes a path. Between two headers the data are skipped, so that a scan
reads a small part of the file. Anything but a whole tar file, from its first header to its end mark, is refused.
"""

import concurrent.futures.process
import functools
import io
import multiprocessing
import os
import signal
import tarfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from conversion import formats
from conversion.encode import ReadError
from conversion.progress import progress
from conversion.sources.selection import NO_IMAGE, LeftOut, has_image_name, junk_folder
from conversion.sources.source import require_unchanged
from ffcv_ops.errors import UserError, one_line, reading
from ffcv_ops.files import open_regular

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER = 2**20  # bytes of one long name or one set of pax records
OPEN_FILES = 64  # kept open by each process
TARS_PER_WORKER = 16  # below that, starting another process costs more than it gives
GZIP = b"\x1f\x8b"


class Region(NamedTuple):
    """A tar file, or the part of one that is a tar file itself; bytes [start, end)."""

    path: str
    start: int
    end: int


class Member(NamedTuple):
    name: str
    offset: int  # of its bytes in the file
    size: int


class _Headers(io.FileIO):
    """The file as tarfile sees it: it may ask for headers, not for what a forged length claims."""

    def read(self, size=-1):
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError("a header is too long")
        return super().read(size)


def whole(path) -> Region:
    with reading(path), open_regular(path) as file:
        return Region(str(path), 0, os.fstat(file.fileno()).st_size)


def members(region: Region) -> Iterator[Member]:
    """The files in the archive in their order. Raises UserError at the first fault."""
    try:
        with _Headers(region.path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead into the data
            yield from _members(file, region)
    except OSError as error:
        raise UserError(f"{region.path} cannot be read: {error.strerror or error}") from None
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(f"{region.path} is not a whole tar file: {reason}; get it again") from None


def _members(file, region):
    file.seek(region.start)
    if file.read(2) == GZIP:
        raise UserError(f"{region.path} is compressed and cannot be read in place; gunzip it first")
    file.seek(region.start)
    archive = tarfile.TarFile(fileobj=file, format=tarfile.PAX_FORMAT, errors="surrogateescape", encoding="utf-8")
    while (entry := archive.next()) is not None:
        archive.members = []  # tarfile would keep all of them
        if entry.size < 0 or entry.offset_data + entry.size > region.end:
            raise tarfile.ReadError(f"{entry.name} lies beyond its end")
        if entry.issparse() or entry.islnk() or entry.issym():
            raise UserError(f"{region.path}: {one_line(entry.name)} is a link or a sparse file; pack images themselves")
        if entry.isreg():
            yield Member(entry.name, entry.offset_data, entry.size)
    file.seek(archive.offset)  # tarfile also takes a damaged header for the end
    if archive.offset + BLOCK > region.end or file.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset:,}")


def read_bytes(span: tuple[str, int, int], known: Mapping[str, tuple[int, int]] = types.MappingProxyType({})) -> bytes:
    """The `size` bytes at `offset` of the file `path`. A `ReadError` where there are not so many, or where the file no
    longer has the stamp that is `known` of it (source.py)."""
    path, offset, size = span
    try:
        require_unchanged(path, known)
        data = os.pread(_open(path).fileno(), size, offset)
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) != size:
        raise ReadError(f"{path} ends before byte {offset + size:,}")
    return data


def is_image(region: Region, member: Member) -> bool:
    """Whether the member is an image by its name or, for a name that says nothing, by its content."""
    if has_image_name(member.name):
        return True
    return formats.is_image(head((region.path, member.offset, member.size)))


def head(span: tuple[str, int, int]) -> bytes:
    """What tells the format of an image file."""
    path, offset, size = span
    return read_bytes((path, offset, min(size, formats.HEAD)))


def images(region: Region, left_out: LeftOut) -> Iterator[Member]:
    """The images among the archive's members."""
    for member in members(region):
        reason = junk_folder(member.name) or (None if is_image(region, member) else NO_IMAGE)
        if reason:
            left_out.add(reason, member.name)
        else:
            yield member


@functools.lru_cache(OPEN_FILES)
def _open(path):
    """Closed by the garbage collector once the cache has let it go."""
    return open(path, "rb", buffering=0)


def scanned(scan, regions: list[Region], label: str, workers: int) -> list:
    """`scan` of each region, in their order, by up to `workers` processes."""
    workers = min(workers, len(regions) // TARS_PER_WORKER)
    with progress(f"{label}, reading headers", len(regions), "tar files") as advance:
        if workers < 2:
            return [_count(scan(region), advance) for region in regions]
        context = multiprocessing.get_context("spawn")
        ours_alone = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # Ctrl-C
        try:
            with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, **ours_alone) as pool:
                return [_count(result, advance) for result in pool.map(scan, regions, chunksize=4)]
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError(
                "a process that reads the headers of tar files died, perhaps for lack of memory; set data.workers lower"
            ) from None


def _count(result, advance):
    advance()
    return result


def tar_paths(folder: Path) -> list[Path]:
    """The tar files of a folder, without macOS's ._x.tar."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and not path.name.startswith("._"))
