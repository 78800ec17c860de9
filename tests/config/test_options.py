import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Literal

import fastargs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from config import command_line, options
from config.help import GROUPS
from config.options import build, option, select, to_yaml
from config.schema import SECTIONS, EvalConfig
from config.yaml_file import read_yaml
from ffcv_ops.errors import UserError
from ffcv_ops.options import parse_value

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Cake:
    """cake: what is baked"""

    layers: int = option("how many layers", low=1, high=9)
    sugar: float = option("share of sugar", above=0, below=1)
    icing: bool = option("with icing")
    kind: Literal["sponge", "pound"] = option("kind of dough")
    label: str = option("what is written on it")
    heat: float | None = option("degrees; none: raw", low=50, changes="speed")
    slices: int | Literal["auto"] = option("pieces", low=2)
    range: tuple[float, float] = option("least and most", low=0, high=1)
    fruit: tuple[Literal["fig", "plum"], ...] = option("fruit on top")
    notes: str = option("free text", default="plain", changes="records")
    ribbon: str | None = option("its colour", default=None)


GOOD = {
    "layers": "3",
    "sugar": "3e-3",
    "icing": "true",
    "kind": "pound",
    "label": "hello",
    "heat": "none",
    "slices": "auto",
    "range": ["0.2", "1"],
    "fruit": ["fig"],
}


def parse_options(cls, values, where):
    typed, faults = options.parse_options(cls, values, where)
    options.refuse(faults)
    return typed


def test_build_types_every_kind_of_option():
    cake = build(Cake, GOOD, "x.")
    assert cake == Cake(3, 0.003, True, "pound", "hello", None, "auto", (0.2, 1.0), ("fig",), "plain")
    assert build(Cake, dataclasses.asdict(cake), "x.") == cake, "typed values are taken as they are"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("layers", "+9", 9),
        ("layers", "007", 7),
        ("sugar", ".5", 0.5),
        ("sugar", "4E-3", 0.004),
        ("icing", "False", False),
        ("icing", "TRUE", True),
        ("label", "yes", "yes"),
        ("label", "400", "400"),
        ("heat", "1e3", 1000.0),
        ("heat", 60, 60.0),
        ("slices", "2", 2),
        ("range", "0.08,1", (0.08, 1.0)),
        ("range", " [0.08, 1.0] ", (0.08, 1.0)),
        ("fruit", "fig, plum", ("fig", "plum")),
        ("fruit", ("plum",), ("plum",)),
        ("ribbon", "none", None),
        ("ribbon", "None of these", "None of these"),
    ],
)
def test_accepted(name, value, wanted):
    taken = parse_options(Cake, {name: value}, "x.")[name]
    assert taken == wanted
    assert type(taken) is type(wanted)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("layers", value) for value in ("16.7", "1e3", "3.0", "", "3 4", "1_0", "0x3", "0", "10", "-1", "9" * 5000)],
        *[("layers", value) for value in (True, 3.0, None, [3], "٣", "none")],
        *[("sugar", value) for value in ("abc", "", "0", "1", "0_1", "nan", ".nan", "inf", "none", "1e400")],
        *[("sugar", value) for value in (True, None, math.nan, [0.5], 10**400)],
        *[("icing", value) for value in ("yes", "no", "on", "0", "1", "", "none", 0, 1, None)],
        *[("kind", value) for value in ("Pound", "poun", "", True, None, ["pound"])],
        *[("label", value) for value in ("", "  ", "null", "~", None, 3, ["a"], {"a": "b"})],
        *[("heat", value) for value in ("null", "", "None", "49", "nan", "false", 10**400)],
        *[("slices", value) for value in ("Auto", "1", "2.0", "none", None)],
        *[("range", value) for value in ("0.5", "0.1,0.2,0.3", "a,b", ["0.5"], "-1,1", "0,2", [["0", "1"]], None)],
        *[("fruit", value) for value in ([], "", "pear", ["fig", "pear"], "[fig", {"fig": "1"}, None)],
    ],
)
def test_refused(name, value):
    with pytest.raises(UserError, match=rf"^here\.{name} is .*; it must be ") as refusal:
        parse_options(Cake, {name: value}, "here.")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layers", "a whole number at least 1 and at most 9"),
        ("sugar", "a number above 0 and below 1"),
        ("icing", "true or false"),
        ("kind", "one of sponge, pound"),
        ("heat", "a number at least 50 or none"),
        ("slices", "a whole number at least 2 or auto"),
        ("range", "a list of 2, each a number at least 0 and at most 1"),
        ("fruit", "a list, each one of fig, plum"),
    ],
)
def test_a_refusal_says_what_may_stand_there(name, words):
    with pytest.raises(UserError) as refusal:
        parse_options(Cake, {name: "?"}, "x.")
    assert str(refusal.value) == f"x.{name} is '?'; it must be {words}"


def test_unknown_and_missing_keys():
    with pytest.raises(UserError, match=r"^a\.yaml: cake\.layrs is not a key; the nearest is 'layers'$"):
        build(Cake, GOOD | {"layrs": "3"}, "a.yaml: cake.")
    with pytest.raises(UserError, match=r"^--cake\.kind is missing; it must be one of sponge, pound$"):
        build(Cake, {name: value for name, value in GOOD.items() if name != "kind"}, "--cake.")
    with pytest.raises(UserError) as refusal:
        parse_options(Cake, {"a\nb": "1"}, "x.")
    assert "\n" not in str(refusal.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(UserError) as refusal:
        build(Cake, {**GOOD, "layers": "0", "sugr": "1", "icing": "yes"} | {"kind": "pound"}, "x.")
    assert [line.partition(" ")[0] for line in str(refusal.value).splitlines()] == ["x.layers", "x.icing", "x.sugr"]


TINY = ("stage.min_oversampling", "stage.jitter", "stage.ema", "log.save_every")


@pytest.mark.parametrize("name", options.all_names(SECTIONS | {"eval": EvalConfig}))
def test_every_number_of_a_recipe_has_its_limits(name):
    """Nothing out of all proportion is taken, and what is below 0 nowhere. What is tiny is taken where it means as much
    as 0 does, and of times and shares that only need to be above 0."""
    section, _, row = name.rpartition(".")
    kind, field = options.options_of((SECTIONS | {"eval": EvalConfig})[section])[row]
    limits = field.metadata["limits"]
    if re.search(r"\b(int|float)\b", str(kind)):
        assert limits["at most"] is not None or limits["below"] is not None
        numbers = ["1e300", "1e308", "nan", "inf", "-inf", "-1", "-1e300", "-5e-324"]
        numbers += ["2147483648", "999999999999999999"] if row != "seed" else []
        if limits["at least"] != 0 and name not in TINY:
            numbers += ["1e-300", "5e-324", "1e-50"]
        for number in numbers:
            for text in (number, f"{number}, {number}", f"{number}, {number}, {number}"):
                with pytest.raises((ValueError, OverflowError)):
                    parse_value(kind, text, limits)


def test_select():
    assert select({"stage.lr": "1", "data.lr": "2", "seed": "3"}, "stage") == {"lr": "1"}
    assert select({"stage.lr": "1", "seed": "3"}, "") == {"seed": "3"}


@settings(deadline=None, derandomize=True)
@given(st.floats(min_value=1e-300, max_value=1e300))
def test_spelled_numbers_are_read_back_by_us_and_by_plain_yaml(number):
    assert parse_value(float, to_yaml(number)) == number
    assert yaml.safe_load(to_yaml(number)) == number


@settings(deadline=None, derandomize=True)
@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1))
def test_spelled_text_is_read_back(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("spell") / "x.yaml"
    path.write_bytes(f"a: {to_yaml(text)}\nb: {to_yaml((text, 'plain'))}\n".encode())
    assert read_yaml(path) == {"a": text, "b": [text, "plain"]}


# --- command line --------------------------------------------------------------------------------------------------

ARGUMENTS = [("--cfg", {"required": True, "metavar": "FILE"}), ("--print", {"action": "store_true"})]


@dataclasses.dataclass(frozen=True)
class Top:
    """everything"""

    seed: int = option("the seed")


@dataclasses.dataclass(frozen=True)
class Oven:
    """oven: where"""

    changes: ClassVar[str] = "records"

    shelf: int = option("from below")


def parse(*argv):
    return command_line.parse(
        "Bakes.", {"": Top, "cake": Cake, "oven": Oven}, {"": {"seed": 7}, "cake": GOOD}, ARGUMENTS, argv
    )


def test_parse_returns_options_and_given_keys_only():
    options, overrides = parse("--cfg=x.yaml", "--cake.layers=4", "--seed", "5", "--cake.label=a=b")
    assert vars(options) == {"cfg": "x.yaml", "print": False}
    assert overrides == {"cake.layers": "4", "seed": "5", "cake.label": "a=b"}
    assert parse("--cfg", "x.yaml", "--print")[1] == {}


def test_the_last_of_a_repeated_key_wins():
    assert parse("--cfg=x", "--seed=1", "--seed=2")[1] == {"seed": "2"}


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--cake.layer=3"], r"--cake\.layer is not an option; the nearest is --cake\.layers"),
        (["--layers=3"], r"--layers is not an option; the nearest is --cake\.layers"),
        (["--cgf", "x"], r"--cgf is not an option; the nearest is --cfg"),
        (["--cf", "x"], r"--cf is not an option; the nearest is --cfg"),
        (["--config-file", "x"], "--config-file is not an option"),
        (["-C", "x"], "unrecognized arguments: -C"),
        (["x.yaml"], "unrecognized arguments: x.yaml"),
        (["--seed"], "--seed: expected one argument"),
        (["--seed="], "--seed is empty; give it a value or leave it out"),
        (["--seed", ""], "--seed is empty; give it a value or leave it out"),
        (["--cfg= "], "--cfg is empty; give it a value or leave it out"),
        (["--cake.label="], r"--cake\.label is empty; give it a value or leave it out"),
        ([""], "an argument is empty; give it a value or leave it out"),
        ([], None),
    ],
)
def test_parse_refuses(argv, complaint):
    if complaint is None:
        with pytest.raises(UserError, match="required: --cfg"):
            parse()
    else:
        with pytest.raises(UserError, match=complaint):
            parse("--cfg=x.yaml", *argv)


def test_neither_environment_nor_sys_argv_matter(monkeypatch):
    for name, value in {"seed": "1", "cake": "2", "cake.layers": "77", "cake.layers.x": "3", "cfg": "y"}.items():
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.setattr(sys, "argv", ["prog", "--nonsense", "--seed=9"])
    options, overrides = parse("--cfg=x.yaml", "--cake.layers=2")
    assert (options.cfg, overrides) == ("x.yaml", {"cake.layers": "2"})


def test_fastargs_global_configuration_is_untouched():
    before = dict(fastargs.get_current_config().entries)
    parse("--cfg=x.yaml")
    assert dict(fastargs.get_current_config().entries) == before == {}


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
def test_help_shows_every_key_with_its_default(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(capsys, "--help")
    assert max(map(len, text.splitlines())) <= min(columns, 120)
    assert text.isascii()
    assert "\033" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())
    shown = dict(re.findall(r"^  (cake\.\w+|seed) +(.*?)(?:  .*)?$", text, re.MULTILINE))
    assert shown.pop("seed") == "7"
    assert shown == {f"cake.{name}": to_yaml(value) for name, value in dataclasses.asdict(
        build(Cake, GOOD, "")).items()}  # fmt: skip
    for said in ("Bakes.", "usage: ", "--cfg FILE", "cake: what is baked", "layers (a whole number at least 1 "):
        assert said in " ".join(text.split())
    assert "config-file" not in text


def test_help_lists_keys_under_what_they_change(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # so that no lead is wrapped
    text = help_of(capsys, "--help")
    result, speed, records = (text.index(lead) for lead in GROUPS.values())
    order = [text.index(f"  cake.{name}") for name in ("layers", "heat", "notes")]
    assert result < order[0] < speed < order[1] < records < order[2]
    assert speed < text.rindex("cake: what is baked") and "  oven.shelf" in text[records:]


def test_help_of_a_word(capsys):
    text = help_of(capsys, "--help", "cake.l")
    assert re.findall(r"^  (\S+)", text, re.MULTILINE) == ["cake.layers", "cake.label"]
    assert "  seed" not in text and "usage" not in text
    assert help_of(capsys, "--help=sugr") == "no key has 'sugr' in its name; the nearest is cake.sugar\n"


def test_imports_nothing_heavy():
    heavy = "{'torch', 'ffcv', 'numba', 'timm', 'torchvision', 'PIL', 'cv2'}"
    code = f"import sys, config.options, config.train_command; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
