"""Conversations to ids: template, marks, loss masks, positions of media and signal tokens."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import MODALITIES, Vocabulary, output_modalities
from nextgpt_jax.prompts import Input, Output, Turn, human_segments, reply_segments, split_placeholders
from nextgpt_jax.templates import TEMPLATES, stop_sequences, tokenize_conversation
from tests import FIXTURES

VOCAB = 300
VOCABULARY = Vocabulary(VOCAB)


class ByteTokenizer:
    """One id a byte, above a few special ids."""

    bos_token_id = 1

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [b + 3 for b in text.encode()]

    def decode(self, ids, skip_special_tokens):
        return bytes(i - 3 for i in ids if i >= 3).decode()


TOKENIZER = ByteTokenizer()


def ids_of(text):
    return TOKENIZER.encode(text, False)


def test_new_tokens_are_the_references():
    vocabulary = Vocabulary(32000)
    tokens = vocabulary.new_tokens
    assert len(tokens) == 38 and vocabulary.size == 32038
    assert tokens[:4] == ("<Img>", "</Img>", "[IMG0]", "[IMG1]")
    assert [tokens[i] for i in (5, 6, 29, 30, 37)] == ["[IMG3]", "[VID0]", "[VID23]", "[AUD0]", "[AUD7]"]
    for name, prefix, count in (("image", "IMG", 4), ("video", "VID", 24), ("audio", "AUD", 8)):
        assert [tokens[i - 32000] for i in vocabulary.signal_ids(name)] == [f"[{prefix}{i}]" for i in range(count)]


def test_stage_1_sample():
    e = tokenize_conversation([Turn((Input("image", "x"), " generate a caption"), ("a dog",))], TOKENIZER, VOCABULARY)
    head = [1, *ids_of("### Human: "), VOCAB, 0, VOCAB + 1, *ids_of(" generate a caption\n### Assistant: ")]
    target = ids_of("a dog\n###")
    assert e.ids == head + target
    assert e.loss == [False] * len(head) + [True] * len(target)
    assert e.inputs == [(12 + 1, Input("image", "x"))]


def test_stage_2_sample():
    e = tokenize_conversation([Turn(("a dog",), ("a dog", Output("image", "a dog")))], TOKENIZER, VOCABULARY)
    head = [1, *ids_of("### Human: a dog\n### Assistant: ")]
    target = [*ids_of("a dog"), *VOCABULARY.signal_ids("image"), *ids_of("\n###")]
    assert e.ids == head + target
    assert e.loss == [False] * len(head) + [True] * len(target)
    assert e.outputs == [(len(head) + 5, Output("image", "a dog"))]


def test_several_turns_with_media_anywhere():
    turns = [
        Turn(("see ", Input("image", 1), " and ", Input("image", 2)), ("ok",)),
        Turn(("draw", Input("video", 3)), ("here", Output("image", "c"), Output("audio", "d"))),
        Turn(("thanks",)),
    ]
    e = tokenize_conversation(turns, TOKENIZER, VOCABULARY)
    assert [medium.content for _, medium in e.inputs] == [1, 2, 3]
    for position, _ in e.inputs:
        assert e.ids[position - 1 : position + 2] == [VOCAB, 0, VOCAB + 1]
    for position, output in e.outputs:
        group = VOCABULARY.signal_ids(output.modality)
        assert tuple(e.ids[position : position + len(group)]) == group
        assert all(e.loss[position : position + len(group)])
    text = TOKENIZER.decode([i for i in e.ids if i < VOCAB], True).replace("\x00", "")
    assert text == (
        "### Human: see  and \n### Assistant: ok\n### Human: draw\n### Assistant: here\n### Human: thanks"
        "\n### Assistant: "
    )
    targets = TOKENIZER.decode([i for i, loss in zip(e.ids, e.loss, strict=True) if loss and i < VOCAB], True)
    assert targets == "ok\n###here\n###"


def test_bos_before_every_text_after_a_medium_is_an_option():
    turns = [Turn((Input("image", 1), "what?"))]
    plain = tokenize_conversation(turns, TOKENIZER, VOCABULARY)
    upstream = tokenize_conversation(
        turns, TOKENIZER, VOCABULARY, dataclasses.replace(TEMPLATES["per_segment"], bos_per_text=True)
    )
    assert plain.ids.count(1) == 1 and upstream.ids.count(1) == 2
    assert upstream.ids[upstream.ids.index(VOCAB + 1) + 1] == 1


class SentencePiece:
    """The fixtures' LLaMA tokenizer."""

    def __init__(self):
        from nextgpt_jax.weights.tokenizers import load_tokenizer

        self.tokenizer = load_tokenizer(FIXTURES / "vicuna")
        self.bos_token_id = self.tokenizer.bos_token_id
        self.encode, self.decode = self.tokenizer.encode, self.tokenizer.decode


def test_reference_ids():
    """The ids of 2023's tokenizer: one piece between new tokens, white space next to them dropped."""
    data, tokenizer, vocab = np.load(FIXTURES / "npz" / "llama_tokenizer.npz"), SentencePiece(), 320
    vocabulary = Vocabulary(vocab)
    question, answer = Turn(("the cat sat",), ("a dog ran",)), Turn(("the cat sat",))
    both = tokenize_conversation([question], tokenizer, vocabulary, TEMPLATES["reference"]).ids
    asked = tokenize_conversation([answer], tokenizer, vocabulary, TEMPLATES["reference"]).ids
    whole = tokenizer.encode("### Human: the cat sat\n### Assistant: ", add_special_tokens=False)
    assert asked == [1, *whole] and both[: len(asked)] == asked
    # all but the space before the answer, whose own piece begins with one
    reference = data["out_ids"].tolist()
    assert whole[:-1] == reference[: len(whole) - 1]
    mixed = data["out_mixed_ids"].tolist()
    assert str(data["in_mixed"]).startswith("### Human: <Img> the cat </Img> sat  there [IMG0]")
    sample = Turn((Input("image", 1), " sat  there ", Output("image", "x")))
    found = tokenize_conversation([sample], tokenizer, vocabulary, TEMPLATES["reference"]).ids
    begin, end = mixed.index(vocab), mixed.index(vocab + 1)
    assert found[1 : begin + 2] == mixed[: begin + 1]  # "### Human:" <Img>
    rest = mixed[end : mixed.index(vocab + 5) + 1]  # </Img> sat  there [IMG0] .. [IMG3]
    at = found.index(vocab + 1)
    assert found[at : at + len(rest)] == rest


def test_stop_sequences():
    assert ids_of("\n###") in [list(s) for s in stop_sequences(TOKENIZER)]
    assert ids_of("###") in [list(s) for s in stop_sequences(TOKENIZER)]


def test_media_without_marks_come_first():
    assert human_segments("what?", {"image": ["a", "b"]}) == (Input("image", "a"), Input("image", "b"), "what?")


def test_media_at_their_marks():
    found = human_segments("is <image> like <image>?", {"image": ["a", "b"]})
    assert found == ("is ", Input("image", "a"), " like ", Input("image", "b"), "?")


@pytest.mark.parametrize(
    "text, images, message",
    [("<image> or <image>?", 1, "2 <image> marks but 1 image was given"), ("<image>", 0, "1 <image> mark but 0 images"),
     ("one <image>", 2, "2 images were given but the prompt has 1 <image> mark")],
)  # fmt: skip
def test_marks_and_media_have_to_match(text, images, message):
    with pytest.raises(UserError, match=message):
        human_segments(text, {"image": list(range(images))})


def test_reply_marks_become_outputs_after_the_text():
    found = reply_segments("Sure <image> thing! <image>", {"image": ["a", "b"]})
    assert found == ("Sure thing!", Output("image", "a"), Output("image", "b"))
    with pytest.raises(UserError, match="no caption"):
        reply_segments("Sure <image>", {"image": []})


@given(st.lists(st.sampled_from(["<image>", "<video>", "text ", "<im", "age>"]), max_size=8))
def test_splitting_marks_loses_nothing(parts):
    text = "".join(parts)
    back = "".join(p if isinstance(p, str) else MODALITIES[p[1]].placeholder for p in split_placeholders(text))
    assert back == text


segments = st.one_of(
    st.text(st.characters(codec="ascii"), max_size=6),
    st.builds(Input, st.sampled_from(list(MODALITIES)), st.integers()),
)
outputs = st.one_of(st.text("abc ", max_size=6), st.builds(Output, st.sampled_from(output_modalities()), st.text("ab")))
turns = st.builds(Turn, st.lists(segments, max_size=4).map(tuple), st.lists(outputs, max_size=4).map(tuple))


@given(st.lists(turns, max_size=4))
def test_encoding_is_consistent(conversation):
    e = tokenize_conversation(conversation, TOKENIZER, VOCABULARY)
    assert len(e.ids) == len(e.loss)
    assert [m for _, m in e.inputs] == [s for t in conversation for s in t.human if isinstance(s, Input)]
    assert [o for _, o in e.outputs] == [s for t in conversation for s in t.assistant if isinstance(s, Output)]
    assert sum(i >= VOCAB for i in e.ids) == 2 * len(e.inputs) + sum(
        len(VOCABULARY.signal_ids(o.modality)) for _, o in e.outputs
    )
    for position, _ in e.inputs:
        assert not e.loss[position] and e.ids[position] == 0
