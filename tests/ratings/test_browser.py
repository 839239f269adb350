"""Raters in a headless Chromium: whole sessions by keyboard, closed in the middle, served and from a folder."""

import json

import pytest

from imagen_jax.ratings.build import build_study
from imagen_jax.ratings.log import RatingChecks
from imagen_jax.ratings.study import RATINGS_FILE, read_study, session
from tests import chromium
from tests.ratings.studies import serving

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no chromium; apt-get install chromium")
RATER = "Zoë 岳 O.K."
SESSION = """session(%s).map((turn) => [turn.item.name, turn.left])"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.running(tmp_path_factory.mktemp("profile")) as found:
        yield found


def start(page, name=None):
    """Gives the name, where the page does not know it, and starts."""
    if name is not None:
        page.type(name)
    page.press("Enter")
    page.wait("!document.getElementById('turn').hidden || !document.getElementById('end').hidden")


def rate(page, keys):
    """One turn: an answer a question, then on."""
    page.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    before = page.value("document.getElementById('progress').value")
    for key in keys:
        page.press(key)
    page.press("Enter")
    page.wait(f"document.getElementById('progress').value === {before + 1}")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_rater_answers_by_keyboard_closes_the_page_and_comes_back(browser, study):
    with serving(study) as address:
        page = browser.open(address)
        assert page.value(SESSION % json.dumps(RATER)) == [
            [turn.item.name, turn.left] for turn in session(read_study(study), RATER)
        ]
        start(page, RATER)
        assert page.value("document.getElementById('prompt').textContent").endswith(("<b>&amp;", "of a man"))
        for _ in range(2):
            rate(page, "12")
        page.press("1")  # Half a turn: nothing of it is kept.
        page.press("Enter")
        page.wait("ratings.every((one) => one.sent)")
        page.close()
        page = browser.open(address)
        assert page.value("document.getElementById('name').value") == RATER
        start(page)
        assert page.value("document.getElementById('place').textContent") == "2 of 6 done"
        page.press("2")
        page.press("Backspace")  # Back to the first question, which is then answered otherwise.
        rate(page, "33")
        page.value("localStorage.clear()")  # Another browser: the server knows.
        page.close()
        page = browser.open(address)
        start(page, RATER)
        for _ in range(3):
            rate(page, "32")
        page.wait("!document.getElementById('end').hidden && ratings.every((one) => one.sent)")
        assert page.value("document.getElementById('outcome').textContent") == "All is answered and saved."
        page.close()
    found = lines(study / RATINGS_FILE)
    order = [turn.item.name for turn in session(read_study(study), RATER)]
    assert [one["item"] for one in found] == [name for name in order for _ in range(2)]
    assert [one["answer"] for one in found] == ["left", "same"] * 2 + ["right"] * 2 + ["right", "same"] * 3
    assert {one["rater"] for one in found} == {RATER}


def test_the_page_works_from_a_folder(browser, folders, tmp_path):
    """The study of COCO, whose second part asks of one image; the ratings are downloaded."""
    study = build_study(folders, tmp_path / "study", real=True)
    url = (tmp_path / "study/site/index.html").as_uri()
    page = browser.open(url)
    start(page, "b")
    for _ in range(6):
        rate(page, "2")
    page.close()
    page = browser.open(url)
    start(page)
    assert page.value("document.getElementById('place').textContent") == "6 of 18 done"
    for key in "123" * 4:
        rate(page, key)
    page.wait("document.activeElement.id === 'download'")
    page.press("Enter")
    place = browser.downloads / f"ratings_{study.id}_b.jsonl"
    page.wait("true")
    for _ in range(200):
        if place.exists() and place.read_text().count("\n") == 18:
            break
        page.value("new Promise((done) => setTimeout(done, 20))")
    checks = RatingChecks(study)
    found = [checks.read(line) for line in place.read_text().splitlines()]
    assert [one.answer for one in found] == ["right"] * 6 + ["yes", "somewhat", "no"] * 4
    page.close()


def test_ratings_wait_for_a_server_that_is_away(browser, study):
    with serving(study) as address:
        page = browser.open(address)
        start(page, "c")
        page.value("globalThis.there = fetch; globalThis.fetch = () => Promise.reject(new Error('away')); true")
        rate(page, "11")
        page.wait("document.getElementById('status').textContent.includes('does not answer')")
        page.value("globalThis.fetch = there; true")
        rate(page, "11")
        page.wait("ratings.every((one) => one.sent)")
        page.close()
    assert len(lines(study / RATINGS_FILE)) == 4


def test_script_in_a_name_is_refused_and_in_a_prompt_is_text(browser, study):
    with serving(study) as address:
        page = browser.open(address)
        page.type("<img src=x onerror=alert(1)>")
        page.press("Enter")
        page.wait("document.getElementById('status').textContent.startsWith('A name has')")
        # The policy lets no script in that did not come with the page.
        page.value("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"globalThis.ran = 1\">'); true")
        page.value("new Promise((done) => setTimeout(done, 50))")
        assert page.value("globalThis.ran === undefined")
        page.close()
