"""Lengths of samples, of many at once and kept, are what tokenizing each says."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.data import cache, fingerprint
from nextgpt_jax.data import lengths as module
from nextgpt_jax.data.lengths import lengths, tokenize_all
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.prompts import Input, Output, Turn
from nextgpt_jax.templates import TEMPLATES, TextTemplate
from tests import chat_tokenizers
from tests.data.test_examples import builder

SIDES = st.lists(
    st.text(max_size=6) | st.sampled_from([Input("image", "x"), Input("audio", "y"), Output("image", "c")]), max_size=4
).map(tuple)


@pytest.fixture(scope="module", params=["llama3", "qwen2"])
def make(request):
    tokenizer = chat_tokenizers.make(request.param)
    return dataclasses.replace(builder(), tokenizer=tokenizer, vocabulary=Vocabulary(len(tokenizer)))


@settings(max_examples=20)
@given(
    conversations=st.lists(st.lists(st.builds(Turn, SIDES, SIDES), min_size=1, max_size=3).map(tuple), max_size=5),
    template=st.sampled_from([*TEMPLATES.values(), TextTemplate(join_text=True, bos_per_text=True)]),
    together=st.integers(1, 4),
)
def test_many_at_once_are_as_one_by_one(make, conversations, template, together):
    make = dataclasses.replace(make, max_length=64, template=template)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TOGETHER", together)
        assert [*tokenize_all(conversations, make)] == [make.tokenize(one) for one in conversations]
        assert lengths(conversations, make).tolist() == [make.length(one) for one in conversations]


def test_lengths_are_kept(tmp_path, monkeypatch, make):
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path / "cache"))
    for place, name, value in ((cache, "MINIMUM", 1), (fingerprint, "SMALL", 0), (module, "_CHUNK", 2)):
        monkeypatch.setattr(place, name, value)
    talks = [[{"from": "human", "value": "x" * i}, {"from": "gpt", "value": "y"}] for i in range(0, 50, 7)]
    records = [{"conversations": talk} for talk in talks]
    records[3] = {"conversations": 1}
    records[5] |= {"video_captions": ["a"]}
    records[5]["conversations"][1]["value"] = "<video>"
    (tmp_path / "a.json").write_text(json.dumps(records))
    samples = read_samples("conversation", str(tmp_path / "a.json"))
    keep = np.ones(8, bool)
    keep[3] = False
    kept = samples.chosen(keep, np.zeros((8, 1), np.uint8))
    expected = [make.length(sample) for sample in kept]
    assert lengths(kept, make).tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tokenize_conversation", lambda *_: pytest.fail("tokenized again"))
        assert lengths(kept, make).tolist() == expected
    other = dataclasses.replace(make, template=TEMPLATES["chat"])
    assert lengths(kept, other).tolist() == [other.length(sample) for sample in kept] != expected
    with pytest.raises(UserError, match="a.json, record 3: turns should alternate"):
        lengths(samples, make)
