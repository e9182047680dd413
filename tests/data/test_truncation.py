"""What the maximum length cuts off is counted."""

import json

import pytest

from nextgpt_jax.data import truncation
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError
from tests.data.test_examples import builder


@pytest.fixture
def samples(tmp_path):
    for name, words in (("long.json", 30), ("short.json", 1)):
        record = {"conversations": [{"from": "human", "value": "x" * words}, {"from": "gpt", "value": "yy <image>"}]}
        (tmp_path / name).write_text(json.dumps([record | {"image_captions": "c"}] * 4))
    return read_samples("conversation", f"{tmp_path}/long.json,{tmp_path}/short.json")


def test_what_is_cut_is_counted_by_file(samples):
    make = builder(samples, max_length=40)
    long, short = truncation.measure(samples, make).values()
    example = make(samples[0])
    tokenized = make.tokenize(samples[0])
    assert (long.samples, long.cut, long.longest) == (4, 4, len(tokenized.ids))
    assert long.targets - long.lost_targets == 4 * example["loss_mask"].sum() and long.targets == 4 * sum(
        tokenized.loss
    )
    assert (long.media, long.lost_media) == (4, 4) and not example["signals"]["image"]["mask"].any()
    assert (short.samples, short.cut, short.lost_targets, short.lost_media, short.share) == (4, 0, 0, 0, 0.0)
    assert short.targets == 4 * make(samples[4])["loss_mask"].sum()


def test_a_file_that_loses_too_much_is_refused(samples):
    found = truncation.measure(samples, builder(samples, max_length=40))
    with pytest.raises(UserError, match=r"long.json: 4 of 4 samples are longer .* 4 of 4 media: raise data.max_length"):
        truncation.check(found, 40, 0.99)
    truncation.check(found, 40, 1.0)


def test_of_many_samples_some_are_looked_at(samples, monkeypatch):
    monkeypatch.setattr(truncation, "_SAMPLES", 3)
    assert [row.samples for row in truncation.measure(samples, builder(samples)).values()] == [2, 1]
