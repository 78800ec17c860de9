"""The compact sequences, against lists."""

import pickle

import numpy as np
import pytest

from conversion.sources.source import Spans, Strings, first_few, in_one_line, joined, prefixed

TEXTS = ["a.jpg", "", "über uns/1.png", "b" * 300, "\udcff no UTF-8", "猫.jpg"]


@pytest.mark.parametrize("strings", [Strings.of(TEXTS), Strings.joined([Strings.of(TEXTS[:2]), Strings.of(TEXTS[2:])])])
def test_strings_are_a_list_of_text(strings):
    assert len(strings) == len(TEXTS) and list(strings) == TEXTS
    assert strings[1:4] == TEXTS[1:4] and strings[-1] == TEXTS[-1] and strings[::-2] == TEXTS[::-2]
    with pytest.raises(IndexError):
        strings[len(TEXTS)]
    assert list(pickle.loads(pickle.dumps(strings))) == TEXTS


def test_no_strings():
    assert list(Strings.of([])) == list(Strings.joined([])) == []


def test_columns_are_joined_and_parts_given_up():
    parts = [(Strings.of(texts), np.arange(len(texts))) for texts in (["a", "b"], [], ["c"])]
    names, numbers = joined(parts)
    assert list(names) == ["a", "b", "c"] and numbers.tolist() == [0, 1, 0] and parts == []


def test_spans_know_their_file():
    spans = Spans(["a.tar", "empty.tar", "b.tar"], [2, 0, 1], np.array([512, 2048, 512]), np.array([10, 20, 30]))
    assert list(spans) == [("a.tar", 512, 10), ("a.tar", 2048, 20), ("b.tar", 512, 30)]
    assert spans[1:] == [("a.tar", 2048, 20), ("b.tar", 512, 30)]


def test_prefixed():
    names = prefixed(["a/", "none/", "b/"], [2, 0, 1], Strings.of(["1", "2", "3"]))
    assert list(names) == ["a/1", "a/2", "b/3"] and names[1:] == ["a/2", "b/3"]


def test_a_million_samples_take_megabytes():
    """8 + 8 bytes of place and size, 8 and the text of the name: nothing that a Python object would cost."""
    count = 1_000_000
    names = Strings(np.zeros(count * 20, np.uint8), np.arange(1, count + 1) * 20)
    spans = Spans(["x"], [count], np.arange(count), np.arange(count))
    assert len(pickle.dumps((names, spans))) < 50 * count
    assert spans[777_777] == ("x", 777_777, 777_777) and names[777_777] == "\0" * 20


def test_names_stay_on_one_line():
    assert in_one_line("two\nlines\r\x1b[2J\x85\u2028é") == "two\\x0alines\\x0d\\x1b[2J\\x85\\x2028é"


def test_first_few():
    assert first_few(["a"]) == "a" and first_few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
