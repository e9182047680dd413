"""Which modality a file is of."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from nextgpt_jax.errors import UserError
from nextgpt_jax.media import write_mp4
from nextgpt_jax.media.recognition import recognize

FRAMES = np.zeros((3, 16, 16, 3), np.uint8)


def picture(path, **options):
    Image.new("RGB", (8, 8)).save(path, **options)


def animation(path, **options):
    first, *rest = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(3)]
    first.save(path, save_all=True, append_images=rest, **options)


FILES = {
    "a.png": (picture, "image"),
    "a.jpg": (picture, "image"),
    "a.gif": (picture, "image"),
    "b.gif": (animation, "video"),
    "b.webp": (animation, "video"),
    "b.png": (animation, "video"),
    "pages.tiff": (animation, "image"),
    "a.mp4": (lambda path: write_mp4(path, FRAMES, 4.0), "video"),
    "a.wav": (lambda path: soundfile.write(path, np.zeros(160), 16000), "audio"),
    "a.flac": (lambda path: soundfile.write(path, np.zeros(160), 16000), "audio"),
    "a.au": (lambda path: soundfile.write(path, np.zeros(160), 16000), "audio"),
    "a.csv": (lambda path: path.write_text("1,2,3,4,5,6\n"), "imu"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_recognized_by_their_content(tmp_path, name):
    write, modality = FILES[name]
    write(tmp_path / name)
    assert recognize(tmp_path / name) == modality
    if modality != "imu":
        renamed = (tmp_path / name).rename(tmp_path / "without_suffix")
        assert recognize(renamed) == modality


@pytest.mark.parametrize(
    "name, content, line",
    [
        ("a.txt", b"some text", "is no image, video or sound in a supported format"),
        ("a.png", b"", "is empty"),
        ("a.npy", b"", "may be depth, thermal or imu: say what it is"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no image"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=line) as error:
        recognize(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        recognize(tmp_path / "a.png")
