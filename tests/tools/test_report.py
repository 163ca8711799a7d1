"""tools/report.py: the runs of a plan, trained here, on one page."""

import csv
import json
import re
import shutil
import statistics
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

import train_student
import train_teacher
from cli.plan import read_plan
from helper.errors import UserError
from tools import report

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

PLAN = """\
dataset: fake
pairs: [resnet14 resnet8]
methods: {KD: kd, RKD+KD: rkd -a 1}
trials: 2
flags: --fake_size 40 --fake_classes 4 --image_size 16 --epochs 2 --save_dir save
"""
VOID = {"meta", "link", "br", "img", "hr", "input"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a plan, its runs and, in out/, its report."""
    folder = tmp_path_factory.mktemp("table")
    commands = {"teacher": train_teacher.train_teacher, "student": train_student.train_student}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "small.yaml").write_text(PLAN)
        for job in read_plan("small.yaml"):
            patch.setattr(sys, "argv", [job.script, *job.argv_now()])
            commands[job.kind](job.argv_now())
        report.report(["save", "--plan", "small.yaml", "--out", "out", "--device", "cpu"])
    return folder


@pytest.fixture
def page(folder):
    return (folder / "out" / "index.html").read_text()


def accuracies(folder, pattern, which="last"):
    files = sorted(folder.glob(f"save/*/{pattern}/run.json"))
    assert len(files) == 2
    return [json.loads(file.read_text())[which]["test_acc"] for file in files]


class Strict(HTMLParser):
    """Raises where an element is not closed, an id is there twice or something is fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.ids += [known["id"]] if "id" in known else []
        self.links += [known[k] for k in ("src", "href", "xlink:href") if known.get(k)]
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(page, folder):
    read = Strict(page)
    assert len(read.ids) == len(set(read.ids))
    places = [link for link in read.links if not link.startswith(("#", "data:"))]
    assert places
    assert all((folder / "out" / place).is_file() for place in places)
    inner = {link[1:] for link in read.links if link.startswith("#")}
    inner |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert inner <= set(read.ids)


def test_numbers_are_those_of_run_json(page, folder):
    for pattern in ("*_kd_*", "*_rkd_*", "resnet8_*"):
        last, best = (accuracies(folder, pattern, which) for which in ("last", "best"))
        assert f'data-value="{statistics.mean(last)}"' in page
        assert f'data-value="{statistics.mean(best)}"' in page
        for value in last:
            assert f"last {value:.2f} %" in page
    gain = statistics.mean(
        a - b for a, b in zip(accuracies(folder, "*_kd_*"), accuracies(folder, "resnet8_*"))
    )
    assert f"{gain:+.2f}" in page


def test_every_picture_is_there_and_nothing_is_noted(page, folder):
    names = {path.stem for path in (folder / "out" / "figures").glob("*.svg")}
    assert names == {
        "over-baseline", "over-alone", "cost-fake", "1-differences", "1-curves", "1-closeness",
        "1-reliability", "1-classes", "1-confusion", "1-correlation", "1-cka", "1-tsne",
    }  # fmt: skip
    assert names == {path.stem for path in (folder / "out" / "figures").glob("*.pdf")}
    assert page.count("<figure>") == len(names)
    assert 'id="notes"' not in page


def test_the_images_whose_stages_are_compared_are_counted(page, folder):
    summary = json.loads(next(folder.glob("save/student_model/*/run.json")).read_text())
    assert f"CKA of {summary['images']['test']} test images" in page


def test_teacher_and_student_stand_side_by_side_with_their_cost(page, folder):
    assert re.findall("<th>((?:teacher|student) [^<]*)</th>", page) == [
        "teacher resnet14", "student resnet8",
    ]  # fmt: skip
    rows = re.findall(r"<tr><td>((?:param|FLOPs|latency)[^<]*)</td><td>([\d.,]+)", page)
    names = [
        "parameters",
        "FLOPs of an image",
        "latency of a batch of 1",
        "latency of a batch of 32",
    ]
    assert [name for name, _ in rows] == names
    assert "1 thread:" in page or "threads:" in page
    lines = list(csv.DictReader((folder / "out" / "table.csv").open()))
    assert all(float(line["latency_32_ms"]) > 0 for line in lines)


def test_the_worst_images_of_each_student_are_in_the_page(page):
    assert page.count('<img src="data:image/png;base64,') == 3 * 8
    assert page.count("<br>student: ") == page.count("<br>teacher: ") == 3 * 8


def test_details_have_command_and_losses(page):
    assert page.count("<details>") == 7
    assert "--distill rkd" in page
    assert "rkd_angle" in page


def test_what_is_kept_is_not_computed_again(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("run_network", "time_passes", "thumbnails"):
        monkeypatch.setattr(f"reporting.measure.{name}", None)
    before = (folder / "out" / "table.csv").read_text()
    report.report(["save", "--plan", "small.yaml", "--out", "out", "--device", "cpu"])
    assert (folder / "out" / "table.csv").read_text() == before


def test_a_run_without_weights_is_noted(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "save", "save")
    shutil.copytree(folder / "out" / ".cache", "out/.cache")
    (run,) = tmp_path.glob("save/student_model/*_kd_*trial_1")
    for file in run.glob("*.pth"):
        file.unlink()
    report.report(["save", "--out", "out", "--device", "cpu"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert re.search(
        rf"left out of the pictures: \S*{re.escape(run.name)} \(.* holds no weights\)", page
    )
    assert page.count('<img src="data:image/png;base64,') == 3 * 8  # of the trial that has weights


def test_of_many_classes_the_most_confused_pairs_are_a_table(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("reporting.figures.MATRIX", 3)
    drawn = []

    def draw(folder, name, title, text, figure):
        drawn.append(name)
        return SimpleNamespace(name=name, title=title, text=text, svg="")

    monkeypatch.setattr("reporting.page.draw", draw)
    shutil.copytree("out/.cache", tmp_path / ".cache")
    report.report(["save", "--plan", "small.yaml", "--out", str(tmp_path), "--device", "cpu"])
    page = (tmp_path / "index.html").read_text()
    Strict(page)
    assert "1-classes" in drawn
    assert "1-confusion" not in drawn
    head = page[page.index("class → predicted") :].split("</thead>")[0]
    networks = re.findall(r'<th><button type="button">([^<]*)', head)
    assert networks == ["teacher", "alone", "KD", "RKD+KD"]
    assert re.search(
        r'<tr><td>[^<]+ → [^<]+</td>(<td data-value="[\d.]+">[\d.]+</td>){4}</tr>', page
    )


def test_a_plan_leaves_out_other_runs_and_names_what_is_missing(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    plan = PLAN.replace(", RKD+KD: rkd -a 1", "").replace("trials: 2", "trials: 3")
    (tmp_path / "less.yaml").write_text(plan)
    report.report(
        ["save", "--plan", str(tmp_path / "less.yaml"), "--quick", "--out", str(tmp_path / "out")]
    )
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert sum(line.startswith("- not in the plan: ") and "_rkd_" in line for line in lines) == 2
    assert sum(line.startswith("- not finished: ") and "trial 3" in line for line in lines) == 2


def test_without_matplotlib_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("reporting")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="^a report needs matplotlib: sh scripts/setup.sh req"):
        report.report(["save"])


def test_without_a_finished_run_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no finished run in .*: not read"):
        report.report([str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, where the machine has it."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_in_a_browser_without_errors_and_sorts(browser, folder, scheme):
    tab, said = browser.new_page(color_scheme=scheme), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url))
    address = (folder / "out" / "index.html").resolve().as_uri()
    tab.goto(address)
    assert said == [address]
    values = (
        "[...document.querySelectorAll('#accuracy tbody tr')].map(r => +r.cells[1].dataset.value)"
    )
    found = tab.evaluate(values)
    head = tab.locator("#accuracy th button").nth(1)
    head.click()
    assert tab.evaluate(values) == sorted(found, reverse=True)
    head.click()
    assert tab.evaluate(values) == sorted(found)
    tab.locator(".chip", has_text="RKD+KD").click()
    assert tab.locator("tr.on").count() == 2
    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.locator("#theme").click()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert said == [address]
