import json

import numpy as np
import pytest

from examples.keypad import language

pytest.importorskip("sklearn")
from examples.keypad import judge, prepare, world  # noqa: E402
from nextgpt_jax import media  # noqa: E402
from nextgpt_jax.data.readers import read_samples  # noqa: E402
from nextgpt_jax.errors import UserError  # noqa: E402
from nextgpt_jax.prompts import Input, Output  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def fewer_files():
    """Of each thing; encoding them all takes a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "TONES", 16)
        patch.setattr(prepare, "VIDEOS", 9)
        patch.setattr(prepare, "VARIED", (30, 2, 1))
        yield


@pytest.fixture(scope="module")
def training_set(fewer_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keypad") / "data"
    prepare.prepare(folder, conversations=1000)
    return folder


def _records(folder, name):
    return json.loads((folder / name).read_text())


def _files(folder, modality):
    return sorted(path for path in (folder / f"{modality}s").iterdir())


def test_it_has_all_scans_of_the_training_half_and_none_of_the_other(training_set):
    images, labels = world.scans()
    files = _files(training_set, "image")
    assert len(files) == 1437 + 30
    written = [media.read_image(f) for f in files]
    assert all((image == scan).all() for image, scan in zip(written, images[world.TRAIN]))
    assert not {image.tobytes() for image in written} & {image.tobytes() for image in images[world.HELD_OUT]}
    assert all(f.stem.endswith(str(d)) for f, d in zip(files[:1437], labels))
    assert {image.shape for image in written[1437:]} > {(300, 400, 3), (64, 64, 3)}  # varied


def test_tones_and_videos_are_what_their_names_say(training_set):
    tones, videos = _files(training_set, "audio"), _files(training_set, "video")
    assert len(tones) == 10 * (prepare.TONES + 2) and len(videos) == 40 * (prepare.VIDEOS + 1)
    heard = [judge.key(media.read_audio(f, sample_rate=world.RATE), world.RATE) == int(f.stem[-1]) for f in tones]
    assert np.mean(heard) > 0.95
    for f in videos[: 40 * prepare.VIDEOS : 9]:
        video = media.read_video(f)
        assert video.frames.shape == (world.FRAMES, world.SIZE, world.SIZE, 3) and video.fps == pytest.approx(world.FPS)
        assert judge.motion(video.frames) == f.stem.split("_")[-1]
    varied = [media.read_video(f) for f in videos[40 * prepare.VIDEOS :]]
    assert len({video.frames.shape for video in varied}) > 20  # as people bring them


def test_every_file_has_a_caption_of_its_own_kind(training_set):
    records = _records(training_set, "captions.json")
    names = [next(value for key, value in r.items() if key != "caption") for r in records]
    assert len(set(names)) == len(names) == sum(len(_files(training_set, m)) for m in language.MARKS)
    for record in records:
        (kind,) = record.keys() - {"caption"}
        digit, *direction = record[kind].split(".")[0].split("_")[2:]
        thing = language.Thing(kind.removesuffix("_name"), int(digit), *direction)
        assert record["caption"] in language.captions(thing)


def test_the_library_reads_all_of_it(training_set):
    described = read_samples("captioning", str(training_set / "captions.json"), "")
    assert {turn.human[0].modality for (turn,) in described} == set(language.MARKS)
    generated = read_samples("generation", str(training_set / "captions.json"), "")
    assert {turn.assistant[1].modality for (turn,) in generated} == set(language.MARKS)
    conversations = read_samples("conversation", str(training_set / "instructions.json"), "")
    assert len(conversations) == 1000
    segments = [s for turns in conversations for turn in turns for s in (*turn.human, *turn.assistant)]
    inputs = [s for s in segments if isinstance(s, Input)]
    assert all(s.content.is_file() and s.content.parent.name == f"{s.modality}s" for s in inputs)
    assert (
        {s.modality for s in inputs} == {s.modality for s in segments if isinstance(s, Output)} == set(language.MARKS)
    )


def test_preparing_again_gives_the_same_records(training_set, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.media, "write", lambda modality, path, content: None)
    for _ in range(2):  # the second time over what is there
        prepare.prepare(tmp_path / "data", conversations=1000)
    for name in ("captions.json", "instructions.json"):
        assert (tmp_path / "data" / name).read_bytes() == (training_set / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        prepare.prepare(tmp_path, conversations=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
