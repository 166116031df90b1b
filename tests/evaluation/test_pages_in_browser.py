"""What a person sees and does on the pages, in a real browser. Skipped where chromium and its driver are missing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from tirkit.evaluation.attempts import Attempt, Case, gold_parts, said_parts, spoken, text_spans, write_attempts
from tirkit.evaluation.charts import Curve, Panel
from tirkit.evaluation.report import ReportData, write_report
from tirkit.types import Message, StopReason, Task, ToolCall, Trajectory, Turn

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium or chromedriver here: apt-get install chromium chromium-driver"
)
QUIET = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --window-size=1200,900"
)
EVIL = "</script><img src=http://localhost:9/x onerror=alert(1)>"
ODD = "seen/7 é '%(1)"  # an id that must survive being an anchor
NUM_CASES = 1000
CALL = ToolCall(name="ferry_fare", arguments={"to": "Zotami"})


def case(number: int) -> Case:
    """Every third of arm b is right; a is right but for every tenth, which has answered something else."""
    task = Task(
        id=ODD if number == 7 else f"q{number}",
        prompt=(Message(role="user", content=f"What is the fare to Zotami on day {number}?"),),
        gold_rounds=((CALL,),),
        answer=str(number),
        kind="single" if number % 2 else "two_step",
    )

    def attempt(arm: str, right: bool) -> Attempt:
        answer = str(number) if right else EVIL
        turns = (
            Turn(text="<think>\nA ferry.\n</think>\n<tool_token>\nferry_fare\n</tool_token>", selected=("ferry_fare",)),
            Turn(text="<tool_call>…", calls=(CALL,), reply=(Message(role="tool", content=f"fare: {number}"),)),
            Turn(text=f"<answer>{answer}</answer>", answer=answer),
        )
        trajectory = Trajectory(task_id=task.id, prompt=task.prompt, turns=turns, stop=StopReason.ANSWERED)
        return Attempt(
            arm=arm,
            verdict="right" if right else "wrong",
            why="" if right else "other answer",
            mode="think" if number % 4 == 0 else "no_think",
            stop="answered",
            said=said_parts(trajectory),
            spans=text_spans(trajectory),
        )

    attempts = (attempt("a", number % 10 != 0), attempt("b", number % 3 == 0))
    return Case(id=task.id, kind=task.kind, asked=spoken(task.prompt), gold=gold_parts(task), attempts=attempts)


class Reader:
    """A person at the browser."""

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(self, path: Path, anchor: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(path.as_uri() + anchor)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def choose(self, label: str, option: str) -> None:
        field = self.driver.find_element(By.XPATH, f"//label[contains(., '{label}')]/select")
        Select(field).select_by_visible_text(option)

    def search(self, text: str) -> None:
        field = self.driver.find_element(By.CSS_SELECTOR, "input[type=search]")
        field.clear()
        field.send_keys(text)

    @property
    def count(self) -> str:
        return self.driver.find_element(By.CSS_SELECTOR, "[role=status]").text

    @property
    def listed(self) -> int:
        return self.driver.execute_script(
            "return [...document.querySelectorAll('nav li')].filter(e => !e.hidden).length"
        )

    @property
    def shown(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "article").text

    def ask(self, script: str) -> object:
        return self.driver.execute_script(script)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (*QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    except WebDriverException as error:
        pytest.skip(f"chromium does not start here: {error.msg}")
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    panels = tuple(
        Panel(title=title, curves=(Curve(name="loss", x=(1.0, 2.0), y=(3.0, 1.0)),)) for title in ("loss", "reward")
    )
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, ReportData(title="Ferries", panels=panels, cases=tuple(map(case, range(NUM_CASES)))))
    return folder


@pytest.fixture
def reader(driver: webdriver.Chrome, folder: Path) -> Iterator[Reader]:
    """At the page of attempts; afterwards nothing was asked of any machine, and nothing went wrong on the page."""
    driver.get_log("performance")
    driver.get_log("browser")
    reader = Reader(driver)
    reader.open(folder / "attempts.html")
    yield reader
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    ours = [one["request"]["url"] for one in sent if one["documentURL"].startswith("file:")]
    assert ours
    assert [url for url in ours if not url.startswith("file:")] == []
    assert driver.get_log("browser") == []


def test_the_first_attempt_is_shown_with_everything_in_it(reader: Reader) -> None:
    reader.press("j")
    for text in ("day 1?", "✓ right", "A ferry.", 'ferry_fare {"to": "Zotami"}', "fare: 1", "gold", "handed back"):
        assert text in reader.shown
    reader.press("k")
    assert EVIL in reader.shown
    assert "✗ wrong" in reader.shown


def test_tokens_have_the_colours_of_their_legend(reader: Reader) -> None:
    colours = """return ['prompt', 'trained', 'masked'].map(kind => [...document.querySelectorAll(`.${kind}`)]
        .map(e => getComputedStyle(e).backgroundColor))"""
    found = reader.ask(colours)
    assert isinstance(found, list)
    assert all(len(set(of_a_kind)) == 1 and len(of_a_kind) > 1 for of_a_kind in found)  # the legend and the tokens
    assert len({of_a_kind[0] for of_a_kind in found}) == 3


def test_filters_leave_what_fits(reader: Reader) -> None:
    assert reader.count == f"{NUM_CASES} of {NUM_CASES}"
    reader.choose("verdict", "wrong")
    assert (reader.count, reader.listed) == ("100 of 1000", 100)  # every tenth
    reader.choose("mode", "think")
    assert reader.listed == 50  # every twentieth
    reader.choose("kind", "single")
    assert reader.listed == 0  # odd numbers alone
    reader.choose("kind", "all")
    reader.choose("mode", "all")
    reader.choose("arm", "b")
    assert reader.listed == 666  # all but 0, 3, … 999
    reader.choose("verdict", "differs")
    # Alike are those that both have right (every third but for every thirtieth: 334 - 34) or wrong (100 - 34).
    assert reader.listed == 1000 - 300 - 66
    reader.choose("verdict", "all")
    reader.search("FARE: 99")  # what a tool handed back: 99, 990 … 999
    assert reader.listed == 11
    assert "fare: 99\n" in reader.shown
    reader.search("no such text")
    assert reader.count == "0 of 1000"


def test_the_keyboard_is_enough(reader: Reader) -> None:
    reader.press("jjj")
    assert "day 3?" in reader.shown
    reader.press("k")
    assert "day 2?" in reader.shown
    reader.press("/", "day 99", Keys.ESCAPE)
    assert "day 99?" in reader.shown
    reader.press("j")
    assert "day 990?" in reader.shown
    reader.press("k", "k", "k")  # nothing before the first
    assert "day 99?" in reader.shown
    reader.press("/", "j")  # a letter in the search, not a step
    assert reader.count == "0 of 1000"
    reader.press(Keys.BACKSPACE, Keys.ESCAPE, "]")
    assert "✓ right" in reader.shown  # arm b has every third
    assert "handed back, not" in reader.shown
    reader.press("t")
    assert "handed back, not" not in reader.shown
    reader.press("?")
    assert "next and previous" in reader.driver.find_element(By.TAG_NAME, "dialog").text
    reader.press(Keys.ESCAPE)
    assert not reader.driver.find_element(By.TAG_NAME, "dialog").is_displayed()


def test_what_has_the_focus_can_be_seen(reader: Reader) -> None:
    for _ in range(6):
        reader.press(Keys.TAB)
        assert reader.ask("return getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_two_arms_stand_beside_each_other(reader: Reader) -> None:
    assert reader.shown.count("fare: 0") == 2  # as read, and among the tokens
    reader.choose("beside it", "b")
    assert reader.shown.count("fare: 0") == 4
    assert "✓ right" in reader.shown
    assert "✗ wrong" in reader.shown


def test_a_link_leads_to_its_attempt(reader: Reader, folder: Path) -> None:
    anchor = reader.ask("return document.querySelectorAll('nav a')[7].getAttribute('href')")
    reader.open(folder / "attempts.html", str(anchor))
    assert reader.shown.startswith(ODD)
    reader.open(folder / "attempts.html", "#gone%zz")
    assert reader.shown == "No such question."


def test_a_page_has_a_bound(reader: Reader, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (folder / "attempts.html").stat().st_size < 3_000_000
    monkeypatch.setattr("tirkit.evaluation.attempts.MAX_PAGE", 10_000)
    path = write_attempts(tmp_path, "Few", [case(number) for number in range(9)])
    reader.open(path)
    assert 0 < reader.listed < 9
    assert f"The first {reader.listed} of 9 questions are here" in reader.driver.find_element(By.TAG_NAME, "main").text


def test_the_report_draws_its_plots_and_leads_to_the_attempts(reader: Reader, folder: Path) -> None:
    reader.open(folder / "index.html")
    drawn = "return document.querySelectorAll('.plot .scatterlayer path.js-line').length"
    WebDriverWait(reader.driver, 30).until(lambda _: reader.ask(drawn) == 2)
    reader.driver.find_element(By.LINK_TEXT, "All attempts").click()
    assert "Ferries: attempts" in reader.driver.find_element(By.TAG_NAME, "h1").text


@pytest.mark.parametrize("name", ["index.html", "attempts.html"])
def test_nothing_is_cut_off_on_a_narrow_screen(reader: Reader, folder: Path, name: str) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    reader.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    reader.open(folder / name)
    assert reader.ask("return document.documentElement.scrollWidth") == 360
    reader.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRASTS = """
const light = text => {
  const parts = text.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255);
  const [r, g, b] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  const colour = getComputedStyle(element).backgroundColor;
  return colour.startsWith("rgb(") ? colour : behind(element.parentElement);
};
const words = [...document.querySelectorAll("main *")].filter(e => e.checkVisibility()
  && [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
return words.map(element => {
  const [low, high] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => a - b);
  return [(high + 0.05) / (low + 0.05), element.outerHTML.slice(0, 80)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(reader: Reader, scheme: str) -> None:
    """At least 4.5 : 1, as WCAG 2.2 asks for (AA)."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    reader.search("day 9")
    found = reader.ask(CONTRASTS)
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert isinstance(found, list)
    assert len(found) > 20
    assert [(ratio, element) for ratio, element in found if ratio < 4.5] == []
