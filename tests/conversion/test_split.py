import pickle

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.sources import Source, Split, image_folder
from conversion.split import with_val
from ffcv_ops.errors import UserError


def source(counts, prefix="train"):
    names = [f"{prefix}/{label}/{number}.jpg" for label, count in enumerate(counts) for number in range(count)]
    labels = np.repeat(np.arange(len(counts)), counts)
    classes = tuple(map(str, range(len(counts))))
    return image_source(names, labels, classes)


def image_source(names, labels, classes):
    folder_of_nothing = {"train": Split([name.encode() for name in names], names, labels)}
    return Source("/here", classes, folder_of_nothing)


def val_names(counts, share):
    return set(with_val(source(counts), share).splits["val"].names)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_every_image_is_in_one_part_and_each_class_in_both(counts, share):
    whole = source(counts)
    if max(counts) == 1:
        with pytest.raises(UserError, match="one image a class"):
            with_val(whole, share)
        return
    made = with_val(whole, share)
    train, val = made.splits["train"], made.splits["val"]
    assert sorted([*train.names, *val.names]) == sorted(whole.splits["train"].names)
    for part in (train, val):
        assert [int(name.split("/")[1]) for name in part.names] == part.labels.tolist()
        assert [item.decode() for item in part.items] == list(part.names)
    for label, count in enumerate(counts):
        taken = int((val.labels == label).sum())
        assert taken == (0 if count == 1 else min(max(round(share * count), 1), count - 1))
        names = [name for name in whole.splits["train"].names if name.startswith(f"train/{label}/")]
        wanted = set(sorted(names, key=lambda name: xxhash.xxh64(name.encode()).intdigest())[:taken])
        assert {name for name in val.names if name in names} == wanted


def test_the_split_does_not_depend_on_the_order_and_moves_little():
    names = list(source([50, 50]).splits["train"].names)
    labels = np.repeat([0, 1], 50)
    shuffle = np.random.default_rng(0).permutation(100)
    turned = image_source([names[row] for row in shuffle], labels[shuffle], ("0", "1"))
    assert set(with_val(turned, 0.2).splits["val"].names) == val_names([50, 50], 0.2)
    assert len(val_names([50, 50], 0.2) ^ val_names([51, 50], 0.2)) <= 2
    assert val_names([50, 50], 0.2) != {name for name in names if int(name.split("/")[2][:-4]) < 10}


def test_parts_are_sequences_for_the_workers():
    part = with_val(source([20, 20]), 0.3).splits["train"]
    assert pickle.loads(pickle.dumps(part.items[3:7])) == [name.encode() for name in part.names[3:7]]
    assert part.items[-1].decode() == part.names[-1]
    assert len(part.items) == len(part.names) == len(part.labels) == 28


def test_a_source_with_val_is_refused(tmp_path):
    for name in ("train/a/1.png", "val/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"val_share is 0.1, but .* has a val of its own"):
        with_val(image_folder(str(tmp_path)), 0.1)
