"""Fixtures of the tests of building."""

import json

import pytest

from tests.chat.fixtures import no_waiting  # noqa: F401


@pytest.fixture
def captions(tmp_path):
    """A file with the captions of an image, a video and a sound."""
    rows = [
        {"image_name": "1.jpg", "caption": "a red lighthouse on a cliff ."},
        {"video_name": "2.mp4", "caption": "A boy flies a kite on the beach"},
        {"audio_name": "3.wav", "caption": 'rain on a roof and a man who says "well"'},
        {"image_name": "4.jpg", "caption": "a red lighthouse on a cliff ."},
        {"image_name": "5.jpg", "caption": " . "},
        {"image_name": "6.jpg", "caption": "see <image>"},
        {"image_name": "7.jpg"},
    ]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(rows))
    return path
