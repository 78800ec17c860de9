"""Files around the page cache, and what becomes of them where that cannot be."""

import fcntl
import os

import numpy as np
import pytest

from conversion import direct
from conversion.direct import BLOCK, aligned_buffer, next_multiple, open_direct, read_at, write_at


def goes_direct(file):
    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture
def content():
    made = aligned_buffer(5 * BLOCK)
    made[:] = np.random.default_rng(0).bytes(5 * BLOCK)
    return made


@pytest.fixture(params=["as it is", "no direct access"])
def path(request, tmp_path, monkeypatch):
    """Where the file system cannot, `os.open` says so."""
    if request.param == "no direct access":
        opened = os.open

        def refusing(path, flags, *mode):
            if flags & os.O_DIRECT:
                raise OSError(22, "Invalid argument")
            return opened(path, flags, *mode)

        monkeypatch.setattr(os, "open", refusing)
    return tmp_path / "file"


def test_whole_blocks(path, content):
    with open_direct(path) as file:
        write_at(file, 2 * BLOCK, content)
        got = aligned_buffer(7 * BLOCK)
        assert read_at(file, BLOCK, got) == 6 * BLOCK
    assert bytes(got[: 6 * BLOCK]) == bytes(BLOCK) + content
    assert path.read_bytes() == bytes(2 * BLOCK) + content


def test_a_part_of_a_block_goes_through_the_cache(path, content):
    with open_direct(path) as file:
        write_at(file, 0, content)
        write_at(file, BLOCK + 7, content[:100])
        assert not goes_direct(file)
        write_at(file, 4 * BLOCK, content[: 2 * BLOCK])
    expected = bytearray(content)
    expected[BLOCK + 7 : BLOCK + 107] = content[:100]
    assert path.read_bytes() == expected[: 4 * BLOCK] + content[: 2 * BLOCK]


def test_a_write_that_the_system_cuts_short(path, content, monkeypatch):
    written, asked = os.pwrite, []

    def shorter(descriptor, data, place):
        asked.append(len(data))
        return written(descriptor, data[:1000] if len(asked) == 1 else data, place)

    monkeypatch.setattr(direct.os, "pwrite", shorter)
    with open_direct(path) as file:
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
        write_at(file, 0, content)
    assert asked == [5 * BLOCK, 5 * BLOCK - 1000]
    assert path.read_bytes() == content


def test_a_read_that_the_system_cuts_short(path, content, monkeypatch):
    path.write_bytes(content[:-100])
    read, asked = os.preadv, []

    def shorter(descriptor, buffers, place):
        asked.append(len(buffers[0]))
        return read(descriptor, [buffers[0][:BLOCK]], place)

    monkeypatch.setattr(direct.os, "preadv", shorter)
    got = aligned_buffer(5 * BLOCK)
    with open_direct(path, os.O_RDONLY) as file:
        assert read_at(file, 0, got) == 5 * BLOCK - 100
    assert got[:-100] == content[:-100] and len(asked) >= 5


def test_errors_are_not_hidden(path, content):
    path.write_bytes(b"")
    with open_direct(path, os.O_RDONLY) as file:
        assert read_at(file, 0, content) == 0
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_at(file, 0, content)


def test_next_multiple():
    assert [next_multiple(n) for n in (0, 1, BLOCK, BLOCK + 1)] == [0, BLOCK, BLOCK, 2 * BLOCK]
    assert next_multiple(7, 3) == 9
