"""What a run is written down as: JSON, Markdown and HTML; and the comparison of two runs."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alpha_clip.evaluation import (
    Column,
    Naming,
    Referring,
    Run,
    Sample,
    Task,
    UnusableSample,
    builtin,
    compare,
    find,
    metrics,
    parse,
    results,
)
from alpha_clip.evaluation import run as ask
from alpha_clip.evaluation.__main__ import main
from alpha_clip.evaluation.metrics import Estimate
from alpha_clip.evaluation.records import Answer, Record
from alpha_clip.evaluation.tables import Curves, Finding, Table

EXTRA = 'pip install "alpha-clip[eval]"'
COMMAND = ["python", "-m", "alpha_clip.evaluation", "few", "--methods", "alpha + crop"]
EVIL = '<script>alert("a")</script>'
NAMES = ("a cat", "a dog", EVIL, "a $x^{$")


@pytest.fixture(scope="module")
def report():
    return pytest.importorskip("alpha_clip.evaluation.report", reason=f"install the extra: {EXTRA}")


@pytest.fixture(scope="module")
def figures():
    return pytest.importorskip("alpha_clip.evaluation.figures", reason=f"install the extra: {EXTRA}")


# --- a run by hand: 12 pictures of two groups, and two questions about each ---


def sample(number: int, size: tuple[int, int] = (60, 40)) -> Sample:
    rng = np.random.default_rng(number)
    picture = Image.fromarray(rng.integers(60, 256, (*size[::-1], 3), np.uint8))
    masks = np.zeros((2, *size[::-1]), np.float32)
    masks[0, : size[1] // 2, : size[0] // 2] = 1
    masks[1, size[1] // 2 :, size[0] // 2 :] = 1
    questions = (Naming(0, NAMES, 2), Referring("the dog <b>there</b>", frozenset({1}), "by phrase"))
    return Sample(f"picture {number}", picture, masks, questions, "odd" if number % 2 else "even")


def task(read=sample, count: int = 12) -> Task:
    columns = [Column("all"), Column("even", ("even",)), Column("by phrase", ("by phrase",), per_class=True)]
    keys = [f"picture {i}" for i in range(count)]
    return Task("few", keys, read, columns, identity={"seed": 1}, notes=["Two were <left> out."])


def record(number: int, way: str, first: int, second: int, model: str = "tiny") -> Record:
    top = (NAMES[2], *NAMES[:2], NAMES[3]) if first == 0 else (*NAMES[:2], NAMES[3], EVIL)
    answers = (
        Answer(EVIL, first, 0, "odd" if number % 2 else "even", top),
        Answer("the dog <b>there</b>", second, 1 if second == 0 else 0, "by phrase"),
    )
    return Record(f"picture {number}", model, way, answers, 2, 2, 0.01 if way == "crop" else 0.02)


RANKS = {  # of the two questions, by picture
    "alpha": lambda i: (0 if i < 10 else 3, 0 if i < 6 else 1),
    "crop": lambda i: (3 if i < 9 else 0, 0 if i % 2 else 1),
    "whole": lambda i: (3, 1),
}


def run(count: int = 12, model: str = "tiny", read=sample, ways=tuple(RANKS), findings=()) -> Run:
    records = [record(i, way, *RANKS[way](i), model=model) for i in range(count) for way in ways]
    of_models = {f"model {model}": {"name": model, "weights": "82c36e47adff4c51"}}
    return Run(task(read, count), {"task": {"name": "few", "seed": 1}} | of_models, records, {}, findings)


def finding() -> Finding:
    table = Table(
        "By <i>size</i>", ["way", "share", "n"], [["alpha", Estimate(0.5, 0.4, 0.6), "3"], ["crop", None, "4"]]
    )
    lines = {"alpha": [(1.0, Estimate(0.5, 0.4, 0.6)), (2.0, Estimate(0.6, 0.5, 0.7))], "$crop_{": [(1, 0.3), (2, 0.2)]}
    return Finding(
        "noise", "What noise does", "Not <much>.", [table], [Curves("Noise", "IoU", "accuracy", lines, "Few.")]
    )


class Links(HTMLParser):
    """What a page refers to, its elements, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]

    def handle_data(self, data):
        self.text += data


# --- JSON and Markdown ---


def test_what_is_read_is_what_was_written(tmp_path):
    found = run()
    results.write(found, tmp_path, COMMAND)
    read = results.read(tmp_path / "results.json")
    assert (read.task, list(read.columns)) == ("few", found.task.columns)
    assert read.keys == list(found.task.keys)
    assert list(read.ways) == [("tiny", "alpha"), ("tiny", "crop"), ("tiny", "whole")]
    numbers = {key: i for i, key in enumerate(read.keys)}
    for pair, records in read.ways.items():
        for column in found.task.columns:
            hits = metrics.hits(list(records.values()), column, numbers)
            assert metrics.estimate(hits) == metrics.estimate(found.hits(column, *pair))


def test_the_json_holds_costs_tables_findings_and_the_command(tmp_path):
    results.write(run(findings=[finding()]), tmp_path, COMMAND)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["version"] == results.VERSION
    assert found["made"]["command"] == "python -m alpha_clip.evaluation few --methods 'alpha + crop'"
    assert {way["way"]: (way["forwards"], way["seconds"]) for way in found["ways"]} == {
        "alpha": (1, pytest.approx(0.01)),
        "crop": (1, pytest.approx(0.005)),
        "whole": (1, pytest.approx(0.01)),
    }
    assert found["findings"][0]["curves"][0]["lines"]["alpha"][1] == [
        2.0,
        {"value": 0.6, "low": 0.5, "high": 0.7, "count": 0},
    ]
    assert found["tables"][1]["title"] == "Difference to alpha"


def test_the_json_of_many_samples_is_small(tmp_path):
    records = [record(i, f"way {j}", i % 5, 1) for i in range(1000) for j in range(20)]
    few = Run(Task("many", [f"picture {i}" for i in range(1000)], sample, []), {}, records, {})
    results.write(few, tmp_path, COMMAND)
    assert (tmp_path / "results.json").stat().st_size < 0.3e6


def test_numpy_numbers_in_findings_are_written_and_what_is_no_number_is_refused(tmp_path):
    curves = Curves("c", "x", "y", {"a": [(np.float32(1), np.float64(0.5))], "b": [(np.int64(2), 1.0)]})
    results.write(run(2, findings=[Finding("f", "F", "v", curves=[curves])]), tmp_path, COMMAND)
    lines = json.loads((tmp_path / "results.json").read_text())["findings"][0]["curves"][0]["lines"]
    assert lines == {"a": [[1.0, 0.5]], "b": [[2, 1.0]]}
    wrong = dataclasses.replace(run(2), identity={"a": object()})
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        results.write(wrong, tmp_path, COMMAND)


def test_the_markdown_says_what_was_asked_and_what_could_not_be_used(tmp_path):
    found = dataclasses.replace(run(findings=[finding()]), unusable={"picture 99": "no mask"})
    results.write(found, tmp_path, COMMAND)
    text = (tmp_path / "results.md").read_text()
    assert "24 questions about 12 samples." in text and "## What noise does" in text
    assert "1 samples could not be used; the first: no mask" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON .*, expected a results.json of an evaluation"),
        ("[1]", "is JSON, but not the results.json of an evaluation"),
        ('{"version": 1}', "is JSON, but not the results.json of an evaluation"),
        ('{"version": 0, "ways": []}', "has version 0 of the layout, expected 1: run its command again"),
        ('{"version": 1, "ways": []}', r"is damaged \(KeyError: 'columns'\): run its command again"),
    ],
)
def test_what_is_no_results_json_is_refused(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        results.read(path)


def test_ranks_that_do_not_fit_the_samples_are_refused(tmp_path):
    results.write(run(3), tmp_path, COMMAND)
    found = json.loads((tmp_path / "results.json").read_text())
    found["ways"][0]["ranks"].pop()
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"is damaged \(ValueError: zip"):
        results.read(tmp_path / "results.json")


def test_results_that_are_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"results\.json is not there, expected the results\.json of an evaluation"
    ):
        results.read(tmp_path / "results.json")


def test_a_run_that_only_looked_into_a_model_is_written_but_cannot_be_compared(tmp_path):
    found = Run(task(), {}, [], {}, [finding()])
    results.write(found, tmp_path, COMMAND)
    assert "What noise does" in (tmp_path / "results.md").read_text()
    with pytest.raises(ValueError, match="holds findings about models, but no answers"):
        results.read(tmp_path / "results.json")


def test_a_picture_that_cannot_be_read_any_more_and_those_of_a_larger_run_are_left_out(tmp_path):
    """All ways stand on the same samples, whatever the folder holds already."""

    def read(number: int) -> Sample:
        if number == 0:
            raise UnusableSample("gone")
        return drawn(number)

    def drawn(number: int) -> Sample:
        return dataclasses.replace(builtin.sample("plain", number), key=f"picture {number}")

    tiny = find("tiny", "cpu")
    ask(task(drawn, count=3), [tiny], [parse("whole")], tmp_path)
    found = ask(task(read, count=2), [tiny], [parse("whole"), parse("crop")], tmp_path)
    assert [(r.key, r.way) for r in found.records] == [("picture 1", "whole"), ("picture 1", "crop")]
    assert found.unusable == {"picture 0": "gone"} and len(found.differences().rows) == 1


# --- the page ---


@pytest.fixture(scope="module")
def page(report, tmp_path_factory) -> Path:
    both = run().records + run(model="plain tiny", ways=("crop", "whole")).records
    found = dataclasses.replace(run(findings=[finding()]), records=both, unusable={"picture 99": "no <mask>"})
    return report.write(found, tmp_path_factory.mktemp("report"), COMMAND)


def test_the_page_refers_to_nothing_but_itself(page):
    links = Links(page.read_text()).links
    assert len(links) > 20 and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\(", page.read_text())


def test_names_from_the_data_are_escaped(page):
    text = page.read_text()
    found = Links(text)
    assert "script" not in {tag for tag, _ in found.elements} and "<script" not in text
    assert EVIL in found.text and "the dog <b>there</b>" in found.text and "no <mask>" in found.text
    assert any(f"{EVIL} outlined, the surroundings dimmed" in attrs.get("alt", "") for _, attrs in found.elements)


def test_every_picture_has_an_alternative_text_and_a_size(page):
    pictures = [attrs for tag, attrs in Links(page.read_text()).elements if tag == "img"]
    assert len(pictures) > 10
    assert all(attrs["alt"] and int(attrs["width"]) > 0 and int(attrs["height"]) > 0 for attrs in pictures)


def test_the_page_says_what_was_asked_of_what_and_how(page):
    text = Links(page.read_text()).text
    for words in (
        "24 questions about 12 samples.",
        "python -m alpha_clip.evaluation few --methods 'alpha + crop'",
        "82c36e47adff4c51",
        "torch",
        "a photo of a {}.",
        "mean over what is right of its share of questions of by phrase with the right answer first",
        "Not <much>.",
        "Two were <left> out.",
        "1. The most frequent reasons:",
    ):
        assert words in text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_opens_in_a_browser(page, browser, tmp_path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    requests, problems = [], []
    context.on("request", lambda request: requests.append(request.url))
    context.route(re.compile("^(http|ws)"), lambda route: route.abort())
    tab = context.new_page()
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(page.as_uri())
    tab.screenshot(path=tmp_path / "report.png", full_page=True)
    widths = tab.eval_on_selector_all("img", "images => images.map(i => i.complete ? i.naturalWidth : 0)")
    dark = tab.eval_on_selector_all("picture img", "images => images.map(i => i.currentSrc != i.src)")
    overflow = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    in_box = tab.eval_on_selector_all(".wide", "boxes => boxes.map(b => b.scrollWidth > b.clientWidth)")
    context.close()
    assert len(widths) > 10 and all(widths)
    assert dark == [scheme == "dark"] * len(dark)
    assert problems == []
    assert [url for url in requests if not url.startswith(("data:", page.as_uri()))] == []
    assert overflow <= 0
    assert any(in_box) == (width == 390)
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_the_best_is_marked_and_what_is_not_significantly_below_it(report):
    """Of 40 pictures, `best` has 30 right, `near` 29, two of them others, and `far` 5."""
    right = {"best": set(range(30)), "near": {*range(28), 38}, "far": set(range(5)), "same": set(range(10, 40))}
    records = [record(i, way, 0 if i in which else 1, 0) for i in range(40) for way, which in right.items()]
    columns = [Column("named", ("odd", "even"))]
    found = Run(Task("few", [f"picture {i}" for i in range(40)], sample, columns), {}, records, {})
    marks = {way: mark for (_, (_, way)), mark in report._not_worse(found).items()}
    assert marks == {"best": "best", "same": "best", "near": "tied"}


def test_differences_are_signed_and_the_significant_marked(report):
    rows = [["a", Estimate(0.1, 0.05, 0.2), Estimate(-0.1, -0.2, -0.05)], ["b", Estimate(-0.0001, -0.1, 0.1), None]]
    ((_, shown),) = report.grid(Table("d", ["way", "x", "y"], rows, signed=True)).groups
    cells = [cell for _, row in shown for cell in row]
    assert [(c.text.replace(report.MINUS, "~"), c.interval.replace(report.MINUS, "~"), c.mark) for c in cells] == [
        ("+10.0", "+5.0 to +20.0", "more"),
        ("~10.0", "~20.0 to ~5.0", "less"),
        ("0.0", "~10.0 to +10.0", ""),
        ("", "", ""),
    ]


def test_a_page_of_findings_alone_and_one_of_a_single_way(report):
    text = Links(report.html(Run(task(), {}, [], {}, [finding()]), COMMAND)).text
    assert "What noise does" in text and "Summary" not in text
    text = Links(report.html(run(ways=("alpha",)), COMMAND)).text
    assert "alpha wrong (8)" in text and "alpha right (16)" in text and "Differences" not in text


# --- figures ---


def test_figures_come_in_light_and_dark_and_the_same_each_time_without_pyplot(figures, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its state is everybody's
    dots = [figures.Dot("tiny", "alpha", Estimate(0.5, 0.4, 0.6)), figures.Dot("tiny", "$a_{" * 20, None, filled=False)]
    one, other = (figures.forest("all", dots, "a dot") for _ in range(2))
    assert one == other and one.light != one.dark and (one.width, one.alt) == (374, "a dot")
    svg = base64.b64decode(one.light.removeprefix("data:image/svg+xml;base64,")).decode()
    assert svg.startswith("<?xml") and figures.SERIES[0] in svg


def test_curves_have_a_band_where_there_are_estimates(figures):
    points = [(1.0, Estimate(0.5, 0.4, 0.6)), (2.0, Estimate(0.6, 0.5, 0.7))]
    with_band, without = (
        base64.b64decode(figures.curves(Curves("c", "x", "y", {"a": line})).light.partition(",")[2]).decode()
        for line in (points, [(x, e.value) for x, e in points])
    )
    assert "FillBetween" in with_band and "FillBetween" not in without
    assert figures.curves(Curves("none", "x", "y", {})).alt == "y against x, lines: ."


# --- pictures ---


@pytest.fixture(scope="module")
def gallery():
    from alpha_clip.evaluation import gallery

    return gallery


def test_cases_are_counted_by_who_is_right(gallery):
    kinds = gallery.kinds(run())
    assert {kind.title: kind.count for kind in kinds} == {
        "alpha right; crop wrong": 9 + 3,
        "crop right; alpha wrong": 2 + 3,
        "Both wrong: alpha and crop": 0 + 3,
        "Both right: alpha and crop": 1 + 3,
    }


def test_what_is_shown_does_not_hang_on_the_order_and_comes_from_all_groups(gallery):
    found = run()
    backwards = dataclasses.replace(found, records=sorted(found.records, key=lambda r: (r.way, r.key), reverse=True))
    backwards = dataclasses.replace(backwards, records=[r for w in RANKS for r in backwards.of("tiny", w)])
    one, other = gallery.kinds(found), gallery.kinds(backwards)
    assert [[(c.key, c.title) for c in k.cards] for k in one] == [[(c.key, c.title) for c in k.cards] for k in other]
    shown = [card.group for card in one[0].cards]
    assert len(shown) == gallery.EACH and all(set(shown[i : i + 3]) == {"odd", "even", "by phrase"} for i in (0, 3))


def test_groups_take_turns_and_no_picture_comes_twice_before_all_came_once(gallery):
    cases = [gallery.Case(f"p{i}", n) for i in range(9) for n in range(2)]
    groups = {case: "rare" if case.key == "p0" else "often" for case in cases}
    order = gallery.by_lot(cases, groups)
    assert sorted(order, key=cases.index) == cases
    assert {case.key for case in order[:9]} == {f"p{i}" for i in range(9)}
    assert "p0" in [case.key for case in order[:2]]
    assert order == gallery.by_lot(cases[::-1], groups)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("m", "alpha"), ("m", "whole"), ("n", "crop"), ("m", "crop")], (("m", "alpha"), ("m", "crop"))),
        ([("m", "crop"), ("m", "whole")], (("m", "crop"), ("m", "whole"))),
        ([("m", "alpha"), ("n", "crop")], (("m", "alpha"), ("n", "crop"))),
        ([("m", "alpha")], (("m", "alpha"),)),
    ],
)
def test_the_first_way_is_held_against_crop_or_else_the_second(gallery, pairs, expected):
    assert gallery.contrast(pairs) == expected


def test_a_card_has_each_ways_best_with_the_right_one_marked(gallery):
    right, *_ = gallery.kinds(run())
    naming = next(card for card in right.cards if card.title == EVIL)
    assert naming.question == "Which of 4 names is the region's?"
    assert [(r.way, r.right, r.main) for r in naming.replies] == [
        ("alpha", True, True),
        ("crop", False, True),
        ("whole", False, False),
    ]
    assert naming.replies[0].top == [(EVIL, True), ("a cat", False), ("a dog", False)]
    assert naming.replies[1].top == [("a cat", False), ("a dog", False), ("a $x^{$", False)]
    referring = next(card for card in right.cards if card.group == "by phrase")
    assert referring.question == "Which of 2 regions is meant? 1"
    assert [r.top for r in referring.replies] == [[("region 1", True)], [("region 0", False)], [("region 0", False)]]


def test_answers_that_no_question_of_the_sample_stands_for_are_shown_too(gallery):
    """As those of retrieval are, which wait for all samples."""
    bare = lambda i: dataclasses.replace(sample(i), questions=())  # noqa: E731
    cards = [card for kind in gallery.kinds(run(read=bare)) for card in kind.cards]
    assert {card.question for card in cards} == {
        "Which of all phrases is the region's?",
        "Which of all regions is the phrase's?",
    }


@pytest.mark.parametrize("error", [OSError("gone"), UnusableSample("no mask")])
def test_pictures_that_are_gone_are_counted(gallery, report, error):
    def read(number: int) -> Sample:
        if number != 3:
            raise error
        return sample(number)

    kind = gallery.kinds(run(read=read))[0]
    assert len(kind.cards) + kind.unread == gallery.EACH and kind.unread >= gallery.EACH - 2
    assert f"{kind.unread} of the chosen pictures could not be read again." in report.html(run(read=read), COMMAND)


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,")))).convert("RGB")


def test_surroundings_are_dimmed_and_regions_outlined(gallery):
    picture = Image.new("RGB", (160, 80), (200, 100, 50))
    masks = np.zeros((2, 80, 160), np.float32)
    masks[0, 20:60, 20:60] = 1
    masks[1, 20:60, 100:140] = 1
    uri, size = gallery.drawn(picture, masks, [0], [1], numbered=True)
    pixels = np.asarray(opened(uri)).astype(int)  # twice as large
    assert size == (320, 160) == opened(uri).size
    near = lambda at, color: np.abs(pixels[at] - color).max() < 30  # noqa: E731
    assert near((80, 80), (200, 100, 50))
    assert near((10, 160), (80, 40, 20)) and near((80, 240), (80, 40, 20))
    assert pixels[80, 38].tolist() == pytest.approx(gallery._RIGHT, abs=60)
    assert pixels[80, 198].tolist() == pytest.approx(gallery._CHOSEN, abs=60)


def test_nothing_is_dimmed_where_no_region_is_right(gallery):
    picture = Image.new("RGB", (32, 32), (200, 100, 50))
    uri, _ = gallery.drawn(picture, np.zeros((1, 32, 32), np.float32), [])
    assert np.abs(np.asarray(opened(uri)).astype(int) - (200, 100, 50)).max() < 8


def test_large_photos_are_scaled_down(gallery, report):
    wide = run(4, read=lambda number: sample(number, (1500, 900)))
    shown = [card for kind in gallery.kinds(wide) for card in kind.cards]
    assert {opened(card.picture).size for card in shown} == {(320, 192)}
    assert len(report.html(wide, COMMAND)) < 5e6


# --- two runs ---


def written(folder: Path, found: Run) -> Path:
    folder.mkdir()
    results.write(found, folder, COMMAND)
    return folder / "results.json"


@pytest.fixture
def first(tmp_path) -> Path:
    return written(tmp_path / "first", run())


def changed(found: Run, **ranks) -> Run:
    """The run with other ranks for a way: {way: picture -> two ranks}."""
    records = [
        record(int(r.key.split()[1]), r.way, *ranks[r.way](int(r.key.split()[1])), model=r.model)
        if r.way in ranks
        else r
        for r in found.records
    ]
    return dataclasses.replace(found, records=records)


def test_differences_are_those_worked_out_by_hand(first, tmp_path):
    """The second run holds pictures 0 to 9 alone, and `crop` has 3 more right there and 1 less."""
    ranks = RANKS["crop"]
    other = changed(run(10), crop=lambda i: (0 if i in (0, 2, 4) else 1 if i == 9 else ranks(i)[0], ranks(i)[1]))
    found = compare.read(first, written(tmp_path / "second", other))
    assert list(found.keys) == [f"picture {i}" for i in range(10)] and found.questions == 20
    crop, every, even = ("tiny", "crop"), Column("all"), Column("even", ("even",))
    assert found.differences[crop, every].value == pytest.approx((5 + 1 + 2 - 6) / 20)
    assert found.differences[crop, even].value == pytest.approx(3 / 5)
    assert found.differences[("tiny", "alpha"), every] == Estimate(0, 0, 0, 20)
    row = next(row for row in found.side_by_side(every).rows if row[0] == "tiny, crop")
    assert [cell.value for cell in row[1:4]] == pytest.approx([6 / 20, 8 / 20, 2 / 20])
    assert row[4:] == ["1", "3"]


def test_the_interval_of_a_difference_is_that_of_paired_draws(first, tmp_path):
    """Each picture's change is drawn, 12 out of 12, a thousand times: a bootstrap of its own, with other draws."""
    other = changed(run(), crop=lambda i: (0 if i < 5 else RANKS["crop"](i)[0], RANKS["crop"](i)[1]))
    found = compare.read(first, written(tmp_path / "second", other)).differences[("tiny", "crop"), Column("all")]
    change = np.array([1] * 5 + [0] * 7) / 2
    draws = np.random.default_rng(1).choice(change, (100_000, 12)).mean(axis=1)
    assert found.value == pytest.approx(change.mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.03)


def test_models_of_other_names_stand_against_each_other_in_their_order(first, tmp_path):
    both = run(model="mine").records + run(model="tiny", ways=("crop",)).records
    second = written(tmp_path / "second", dataclasses.replace(run(), records=both))
    found = compare.read(first, second)
    assert found.pairs == [(("tiny", "crop"), ("tiny", "crop"))]  # tiny is in both
    assert found.alone == {
        "first": ["tiny, alpha", "tiny, whole"],
        "second": ["mine, alpha", "mine, crop", "mine, whole"],
    }
    found = compare.read(first, written(tmp_path / "third", run(model="mine", ways=("crop", "alpha"))))
    assert found.pairs == [(("tiny", way), ("mine", way)) for way in ("alpha", "crop")]
    assert found.table().rows[0][0] == "tiny / mine, alpha" and found.alone == {"first": ["tiny, whole"]}
    assert "| tiny / mine, alpha | +0.0% [+0.0%, +0.0%] |" in found.table().markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "others"}, "is of the task 'few', .* of 'others': expected two runs of the same task"),
        ({"identity": {"task": {"name": "few", "seed": 2}}}, "of different data or options, .*: seed is 1 and 2"),
        (
            {"samples": {f"else {i}": [["a", ""], ["b", ""]] for i in range(12)}},
            "share no sample: 12 and 12 others; compare runs of",
        ),
        (
            {"samples": {f"picture {i}": [["a", ""], ["b", ""]] for i in range(12)}},
            "asked other questions about 'picture",
        ),
        (
            {"columns": [{"title": "new", "groups": [], "k": 9, "per_class": False}]},
            "share no column: all, even, by phra.*; compare runs of",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(first, tmp_path, change, message):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(first.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        compare.read(first, other)


def test_runs_without_a_common_way_are_refused(first, tmp_path):
    other = written(tmp_path / "other", dataclasses.replace(run(ways=("whole",)), records=run(ways=("whole",)).records))
    text = other.read_text().replace('"way":"whole"', '"way":"blur"')
    other.write_text(text)
    with pytest.raises(
        ValueError, match=r"share no way .*: tiny, alpha; tiny, crop; tiny, whole against tiny, blur; compare runs with"
    ):
        compare.read(first, other)


def test_the_comparison_is_a_page_too(report, first, tmp_path):
    second = written(tmp_path / "second", changed(run(10), crop=RANKS["alpha"]))
    found = Links(report.html_of(compare.read(first, second)))
    assert "10 samples with 20 questions are in both runs" in found.text
    assert "the first holds 12 samples, the second 10." in found.text
    assert all(link.startswith("data:") for link in found.links) and str(second) in found.text


# --- the commands ---


def test_compare_prints_the_table_and_writes_a_page(report, first, tmp_path, capsys):
    second = written(tmp_path / "second", run(10))
    main(["--compare", str(first), str(second)])
    printed = capsys.readouterr().out
    assert "paired on the 10 samples (20 questions)" in printed and "compare.html" in printed
    assert (tmp_path / "second" / "compare.html").exists()
    main(["--compare", str(first), str(second), "--out", str(tmp_path / "two.html")])
    assert (tmp_path / "two.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either --compare or one of scenes"),
        (["--compare", "a", "b", "scenes"], "expected either --compare or one of scenes"),
        (["--out", "x.html", "scenes"], "--out goes behind the task"),
        (["--compare", "no-such.json", "b.json"], "error: .*no-such.json"),
    ],
)
def test_wrong_arguments_are_said(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_without_the_extra_all_but_the_page_is_written(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("alpha_clip.evaluation.", "jinja2", "matplotlib"))]:
        if name.endswith((".report", ".figures")) or name in ("jinja2", "matplotlib"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("alpha_clip.evaluation.report", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    main(["scenes", "--quick", "--methods", "whole", "--no-base", "--out", str(tmp_path)])
    assert (tmp_path / "results.md").exists() and not (tmp_path / "report.html").exists()
    assert f"{EXTRA}; the same command then goes on from here" in capsys.readouterr().out
    main(["--compare", str(tmp_path / "results.json"), str(tmp_path / "results.json")])
    printed = capsys.readouterr().out
    assert "100 samples" in printed and EXTRA in printed
