"""Media are read in order, the same content once, and what cannot be read has a reason of its own."""

import concurrent.futures
import shutil

import pytest

from nextgpt_jax import media
from nextgpt_jax.data.media_files import EmbeddedMedium
from nextgpt_jax.prepare.reading import MediaReader
from tests import tiny
from tests.data.test_examples import READS


@pytest.mark.parametrize("threads", [1, 3])
def test_equal_contents_are_decoded_once(tmp_path, monkeypatch, threads):
    tiny.write_data(tmp_path, n=2)
    first, second = tmp_path / "images" / "0.png", tmp_path / "images" / "1.png"
    again, bad, also = tmp_path / "again.png", tmp_path / "bad.png", tmp_path / "also.png"
    shutil.copy(first, again)
    bad.write_bytes(first.read_bytes()[:60])
    shutil.copy(bad, also)
    inside = EmbeddedMedium("some.tar", 0, ".png", second.read_bytes, lambda: "x.png")
    order = [first, again, bad, second, first, also, inside, tmp_path / "none.png", bad]
    decoded, load = [], media.load
    monkeypatch.setattr(media, "load", lambda name, path, *rest: decoded.append(path) or load(name, path, *rest))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = list(MediaReader([("image", source) for source in order], {"image": READS}, pool, ahead=4))
    assert [m.input is not None for m in found] == [True, False, False, True, False, False, False, False, False]
    assert found[0].sha256 == found[1].sha256 == found[4].sha256 and found[3].sha256 == found[6].sha256
    reasons = [m.reason for m in found]
    for number, name in ((2, "bad.png"), (5, "also.png"), (7, "no such image"), (8, "bad.png")):
        assert name in reasons[number] and not found[number].sha256
    assert sum(map(bool, reasons)) == 4
    assert sum(path.read_bytes() == first.read_bytes() for path in decoded if path.exists()) == 1
