"""The chat page in headless Chromium, on the keypad model: uploads, all kinds of answers, several turns, stopping.

pip install -e '.[demo]' playwright
python -m pytest -n 0 -m slow tests/serving/test_page_browser.py
"""

import contextlib

import pytest

from examples.keypad.exhibits import Exhibits
from examples.keypad.things import Thing

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'nextgpt-jax[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven with playwright")

from tests.serving import browser as driven  # noqa: E402
from tests.serving.browser import Chat, wait  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not driven.CHROMIUM, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def served():
    with driven.served() as served:
        yield served


@pytest.fixture(scope="module")
def batcher(served):
    return served[0]


@pytest.fixture(scope="module")
def address(served):
    return served[1]


@pytest.fixture(scope="module")
def browser():
    with driven.browsing() as browser:
        yield browser


@pytest.fixture
def chat(browser, address):
    with contextlib.closing(browser.new_page(viewport={"width": 1200, "height": 1000})) as page:
        chat = Chat(page, address)
        yield chat
        assert not chat.problems


@pytest.fixture(scope="module")
def exhibits(tmp_path_factory):
    return Exhibits(tmp_path_factory.mktemp("exhibits"))


def test_a_conversation_of_all_kinds(chat, exhibits, tmp_path):
    """Each kind is read, each is made, and every turn needs the ones before."""
    tone, image, video = (
        exhibits.show(thing) for thing in (Thing("audio", 7), Thing("image", 5), Thing("video", 2, "up"))
    )
    assert "seven" in chat.ask("here is a tone: so, which key was it?", tone).inner_text()
    drawn = chat.ask("now draw that digit on paper for me")
    assert "seven" in drawn.inner_text()
    assert chat.thing("image", drawn.locator("img"), tmp_path) == Thing("image", 7)
    moved = chat.ask("and let it go left, please")
    assert chat.thing("video", moved.locator("video"), tmp_path) == Thing("video", 7, "left")
    played = chat.ask("could you now play its tone for me?")
    assert chat.thing("audio", played.locator("audio"), tmp_path) == Thing("audio", 7)
    assert "five" in chat.ask("<image> please name the digit i wrote for me", image).inner_text()
    assert "<image> please name" in chat.page.inner_text("#chat")
    assert "two moving up" in chat.ask("so, which way does the digit move?", video).inner_text()
    assert chat.page.locator("#chat .user img, #chat .user video").count() == 2
    assert not chat.page.locator("#chat [aria-label=Share]").first.is_visible()
    assert chat.notice() == ""


def test_options(chat):
    chat.page.get_by_label("Media", exact=True).check()
    chat.refused("tick the media that the answer should have", "hello")
    chat.page.get_by_label("Image", exact=True).check()
    chat.page.get_by_label("Audio", exact=True).check()
    chat.page.get_by_label("Denoising steps").fill("2.5")
    chat.refused("steps: '2.5' is not a whole number", "show me a nine")
    chat.page.get_by_label("Denoising steps").fill("2")
    answer = chat.ask("show me a nine")
    assert chat.notice() == "" and answer.locator("img").count() == 1
    playwright.expect(answer.locator("[data-testid^=waveform]")).to_have_count(1)
    chat.page.get_by_label("Text", exact=True).check()
    assert chat.ask("draw a seven").locator("img, video").count() == 0
    chat.page.get_by_label("Tokens at most").fill("1")
    assert len(chat.ask("hello, who are you?").inner_text().split()) <= 2


def test_media_are_edited_with_words(chat, exhibits, tmp_path):
    """A file of the message, then what was shown last; the strength is asked for once there is something to edit."""
    assert chat.page.locator("#strength").count() == 0
    chat.choose("Edit", "Image")
    chat.page.locator("#strength input[type=number]").fill("0.8")
    edited = chat.ask("make it a nine", exhibits.show(Thing("image", 7)))
    assert chat.thing("image", edited.locator("img"), tmp_path) == Thing("image", 9)
    again = chat.ask("now a two")
    assert chat.thing("image", again.locator("img"), tmp_path) == Thing("image", 2)
    chat.choose("Edit", "Nothing")
    assert "seven" in chat.ask("draw a seven").inner_text() and chat.notice() == ""
    chat.choose("Edit", "Video")
    chat.refused("edit 'video' needs the video that is edited among the inputs", "make it a nine")


def test_wrong_input_is_a_line_and_the_message_stays(chat, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    line = "notes.png is no image, video or sound in a supported format"
    chat.refused(line, "what is this?", tmp_path / "notes.png")
    assert chat.page.locator("#chat .user").count() == 0
    assert chat.page.input_value("#box textarea") == "what is this?"
    assert chat.page.locator("#box .thumbnail-item").count() == 1
    chat.page.locator("#box .delete-button").first.click()
    assert "model" in chat.ask("hello, who are you?").inner_text()
    assert chat.notice() == ""


def test_stopping_frees_the_row_and_the_conversation_goes_on(chat, batcher):
    chat.page.get_by_label("Denoising steps").fill("900")
    before = batcher.stats().ended["cancelled"]
    chat.begin("show me a seven moving left")
    playwright.expect(chat.page.locator("#chat .bot")).to_contain_text("seven", timeout=60_000)
    wait(lambda: batcher.stats().media)
    chat.page.click("#box .stop-button")
    playwright.expect(chat.page.locator("#box .stop-button")).to_have_count(0)
    wait(lambda: batcher.stats().ended["cancelled"] == before + 1)  # the decoder may be compiling
    assert (batcher.stats().decoding, batcher.stats().media) == (0, 0)
    assert chat.notice() == "" and "seven" in chat.page.inner_text("#chat .bot")
    chat.page.get_by_label("Denoising steps").fill("2")
    assert "seven" in chat.ask("so, which digit is it?").inner_text()


def test_closing_the_page_frees_the_row(browser, address, batcher):
    chat = Chat(browser.new_page(), address)
    chat.page.get_by_label("Denoising steps").fill("900")
    before = batcher.stats().ended["cancelled"]
    chat.begin("draw a seven")
    wait(lambda: batcher.stats().media)
    chat.page.close()
    wait(lambda: batcher.stats().ended["cancelled"] == before + 1, 60)
    assert not batcher.stats().media


def test_conversations_are_separate_and_can_be_begun_anew(chat, browser, address):
    with contextlib.closing(browser.new_page()) as page:
        other = Chat(page, address)
        page.get_by_text("draw a seven").click()
        page.wait_for_function("document.querySelector('#box textarea').value == 'draw a seven'")
        page.get_by_label("Denoising steps").fill("2")
        page.press("#box textarea", "Enter")
        page.wait_for_selector("#chat .bot img")
        assert chat.page.locator("#chat .user").count() == 0
        page.wait_for_selector("#box .stop-button", state="detached")
        page.get_by_text("New conversation").click()
        page.wait_for_selector("#chat .bot", state="detached")
        assert "model" in other.ask("hello, who are you?").inner_text()
        assert page.locator("#chat .user").count() == 1
