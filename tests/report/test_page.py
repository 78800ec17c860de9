"""The page, in a real browser: what is on it, how it looks, and that it needs nothing else."""

import base64
import html
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import report
from report.collect import collect
from report.page import confusion, render
from training.evaluation import predictions

HOSTILE = "<script>alert('x')</script>&\"<b>"


@pytest.fixture(scope="module")
def page(make_run, guesses, tmp_path_factory):
    """The report of a finished run with mistakes."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "made")
    predictions.save(folder / predictions.FILE, guesses)
    report.write(folder)
    return folder / "report.html"


class Words(html.parser.HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(text)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_a_browser_shows_the_numbers_and_asks_for_nothing(page, browser, guesses):
    dom, console, hosts = browser.load(page)
    words = Words(dom).text
    for number in [
        "61.79",
        "65.43",
        "0.7531",
        "1.234",
        "0.00123",
        "1.2%",
        "30 s",
        "val/owl/3.jpg",
        "abc1234",
        "2 x one GPU",
        "lr: ",
    ]:
        assert number in words, number
    right = int((guesses.labels == guesses.predicted).sum())
    assert f"{right} of 60 images right" in words
    assert words.count(HOSTILE) >= 2, "the class with the hostile name is in the tables"
    assert console == []
    assert hosts == set()


def test_the_browser_would_tell(browser, tmp_path):
    """The two checks above see what they look for."""
    (tmp_path / "bad.html").write_text("<script>console.error('oh')</script><img src='http://pictures.invalid/x.png'>")
    _, console, hosts = browser.load(tmp_path / "bad.html")
    assert any("oh" in line for line in console)
    assert hosts == {"pictures.invalid"}


def test_nothing_is_named_that_would_have_to_be_loaded(page):
    text = page.read_text()
    tags = Words(text).tags
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "href"))
        assert attributes.get("xlink:href", "#").startswith("#"), "a part of the page itself"
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import", text)
    assert HOSTILE not in text
    assert html.escape(HOSTILE, quote=False).replace("'", "&#39;").replace('"', "&#34;") in text


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_drawn(page, browser, tmp_path, width, dark):
    """Not blank, light on dark where that is asked for, and lines of the curves' colour."""
    taken = browser.screenshot(page, tmp_path / "x.png", width=width, dark=dark)
    picture = np.asarray(Image.open(taken).convert("RGB"))
    assert picture.shape[1] == width
    background = picture[2, 2].astype(int)
    assert (background.max() < 60) if dark else (background.min() > 240)
    different = (np.abs(picture.astype(int) - background).max(2) > 40).mean()
    assert 0.02 < different < 0.5
    line = np.array([0x6F, 0xAB, 0xF0] if dark else [0x1F, 0x5F, 0xA8])
    assert (np.abs(picture.astype(int) - line).max(2) < 8).sum() > 50


@pytest.mark.parametrize("width", [360, 500, 1200])
def test_nothing_is_cut_or_has_to_be_scrolled_sideways(page, browser, tmp_path, width):
    """Asked of the browser itself, in a frame as wide as a small telephone, half a screen and a screen."""
    (tmp_path / "report.html").write_text(page.read_text())
    (tmp_path / "frame.html").write_text(
        f"<body><iframe src='report.html' width='{width}' height='800'></iframe><p id=x>?</p>"
        """<script>onload = () => {
        const d = document.querySelector('iframe').contentDocument, e = d.documentElement, cut = [];
        for (const svg of d.querySelectorAll('.charts svg')) {
            const box = svg.getBoundingClientRect();
            for (const text of svg.querySelectorAll('text')) {
                const b = text.getBoundingClientRect();
                if (b.left < box.left - 1 || b.right > box.right + 1) cut.push(text.textContent);
                if (b.top < box.top - 1 || b.bottom > box.bottom + 1) cut.push(text.textContent);
            }
        }
        const scrolls = [...d.querySelectorAll('.wide')].filter(w => w.scrollWidth > w.clientWidth).length;
        const texts = d.querySelectorAll('.charts text').length;
        document.getElementById('x').textContent = JSON.stringify([e.scrollWidth, e.clientWidth, cut, texts, scrolls]);
        }</script>"""
    )
    done = browser._run(tmp_path / "frame.html", "--allow-file-access-from-files", "--dump-dom")
    wide, shown, cut, texts, scrolls = json.loads(re.search(r"<p id=.x.>(.*?)</p>", done.stdout).group(1))
    assert wide <= shown <= width
    assert cut == []
    assert texts > 60
    assert scrolls == 0 or width < 500, "tables of nine columns scroll on a telephone"


def test_a_run_that_goes_on_says_what_is_left(make_run, tmp_path):
    """Six of 61 epochs of the demo, 15 s each: the projection against a sum by hand."""
    folder = make_run(tmp_path / "demo", cfg="recipes/demo.yaml", epochs=6)
    facts = collect(folder)
    works = [sum(plan.work) for plan in facts.plans]
    seconds = 15 * (34 + 40 * (works[1] + works[2]) / works[0])
    words = Words(render(facts)).text
    assert "Epoch 6 of 40, stage 1 of 3 (pretrain_48)" in words
    assert "8 min 30 s" in words
    minutes = int(seconds) // 60
    assert f"{minutes} min" in words
    assert not facts.finished


def test_all_confusions_are_a_picture_unless_there_are_too_many_classes(guesses):
    picture = confusion(guesses)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("RGB"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50
    assert confusion(guesses._replace(classes=np.arange(101).astype(str))) == ""


def test_classes_that_are_never_right_are_a_warning(make_run, tmp_path, guesses):
    folder = make_run(tmp_path / "run")
    predictions.save(folder / predictions.FILE, guesses._replace(predicted=np.zeros(60, int)))
    assert "3 classes have a top-1 of 0 %" in render(collect(folder))


def test_a_run_that_has_just_begun_has_a_page(make_run, tmp_path):
    folder = make_run(tmp_path / "new", epochs=0)
    assert "nothing logged yet" in render(collect(folder))
    (folder / "plan.json").unlink()
    (folder / "environment.json").unlink()
    (folder / "log.jsonl").unlink()
    assert "nothing logged yet" in render(collect(folder))


def test_warnings_are_shown(make_run, tmp_path):
    folder = make_run(tmp_path / "warned")
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"kind": "warning", "stage": "second_48", "epoch": 1, "step": 9, "message": "loss spike"}\n')
    assert "second_48, step 9: loss spike" in render(collect(folder))


@pytest.mark.parametrize(("epoch", "warned"), [(1, False), (2, True)])
def test_a_healthy_run_has_no_warnings(make_run, tmp_path, epoch, warned):
    """In a stage's first epoch the loop may wait for the data; later that is worth a warning."""
    folder = make_run(tmp_path / "run", epochs=8, overrides={"stage.epochs": "4"})
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for row in rows:
        if (row["kind"], row["epoch"]) == ("epoch", epoch):
            row["wait"] = 0.95
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ("Warnings" in render(collect(folder))) == warned


def test_on_track_or_not(make_run, tmp_path):
    for name, top1, said in (("good", 53.1, "On track"), ("bad", 41.0, "Off track")):
        folder = make_run(
            tmp_path / name, cfg="recipes/vit_s_800ep.yaml", epochs=50, top1=lambda epoch, top1=top1: top1,
            val_images=50_000, overrides={"stage.clip_norm": "2.0"}.items(),
        )  # fmt: skip
        words = " ".join(Words(render(collect(folder))).text.split())
        assert said in words
        assert f"{top1:.2f} % after epoch 50, {53.628 - top1:.2f} points below the published 53.63 %" in words
        assert "differs from that recipe in clip_norm" in words
