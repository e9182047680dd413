"""Answers to prompts during training."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from nextgpt_jax.config import ExperimentConfig, TrainConfig
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference.types import MediaOutput
from nextgpt_jax.media import Audio, Video
from nextgpt_jax.training.sampling import Sample, Sampler, check_sampling, write_samples
from nextgpt_jax.training.stages import STAGES
from nextgpt_jax.training.tensorboard import TensorBoard
from tests.inference.requests import request

SHOWN = [
    Sample("draw", "Sure.", [MediaOutput("image", np.full((4, 6, 3), 200, np.uint8))]),
    Sample("film", "", [MediaOutput("video", Video(np.zeros((3, 4, 6, 3), np.uint8), 4.0))]),
    Sample("play", "ü", [MediaOutput("audio", Audio(np.zeros(80, np.float32), 8000))]),
]


def test_the_weights_of_the_moment_answer(tiny_system, tiny_engine, tiny_config, tmp_path):
    """As inference does with them, and with the frozen ones shared."""
    options = {"max_new_tokens": 8, "temperature": 0.0}
    lines = [{"prompt": "draw", "modality": "image", "guidance": 2.0, **options}, {"prompt": "hi", **options}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    train = TrainConfig(sample_every=2, sample_prompts=str(tmp_path / "prompts.jsonl"), sample_media=True, seed=3)
    config = dataclasses.replace(tiny_config, train=train)
    check_sampling(config)
    sampler = Sampler(config, tiny_system, tmp_path / "run", None)
    parts = nnx.split(tiny_system.model, STAGES["stage3"].trainable, ...)
    jax.block_until_ready(parts[1:])
    drawn, said = sampler(2, *parts)
    asked = [request("draw", seed=3, max_new_tokens=8, modality="image"), request("hi", seed=3, max_new_tokens=8)]
    answers = tiny_engine.generate(asked)
    assert [drawn.text, said.text] == [answer.text for answer in answers]
    np.testing.assert_array_equal(drawn.media[0].content, answers[0].media[0].content)
    folder = tmp_path / "run" / "samples" / "2"
    written = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in written] == ["draw", "hi"] and written[0]["media"][0] == "00000_0.png"
    assert Image.open(folder / "00000_0.png").size == (16, 16)


def test_without_decoders_and_without_a_file(tiny_system, tiny_config, tmp_path):
    """The first held-out samples are asked for text."""
    held_out = read_samples("conversation", tiny_config.data.instructions, "")
    config = dataclasses.replace(tiny_config, train=TrainConfig(sample_every=2))
    config.data = dataclasses.replace(config.data, validation=config.data.instructions)
    config.generation = dataclasses.replace(config.generation, max_new_tokens=8)
    check_sampling(config)
    parts = nnx.split(tiny_system.model, STAGES["stage3"].trainable, ...)
    found = Sampler(config, tiny_system, tmp_path, held_out)(1, *parts)
    assert [sample.prompt for sample in found][:2] == ["what is <image> this?", "what is <video> this?"]
    assert not any(sample.media for sample in found)


def test_what_is_written(tmp_path):
    write_samples(tmp_path / "samples" / "3", SHOWN)
    files = {"00000_0.png", "00001_0.mp4", "00002_0.wav", "replies.jsonl"}
    assert {file.name for file in (tmp_path / "samples" / "3").iterdir()} == files
    board = TensorBoard(tmp_path / "board", 0, enabled=True)
    board.write_samples(3, SHOWN)
    board.close()
    (file,) = (tmp_path / "board").iterdir()
    content, tags = file.read_bytes(), {}
    while content:  # length, checksum, event, checksum
        size = int.from_bytes(content[:8], "little")
        tags |= {value.tag: value for value in Event.FromString(content[12 : 12 + size]).summary.value}
        content = content[16 + size :]
    assert {"samples/0_0_image", "samples/1_0_video", "samples/2_0_audio"} <= tags.keys()
    assert tags["samples/1_0_video"].image.encoded_image_string.startswith(b"GIF89a")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "train.sample_every needs prompts"),
        ("", "prompts.txt has no prompts"),
        ("\n \n", "prompts.txt has no prompts"),
    ],
)
def test_prompts_are_needed(tmp_path, content, message):
    config = ExperimentConfig(train=TrainConfig(sample_every=1))
    if content is not None:
        (tmp_path / "prompts.txt").write_text(content)
        config.train.sample_prompts = str(tmp_path / "prompts.txt")
    with pytest.raises(UserError, match=message):
        check_sampling(config)


def test_bad_settings(tmp_path, monkeypatch):
    (tmp_path / "p.jsonl").write_text('{"promt": "hi"}')
    config = ExperimentConfig(train=TrainConfig(sample_every=1, sample_prompts=str(tmp_path / "p.jsonl")))
    with pytest.raises(UserError, match=r"train.sample_prompts: .*p.jsonl: unknown field 'promt'; did you mean prompt"):
        check_sampling(config)
    config.train.sample_prompts = str(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"train.sample_prompts: no such .*none.txt"):
        check_sampling(config)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="a job of 2 processes draws no samples: set it to 0, and draw them from"):
        check_sampling(config)
    config.train.sample_every = 0
    check_sampling(config)
    config.train.sample_every = -1
    with pytest.raises(UserError, match="should not be negative"):
        check_sampling(config)
