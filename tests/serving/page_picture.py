"""Draws docs/images/page.png: a conversation with the keypad model in the chat page.

python -m tests.serving.page_picture docs/images/page.png
"""

import contextlib
import pathlib
import sys
import tempfile

from examples.keypad.exhibits import Exhibits
from examples.keypad.things import Thing
from tests.serving.browser import Chat, browsing, served

_SIZE = {"width": 1280, "height": 1210}


def main(path: str) -> None:
    """Text, an image, a video and a sound in one conversation."""
    with tempfile.TemporaryDirectory() as folder, served() as (_, address), browsing() as browser:
        with contextlib.closing(browser.new_page(viewport=_SIZE)) as page:
            chat = Chat(page, address)
            chat.ask("which digit is this?", Exhibits(pathlib.Path(folder)).show(Thing("image", 5)))
            chat.ask("and let it go left, please")
            chat.ask("draw what comes after it, then play its tone")
            page.wait_for_timeout(1000)  # until the players have drawn
            page.screenshot(path=path)


if __name__ == "__main__":
    main(*sys.argv[1:])
