import pytest

from config.text import format_bytes, format_duration, markdown_table


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (18600, "5 h 10 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_format_duration(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 KB"), (512, "0.512 KB"), (12_345_678, "12.3 MB"), (5e11, "500 GB"), (1.2e12, "1.2 TB")]
)
def test_format_bytes(number, words):
    assert format_bytes(number) == words


def test_markdown_table():
    made = markdown_table([("name", "top-1"), ("a", "5.10"), ("longer", "")], left=1)
    assert made.splitlines() == [
        "| name   |   top-1 |",
        "|:-------|--------:|",
        "| a      |    5.10 |",
        "| longer |         |",
    ]
