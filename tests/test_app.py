"""`lmseg app`: what it answers, in plain Python, and the page in a browser without a window."""

import json
import shutil
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import lmseg_jax
from lmseg_jax import app, cli
from lmseg_jax.errors import UserError
from lmseg_jax.segmentation import Segmentation
from lmseg_jax.taxonomy import from_names

WAIT = 60  # seconds; the first answer compiles
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update"
    " --disable-background-networking --disable-sync --window-size=1180,1100"
)


@dataclass
class Halves:
    """Answers that the left half is the first class, as one segment, and the right one nothing."""

    asked: tuple = ()

    def segment(self, image, classes, *, taxonomy, task):
        self.asked = image.shape, classes, taxonomy, task
        labels = np.full(image.shape[:2], -1, np.int32)
        labels[:, : image.shape[1] // 2] = 0
        info = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
        return Segmentation(labels, labels + 1, info, from_names(classes or ["a", "b"]))


def test_an_answer_has_the_areas_of_all_classes_largest_first():
    model, image = Halves(), np.full((4, 12, 3), 100, np.uint8)
    found = app.answer(model, image, words=" cat; sofa, couch;", task="panoptic")
    assert model.asked == ((4, 12, 3), ["cat", "sofa, couch"], None, "panoptic")
    assert [(a.name, a.share, a.segments) for a in found.areas] == [
        ("cat", 0.5, 1),
        ("sofa, couch", 0.0, 0),
        (app.NOTHING, 0.5, 0),
    ]
    assert found.picture.shape == (4 * 53, 12 * 53, 3)  # the largest factor below 640 / 12
    color = np.array(found.areas[0].color)
    np.testing.assert_allclose(found.picture[100, 100], 0.3 * 100 + 0.7 * color, atol=1)
    np.testing.assert_array_equal(found.picture[100, 500], [100, 100, 100])


def test_large_images_are_shrunk_and_a_taxonomy_comes_before_words():
    model = Halves()
    found = app.answer(model, np.zeros((20, 2560, 3), np.uint8), words="cat", taxonomy="streets")
    assert model.asked == ((10, 1280, 3), None, "streets", "semantic")
    assert found.picture.shape == (10, 1280, 3)


def test_of_a_long_list_only_those_that_occur_are_listed():
    words = ";".join(f"word {i}" for i in range(25))
    found = app.answer(Halves(), np.zeros((4, 4, 3), np.uint8), words=words)
    assert [area.name for area in found.areas] == ["word 0", app.NOTHING]


@pytest.mark.parametrize(
    ("image", "words", "said"),
    [(None, "cat", "there is no image"), (np.zeros((4, 4, 3), np.uint8), " ; ", "no words")],
)
def test_what_is_missing_is_named(image, words, said):
    with pytest.raises(UserError, match=said):
        app.answer(Halves(), image, words=words)


def test_words_are_text_in_the_legend_not_html():
    page = app.table([app.Area("<b>x", (1, 2, 3), 0.25, 1)], task="panoptic")
    assert "&lt;b&gt;x" in page and "<b>" not in page
    assert "rgb(1, 2, 3)" in page and "25.0 %" in page and "1 segment<" in page


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["app"]) == 2
    assert "pip install 'lmseg_jax[app]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    page, address = app.serve(
        lmseg_jax.load("worlds"), title="worlds", folder=folder, host="127.0.0.1", port=None
    )
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser):
        self.browser = browser

    def wait(self, what):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, WAIT).until(lambda _: what())

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def click(self, selector, *, number=0):
        self.wait(lambda: len(self.all(selector)) > number)
        self.all(selector)[number].click()

    def source(self, part="#overlay"):
        """Address of the picture that a part shows, the answer's if not said; "" if none."""
        return next((image.get_attribute("src") for image in self.all(f"{part} img")), "")

    def answered(self, *, before):
        """The names in the legend, once there is another picture than `before`."""
        self.wait(lambda: self.source() not in ("", before))
        self.wait(lambda: len(self.all(".areas tr")) > 0)
        return [row.text for row in self.all(".areas tr")]


def test_load_type_click_upload_and_the_picture_changes(address, browser, tmp_path):
    page = Page(browser)
    browser.get(address)
    page.wait(lambda: page.all("#segment"))
    page.click("#segment")
    page.wait(lambda: "there is no image" in browser.find_element("tag name", "body").text)
    assert page.source() == ""

    page.click(".gallery-item")
    page.wait(lambda: page.all("#image img"))
    (words,) = page.all("#words textarea, #words input")
    words.send_keys("red object; grass; <i>sky")
    page.click("#segment")
    rows = page.answered(before="")
    assert len(rows) == 3 and any(row.startswith("<i>sky") for row in rows)

    first = page.source()
    page.click("#taxonomy input", number=1)
    page.click("#task input", number=1)
    page.click("#segment")
    rows = page.answered(before=first)
    assert any("segment" in row for row in rows)

    second = page.source()
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (field,) = page.all("#image input[type=file]")
    given = page.source("#image")
    field.send_keys(str(tmp_path / "photo.png"))
    page.wait(lambda: page.source("#image") not in ("", given))
    page.click("#segment")
    page.answered(before=second)
    size = browser.execute_script(
        "const shown = document.querySelector('#overlay img');"
        "return [shown.naturalHeight, shown.naturalWidth]"
    )
    assert size == [60 * 7, 90 * 7]  # the photo, enlarged

    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        urlsplit(message["params"]["request"]["url"])
        for message in requests
        if message["method"] == "Network.requestWillBeSent"
    }
    hosts = {url.hostname for url in asked if url.scheme in ("http", "https", "ws", "wss")}
    assert hosts == {"127.0.0.1"}
