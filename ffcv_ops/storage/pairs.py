"""Do a training and a validation file belong together? By what x.json says of both, and by the checksums of images."""

from pathlib import Path

import numpy as np

from ffcv_ops.errors import UserError, one_line
from ffcv_ops.storage.beton_file import read_checksums, read_head
from ffcv_ops.storage.index import column, open_index
from ffcv_ops.storage.shards import files_of
from ffcv_ops.storage.sources import named, source_of


def pair_remark(train: Path, val: Path) -> str:
    """What is odd about them, in a line; "" where nothing is. A `UserError` where images of `val` are in `train` since
    the two were made of one source by different conversions: accuracy would be that of a training set."""
    if train == val:
        return ""
    heads = [read_head(file) for file in files_of(train)]
    ours, theirs = (head.sidecar for head in (read_head(files_of(val)[0]), heads[0]))
    our_source, their_source = (one_line(said.get("source", "unknown")) for said in (ours, theirs))
    foreign = ours.get("pair") != theirs.get("pair")
    count, samples, first = _shared(heads, val)
    if count:
        said = f"{count:,} of the {samples:,} images of {val} are in {train} too, the first is {first}"
        if foreign and our_source == their_source:
            raise UserError(f"{said}; they are of different conversions of {our_source}; write both in one go")
        return said
    if foreign and "pair" in ours and "pair" in theirs:
        return f"{val} and {train} are of different conversions, of {our_source} and {their_source}"
    return ""


def _shared(heads, val) -> tuple[int, int, str]:
    """How many images of `val` have the stored bytes of one in the files of `heads`, of how many, and which is the
    first. Of those files, which may hold millions of images, the checksums alone are read."""
    index, theirs = open_index(val), [read_checksums(head) for head in heads]
    if index.checksums is None or any(one is None for one in theirs):
        return 0, len(index.metadata), ""
    ours = index.checksums[np.searchsorted(index.places, column(index, "image")["data_ptr"])]
    shared = np.flatnonzero(np.isin(ours, np.concatenate(theirs)))
    first = named(int(shared[0]), source_of(index, int(shared[0]))) if len(shared) else ""
    return len(shared), len(ours), first
