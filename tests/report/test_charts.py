"""The pictures of panels: where lines and labels are, and what they are made of."""

import re
import xml.etree.ElementTree as ET

import pytest

from report import charts, curves

STAGES = [curves.Border("first", 0, 5), curves.Border("second $x$ <&>", 5, 10)]


def panel(points, *, key="loss", kind="main", label="", from_zero=True):
    return curves.Panel(key, "A title", "a unit", ".1f", from_zero, [curves.Line(label, kind, [points])])


def drawn(made):
    """(d of the line in the color of `main`, {text: (x, y)}), in the units of the picture."""
    root = ET.fromstring(str(made.svg).replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" '))
    paths = [path.get("d") for path in root.iter("path") if "none; stroke: var(--main)" in path.get("style", "")]
    texts = {text.text: (float(text.get("x", "nan")), float(text.get("y", "nan"))) for text in root.iter("text")}
    return paths[-1], texts


def test_a_line_is_where_the_axes_say():
    """From corner to corner, against the places of the ticks' labels."""
    made = charts.chart(panel([(0.0, 0.0), (10.0, 50.0)]), (0.0, 10.0), [])
    path, texts = drawn(made)
    x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", path))
    for tick in ("0", "2", "4", "6", "8", "10"):
        assert texts[tick][0] == pytest.approx(x0 + (x1 - x0) * int(tick) / 10, abs=0.01) or tick == "0"
    shift = texts["10"][0] - x1
    assert shift == pytest.approx(0, abs=0.01)
    assert texts["40"][1] - texts["20"][1] == pytest.approx((y1 - y0) * 20 / 50, abs=0.01)
    assert {"epoch", "a unit"} <= texts.keys()
    assert [key.last for key in made.keys] == ["50.0"]


def test_a_published_end_is_a_dot_and_a_published_curve_a_line():
    end, curve = (charts.chart(panel(points, kind="published"), (0.0, 10.0), []).svg
                  for points in ([(10.0, 50.0)], [(0.0, 0.0), (10.0, 50.0)]))  # fmt: skip
    dots = [str(picture).count("fill: var(--published)") for picture in (end, curve)]
    assert dots[0] > dots[1] == 0


@pytest.mark.parametrize(
    ("largest", "texts"),
    [(1.0, {"0.00", "0.25", "1.00"}), (3e-5, {"0", "1", "2", "3"}), (2500, {"0", "1000", "2000"}), (60_000, {"20000"})],
)
def test_ticks_have_the_digits_they_need(largest, texts):
    _, found = drawn(charts.chart(panel([(0, 0), (1, largest)]), (0, 1), []))
    assert texts <= found.keys()


def test_names_are_shown_as_they_are():
    """No mathematics between dollars, no markup; letters are text, colors are the page's."""
    made = charts.chart(panel([(0, 1), (10, 2)], key="top1"), (0, 10), STAGES)
    _, texts = drawn(made)
    assert "second $x$ <&>" in texts
    assert "<&>" not in made.svg
    assert not re.search("#[0-9a-f]{6}", made.svg), "a color that does not follow light and dark"
    assert "url(" not in made.svg


def test_a_stage_that_is_alone_needs_no_name():
    _, texts = drawn(charts.chart(panel([(0, 1), (4, 2)], key="top1"), (0, 5), STAGES[:1]))
    assert "first" not in texts


def test_the_same_panel_is_the_same_picture():
    made = [charts.chart(panel([(0, 1), (10, 2)]), (0, 10), STAGES) for _ in range(2)]
    assert made[0] == made[1]
