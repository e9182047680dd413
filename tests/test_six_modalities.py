"""All six kinds of input at once, from files: one training run, and answers by command line, chat and file."""

import copy
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.cli import infer
from nextgpt_jax.config import ServingConfig
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.requests import RequestFile, make_request
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.training.loop import train
from nextgpt_jax.weights.load import load_system
from tests import FIXTURES, tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, pathlib.Path]:
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    names = {"image": "a.png", "video": "a.mp4", "audio": "a.wav", "depth": "d.png", "thermal": "t.npy", "imu": "i.csv"}
    paths = {name: folder / file for name, file in names.items()}
    media.write("image", paths["image"], rng.integers(0, 256, (30, 40, 3), np.uint8))
    media.write("video", paths["video"], media.Video(rng.integers(0, 256, (6, 30, 40, 3), np.uint8), 2.0))
    media.write("audio", paths["audio"], media.Audio(rng.uniform(-1, 1, 8000), 8000))
    Image.fromarray(rng.integers(0, 65536, (30, 40), np.uint16)).save(paths["depth"])
    np.save(paths["thermal"], rng.uniform(0, 1, (30, 40)))
    np.savetxt(paths["imu"], rng.normal(size=(99, 6)), delimiter=",")
    return paths


@pytest.fixture(scope="module")
def config(tiny_root, tmp_path_factory):
    """The tiny system with all six of ImageBind's branches."""
    folder = tmp_path_factory.mktemp("encoder")
    shutil.copy(FIXTURES / "imagebind" / "imagebind_huge.pth", folder)
    raw = json.loads((FIXTURES / "tiny" / "imagebind.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"video_clips": 1, "video_crops": 1, "audio_clips": 1}))
    config = copy.deepcopy(tiny.experiment(tiny_root, "stage1"))
    config.model.encoder = str(folder)
    return config


@pytest.fixture(scope="module")
def engine(config):
    return Engine(load_system(config.model), config.generation)


def test_they_train_together(config, files, tmp_path):
    records = [{"caption": f"a {name}", f"{name}_name": str(path)} for name, path in files.items()]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    changed = copy.deepcopy(config)
    changed.data.captions = str(tmp_path / "captions.json")
    changed.data.batch_size, changed.train.steps, changed.train.save_every = 6, 2, 2
    assert np.isfinite(train(changed, str(tmp_path / "run"))["loss"])


def test_each_of_them_changes_the_answer(engine, files):
    assert engine.config.input_modalities == tuple(MODALITIES)
    options = {"modality": "image", "temperature": 0.0}
    requests = [
        make_request("draw", {name: [str(f)]}, options, engine.config, engine.defaults) for name, f in files.items()
    ]
    images = [response.media[0].content for response in engine.generate(requests)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_command_line_and_requests(engine, config, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(infer, "load_engine", lambda *a: engine)
    flags = [f"--{name}={path}" for name, path in files.items()]
    marks = " ".join(row.placeholder for row in MODALITIES.values())
    model = [
        f"--config.model.{name}={value}"
        for name, value in vars(config.model).items()
        if value and name != "lora_targets"
    ]
    argv = ["infer.py", "--config=configs/keypad.py", *model, "--config.model.delta=", f"--output={tmp_path / 'out'}"]
    infer.main([*argv, f"--prompt={marks} what?", "--modality=text", "--temperature=0", "--max_new_tokens=4", *flags])
    capsys.readouterr()
    record = {"prompt": "what?", "modality": "text", "max_new_tokens": 4} | {
        f"{n}s": [str(p)] for n, p in files.items()
    }
    (tmp_path / "requests.jsonl").write_text(json.dumps(record))
    requests = RequestFile(str(tmp_path / "requests.jsonl"))
    infer.answer_file(engine, ServingConfig(rows=2), requests, {}, str(tmp_path / "replies"), {})
    assert "error" not in json.loads((tmp_path / "replies" / "replies.jsonl").read_text())
