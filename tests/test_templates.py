"""Chat templates of tokenizers: ids, loss masks, media, ends of replies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.prompts import Input, Output, Turn
from nextgpt_jax.templates import TEMPLATES, stop_sequences, tokenize_conversation
from tests import chat_tokenizers

CHAT = TEMPLATES["chat"]
TOKENIZERS = {kind: chat_tokenizers.make(kind) for kind in ("llama3", "qwen2")}
VOCABULARY = Vocabulary(320)
TURNS = [
    Turn(("what is ", Input("image", 1), "?"), ("a dog",)),
    Turn(("draw it",), ("Sure.", Output("image", "a dog"), Output("audio", "bark"))),
    Turn(("thanks \ue000",), None),
]


def messages(turns):
    for turn in turns:
        yield {"role": "user", "content": turn.human[0]}
        if turn.assistant is not None:
            yield {"role": "assistant", "content": turn.assistant[0]}


# A reply's first token follows the opening in a token sequence of its own, so it cannot merge with the opening's last.
replies = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda text: not text[:1].isspace())


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data(), answered=st.booleans())
def test_text_has_the_ids_of_the_tokenizers_own_method(kind, data, answered):
    humans = data.draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=3))
    turns = [Turn((human,), (data.draw(replies),)) for human in humans]
    turns += [] if answered else [Turn(("and?",))]
    found = tokenize_conversation(turns, TOKENIZERS[kind], VOCABULARY, CHAT)
    expected = TOKENIZERS[kind].apply_chat_template(
        list(messages(turns)), add_generation_prompt=not answered, return_dict=False
    )
    assert found.ids == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_media_and_targets(kind):
    tokenizer, counts = TOKENIZERS[kind], {"image": 3}
    found = tokenize_conversation(TURNS, tokenizer, VOCABULARY, CHAT, counts)
    ((at, medium),) = found.inputs
    assert medium == Input("image", 1)
    assert found.ids[at - 1 : at + 4] == [VOCABULARY.media_begin, 0, 0, 0, VOCABULARY.media_end]
    for position, output in found.outputs:
        group = list(VOCABULARY.signal_ids(output.modality))
        assert found.ids[position : position + len(group)] == group
    text = tokenizer.decode([i for i in found.ids if i < 320 and i])
    assert "what is ?" in text and "thanks \ue000" in text
    targets = tokenizer.decode([i for i, loss in zip(found.ids, found.loss, strict=True) if loss and i < 320])
    end = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}[kind]
    assert targets == f"a dog{end}Sure.{end}"
    signals = [i for i, loss in zip(found.ids, found.loss, strict=True) if loss and i >= 320]
    assert signals == [*VOCABULARY.signal_ids("image"), *VOCABULARY.signal_ids("audio")]
    assert (found.ids[0] == tokenizer.bos_token_id) == (kind == "llama3")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_is_the_beginning_of_its_answered_conversation(kind):
    asked = tokenize_conversation(TURNS, TOKENIZERS[kind], VOCABULARY, CHAT)
    answered = [*TURNS[:-1], Turn(TURNS[-1].human, (" ok",))]
    whole = tokenize_conversation(answered, TOKENIZERS[kind], VOCABULARY, CHAT)
    assert whole.ids[: len(asked.ids)] == asked.ids
    assert not any(asked.loss[-4:]) and whole.loss[len(asked.ids)]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_end_of_a_turn_stops_a_reply(kind):
    end = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}[kind]
    assert stop_sequences(TOKENIZERS[kind], CHAT) == ((TOKENIZERS[kind].convert_tokens_to_ids(end),),)


def test_a_tokenizer_without_bos_in_other_templates():
    for name in ("per_segment", "reference"):
        found = tokenize_conversation(TURNS[:1], TOKENIZERS["qwen2"], VOCABULARY, TEMPLATES[name])
        assert None not in found.ids
        assert TOKENIZERS["qwen2"].decode(found.ids[:5]) == "### H"


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "has no chat template: take per_segment"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not mark the end of a reply"),
        ("{{ messages[-1].content }}</s>", "drops parts of messages"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{{ messages | length }}{% else %}"
            "{{ m.content }}</s>{% endif %}{% endfor %}",
            "changes earlier turns",
        ),
    ],
)
def test_unsuitable_templates_say_why(template, message):
    tokenizer = chat_tokenizers.make("qwen2")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        tokenize_conversation(TURNS, tokenizer, VOCABULARY, CHAT)
