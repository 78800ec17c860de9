"""Members of tar files by their place, against tarfile's extraction; and archives that are not whole."""

import io
import os
import signal
import struct
import tarfile

import numpy as np
import pytest

from conversion.sources import tars
from conversion.sources.ilsvrc import _class_images
from ffcv_ops.errors import UserError

CONTENT = {"a.jpg": b"1" * 700, "deep/" + "x" * 150 + "/b.jpg": b"2" * 512, "c\nd.jpg": b"", "../../e.jpg": b"4"}


def written(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    return tars.whole(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_and_bytes(tmp_path, packed, kind):
    region = written(tmp_path, packed(CONTENT, format=kind))
    found = list(tars.members(region))
    assert {member.name: tars.read_bytes((region.path, *member[1:])) for member in found} == CONTENT
    assert os.listdir(tmp_path) == ["x.tar"]


def test_a_tar_inside_of_a_tar(tmp_path, packed):
    """Members of the inner one by their place in the outer one; the scan ends with it."""
    inner = {"one": packed(CONTENT), "two": packed({"f.jpg": b"6" * 3000})}
    region = written(tmp_path, packed(inner))
    for member in tars.members(region):
        own = tars.Region(region.path, member.offset, member.offset + member.size)
        with tarfile.open(fileobj=io.BytesIO(inner[member.name])) as reference:
            content = {entry.name: reference.extractfile(entry).read() for entry in reference}
        assert {name: tars.read_bytes((region.path, *place)) for name, *place in tars.members(own)} == content


def forged(content, name, size):
    """The archive with another size in the header of `name`, in base 256, with the right checksum."""
    at = content.index(name.encode())
    header = bytearray(content[at : at + 512])
    header[124:136] = struct.pack(">Iq", 0xFFFFFFFF if size < 0 else 0x80000000, size)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return content[:at] + bytes(header) + content[at + 512 :]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: whole[:900], "a.jpg lies beyond its end"),
        (lambda whole: whole[:1536], "no header and no end mark at byte 1,536"),
        (lambda whole: whole[:1536] + b"\xff" * 512 + whole[2048:], "no header and no end mark at byte 1,536"),
        (lambda whole: whole[:2560], "no header and no end mark at byte 2,560"),
        (lambda whole: forged(whole, "a.jpg", 2**40), "a.jpg lies beyond its end"),
        (lambda whole: forged(whole, "a.jpg", -1024), "a.jpg lies beyond its end"),
        (lambda whole: forged(whole, "a.jpg", 100), "no header and no end mark"),
        (lambda whole: b"", "no header and no end mark at byte 0|empty file"),
        (lambda whole: b"\x1f\x8b" + whole, "is compressed"),
        (lambda whole: bytes(range(256)) * 10, "not a whole tar file"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, packed, spoil, message):
    region = written(tmp_path, spoil(packed({"a.jpg": b"1" * 700, "b.jpg": b"2" * 512})))
    with pytest.raises(UserError, match=message) as caught:
        list(tars.members(region))
    assert "x.tar" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.timeout(60)
def test_damage_never_goes_unnoticed(tmp_path, packed):
    """A byte of a header changed: refused, or the members are still those that tarfile finds."""
    whole = packed({"a.jpg": b"1" * 512, "b.jpg": b"2" * 512, "c.jpg": b"3" * 512})
    draws = np.random.default_rng(0)
    noticed = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draws.integers(3) * 1024 + draws.integers(512)] ^= 1 << draws.integers(8)
        try:
            names = [member.name for member in tars.members(written(tmp_path, bytes(damaged)))]
        except UserError:
            noticed += 1
            continue
        assert len(names) == 3
    assert noticed > 200


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        entry = tarfile.TarInfo("etc.jpg")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(UserError, match=r"etc.jpg is a link"):
        list(tars.members(tars.whole(tmp_path / "x.tar")))


def test_a_file_that_shrank_or_went(tmp_path, packed):
    region = written(tmp_path, packed(CONTENT))
    with pytest.raises(UserError, match="ends before byte"):
        tars.read_bytes((region.path, 0, 10**9))
    with pytest.raises(UserError, match=r"gone.tar cannot be read: No such file"):
        tars.read_bytes((str(tmp_path / "gone.tar"), 0, 1))
    with pytest.raises(UserError, match=r"gone.tar cannot be read: No such file"):
        tars.whole(tmp_path / "gone.tar")


@pytest.mark.timeout(60)
def test_processes_give_the_same_as_one(tmp_path, packed):
    jobs = []
    for number in range(2 * tars.TARS_PER_WORKER):
        (tmp_path / f"{number}.tar").write_bytes(packed({f"{k}.jpg": b"x" * number for k in range(3)}))
        jobs.append(tars.whole(tmp_path / f"{number}.tar"))
    alone, together = (tars.scanned(_class_images, jobs, "x", workers) for workers in (1, 2))
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert list(one[0]) == list(other[0]) == [f"{k}.jpg" for k in range(3)]
        assert np.array_equal(one[1], other[1]) and np.array_equal(one[2], other[2])
        assert other[2].tolist() == [number] * 3


@pytest.mark.timeout(60)
def test_a_process_that_dies_ends_the_scan(tmp_path):
    regions = [tars.Region(str(tmp_path), 0, 0)] * 2 * tars.TARS_PER_WORKER
    with pytest.raises(
        UserError, match=r"a process that reads the headers of tar files died, .*; set data.workers low"
    ):
        tars.scanned(_dies, regions, "train", 2)
    ignored = set(tars.scanned(_ignores_interrupts, regions, "train", 2))
    assert ignored == {True}


def _dies(region):
    os._exit(1)


def _ignores_interrupts(region):
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN
