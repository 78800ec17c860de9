import pytest

from config.yaml_file import read_yaml
from ffcv_ops.errors import UserError


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"abc", "holds a single value"),
        (b"a: 1\nb: 2\na: 3\n", r", line 3: the key 'a' appears twice"),
        (b"a:\n  b: 1\n  b: 1\n", r", line 3: the key 'b' appears twice"),
        (b"a: 1\n? [x, y]\n: 2\n", r", line 2: a key must be a word"),
        (b"a: &x 1\nb: *x\n", r", line 2: aliases and tags are not allowed"),
        (b"a: !!python/object/apply:os.system ['true']\n", r", line 1: aliases and tags are not allowed"),
        (b"a: !!null x\n", r", line 1: aliases and tags"),
        (b"a: [1, 2\nb: 3\n", r", line 2: "),
        (b"a: 1\n\tb: 2\n", r", line 2: "),
        (b"a: 1\n---\nb: 2\n", r", line 2: "),
        (b"a: \xff\xfe\n", "is not YAML"),
        (b"a: \x00\n", "is not YAML"),
        (b"a: " + b"[" * 20_000, "nested too deeply"),
    ],
)
def test_yaml_that_is_refused(tmp_path, content, complaint):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as refusal:
        read_yaml(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_yaml_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_yaml(tmp_path)


def test_yaml_scalars_stay_text(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 3e-3\nb: yes\nc: 010\nd: null\ne:\n3: [1, 1:30]\nf: {g: 2026-01-01}\n")
    assert read_yaml(path) == {
        "a": "3e-3",
        "b": "yes",
        "c": "010",
        "d": "null",
        "e": "",
        "3": ["1", "1:30"],
        "f": {"g": "2026-01-01"},
    }
