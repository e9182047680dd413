"""The room for media that batches have."""

import collections
import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data import layouts
from nextgpt_jax.data.examples import BatchSpec
from nextgpt_jax.data.layouts import Layouts, choose, describe_layout, example_bytes
from nextgpt_jax.data.pipeline import ordered_batches, shuffled
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.media import write_wav
from tests.data.test_examples import READS, builder

ROWS = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=40)


@given(rows=ROWS, costs=st.lists(st.integers(1, 10**7), min_size=3, max_size=3), base=st.integers(1, 10**5))
def test_chosen_layouts_are_few_and_fit_all(rows, costs, base):
    """The largest fits everything, also batches that were not looked at; and each was worth it."""
    largest, costs = np.array(rows, np.uint8), np.array(costs)
    most = np.maximum(largest.max(0), [1, 0, 2]).astype(np.uint8)
    found = choose(largest, most, costs, base)
    assert 1 <= len(found) <= layouts.MAX_LAYOUTS and (found[-1] == most).all()
    sizes = found.astype(int) @ costs
    assert (np.diff(sizes) >= 0).all()
    fits = (largest[:, None] <= found[None]).all(-1)
    taken = np.where(fits, sizes, sizes.max()).min(1)
    assert len(found) == 1 or (sizes[-1] - taken).sum() >= layouts.MIN_SAVED_BYTES * len(largest) * (len(found) - 1)


def test_layouts_are_not_more_than_pay_off():
    costs = np.array([600_000, 18_000_000])
    rare = np.array([[1, 0]] * 99 + [[1, 1]], np.uint8)
    assert choose(rare, rare.max(0), costs, 10).tolist() == [[1, 0], [1, 1]]
    assert choose(rare, rare.max(0), costs // 500, 10).tolist() == [[1, 1]]  # too little for a compilation
    all_alike = np.array([[1, 1]] * 99 + [[1, 0]], np.uint8)
    assert choose(all_alike, all_alike.max(0), costs, 10).tolist() == [[1, 1]]
    assert choose(np.zeros((0, 2), np.uint8), np.zeros(2, np.uint8), costs, 10).tolist() == [[0, 0]]
    numbers = np.array([[n, 0] for n in range(1, 7)], np.uint8)  # rounded up, but not beyond the largest
    assert {row[0] for row in choose(numbers, numbers.max(0), costs, 10).tolist()} <= {1, 2, 4, 6}


@pytest.fixture
def mixed(folder):
    """Twelve texts, two images, a sound, and one with both images and sound."""
    write_wav(folder / "tone.wav", np.zeros(1600, np.float32), 16000)
    records = [talk(f"text {i}") for i in range(12)]
    records += [talk(f"<image> {i}", input_images=[f"{i}.png"]) for i in range(2)]
    records += [talk("<audio>", input_audios=["tone.wav"])]
    records += [talk("<image><image><audio>", input_images=["0.png", "1.png"], input_audios=["tone.wav"])]
    (folder / "mixed.json").write_text(json.dumps(records))
    samples = read_samples("conversation", str(folder / "mixed.json"))
    found = survey(samples, 8)
    encoder = dataclasses.replace(READS, image_size=128, audio_target_len=4096)
    encoders = dict.fromkeys(("image", "audio"), encoder)
    return found.usable(samples), builder(spec=BatchSpec(found.inputs, found.outputs), encoders=encoders)


def talk(text, **media):
    return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}], **media}


def test_batches_have_room_for_what_they_hold(mixed):
    """Examples are those of the full layout, and a modality that no example of a batch has is absent."""
    samples, make = mixed
    config = DataConfig(batch_size=2)
    for batch, number in zip(ordered_batches(samples, make, config), range(8), strict=True):
        expected = jax.tree.map(lambda *x: np.stack(x), make(samples[2 * number]), make(samples[2 * number + 1]))
        assert batch["media"].keys() <= expected["media"].keys()
        for name, entry in expected["media"].items():
            slots = batch["media"][name]["positions"].shape[1] if name in batch["media"] else 0
            assert (entry["positions"][:, slots:] == make.max_length).all()
            for key in ("input", "positions"):
                np.testing.assert_array_equal(
                    batch["media"].get(name, {key: entry[key][:, :0]})[key], entry[key][:, :slots]
                )
        np.testing.assert_array_equal(batch["tokens"], expected["tokens"])
        assert bool(batch["media"]) == (number >= 6)


def test_processes_agree_on_the_shapes_of_a_batch(mixed):
    """Also one whose own examples have no media."""
    samples, make = mixed
    config = DataConfig(batch_size=8)
    whole = shuffled(samples, make, config, 0, 6)
    parts = [shuffled(samples, make, config, 0, 6, indices) for indices in ((0, 1), (2, 3, 4, 5, 6, 7))]
    for number in range(6):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(part[number] for part in parts))
        jax.tree.map(np.testing.assert_array_equal, whole[number], joined)


def test_examples_are_grouped_by_modality(mixed):
    samples, make = mixed
    source = shuffled(samples, make, DataConfig(batch_size=2, group_by_modality=True), 0, 8)
    batches = [source[number] for number in range(8)]
    found = collections.Counter(" ".join(sorted(batch["media"])) for batch in batches)
    assert found == {"": 6, "image": 1, "audio image": 1}
    assert sum(int((batch["lengths"] > 0).sum()) for batch in batches) == 16


def test_layouts_are_named_with_their_size(mixed):
    samples, make = mixed
    (batch,) = ordered_batches(samples, make, DataConfig(batch_size=16))
    assert describe_layout(batch).startswith("16 examples of 96 tokens, inputs: audio 1 image 2 (")
    size = sum(array.nbytes for array in jax.tree.leaves(batch))
    assert size == 16 * example_bytes(make, make.spec)
    assert Layouts(samples.media, make, [np.arange(16)]).specs == [make.spec]
