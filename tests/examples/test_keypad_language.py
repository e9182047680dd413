import random
import re
from collections import defaultdict

import pytest

from examples.keypad import language, things
from examples.keypad.language import CONVERSATIONS, MARKS, MODALITIES, Request, Thing
from examples.keypad.talk import a
from nextgpt_jax import prompts
from nextgpt_jax.modalities import MODALITIES as TABLE
from nextgpt_jax.modalities import output_modalities

PAIRS = [(source, target) for source in MODALITIES for target in MODALITIES]


@pytest.fixture(scope="module")
def conversations():
    rng = random.Random(0)
    return [language.conversation(rng) for _ in range(20000)]


def _pair(turn):
    """The turn's modalities in and out, "text" for none; several joined."""
    return tuple("+".join(sorted({t.modality for t in side})) or "text" for side in (turn.seen, turn.made))


def test_marks_are_those_of_the_library_and_stand_for_what_is_shown_and_made(conversations):
    assert MARKS == {name: TABLE[name].placeholder for name in output_modalities()}
    for turn in (turn for turns in conversations for turn in turns):
        for text, side in ((turn.human, turn.seen), (turn.gpt, turn.made)):
            marks = [piece[1] for piece in prompts.split_placeholders(text) if not isinstance(piece, str)]
            assert marks == [thing.modality for thing in side]
        assert re.fullmatch(r"[^<>]+(<\w+>)*", turn.gpt), "marks come after the words"


def test_replies_name_what_they_bring_and_nothing_else_starts_like_them(conversations):
    for turn in (turn for turns in conversations for turn in turns):
        assert turn.gpt.startswith("Here is ") == bool(turn.made)
        if turn.made:
            named = language.normal(turn.gpt).split()
            assert {named[k] for k in range(len(named)) if named[k] in language.WORDS} == {
                language.WORDS[t.digit] for t in turn.made
            }
            assert {t.direction for t in turn.made if t.direction} == set(named) & set(language.DIRECTIONS)


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
def test_every_pair_of_modalities_has_hundreds_of_phrasings(conversations, pair):
    """Counted in first turns, with every digit replaced by the same word."""
    digit = {word: "one" for word in (*language.WORDS, "ten")}
    said = {language.normal(turns[0].human) for turns in conversations if _pair(turns[0]) == pair}
    assert len({" ".join(digit.get(w, w) for w in text.split()) for text in said}) >= (
        150 if "text" not in pair else 500
    )


def test_what_the_conversations_are_made_of(conversations):
    turns = [_pair(turn) for turns in conversations for turn in turns]
    share = defaultdict(float)
    for pair in turns:
        share[pair] += 1 / len(turns)
    assert 0.15 < share["text", "text"] < 0.25
    assert all(share[pair] > 0.01 for pair in PAIRS)
    assert 0.22 < sum(len(turns) > 1 for turns in conversations) / len(conversations) < 0.35
    assert {len(turns) for turns in conversations} == {1, 2, 3, 4, 5}
    assert share["text", "audio+image"] > 0.01 and share["text", "audio+image+video"] > 0.003
    assert sum(len(seen.split("+")) > 1 for seen, _ in turns) > 100  # two shown at once


def test_edits_change_the_digit_alone():
    rng = random.Random(0)
    for modality in MARKS:
        seen = Thing(modality, 7, "left" if modality == "video" else "")
        turns = [language.edited(rng, seen) for _ in range(200)]
        assert all(turn.seen == (seen,) and turn.made[0]._replace(digit=7) == seen for turn in turns)
        assert {turn.made[0].digit for turn in turns} == set(range(10)) - {7}
        assert len({turn.human for turn in turns}) > 150


def test_text_only_turns_ask_for_no_media():
    rng = random.Random(0)
    turns = [language.talking(rng) for _ in range(2000)]
    assert not any(turn.made or turn.seen or "<" in turn.human + turn.gpt for turn in turns)


def test_everything_has_its_own_captions_equally_many():
    found = [language.captions(t) for modality in MARKS for t in things.everything(modality)]
    assert len({len(spellings) for spellings in found}) == 1
    assert len({spelling for spellings in found for spelling in spellings}) == sum(map(len, found))
    assert len(found) == 10 + 10 + 40
    assert language.caption(Thing("image", 7)) == "a handwritten seven"
    assert language.caption(Thing("audio", 7)) == "the tone of key seven"
    assert language.caption(Thing("video", 7, "left")) == "a handwritten seven moving left"


def test_nothing_that_the_evaluation_asks_is_composed(conversations):
    said = {language.normal(turn.human) for turns in conversations for turn in turns}
    held_out = language.held_out()
    assert not said & held_out
    assert len(held_out) > 350
    asked = [r.human for pair in PAIRS for r in language.held_out_requests(*pair)]
    asked += [request.human for conversation in CONVERSATIONS for request in conversation]
    asked += [*language.TEXT_ONLY, *language.HELD_OUT_QUESTIONS]
    asked += [wording.format(a(word)) for wording in language.EDITS for word in language.WORDS]
    assert set(map(language.normal, asked)) == held_out


def test_the_evaluation_uses_words_of_the_training_text(conversations):
    words = {word for turns in conversations for turn in turns for word in language.normal(turn.human).split()}
    assert {word for prompt in language.held_out() for word in prompt.split()} <= words


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
def test_held_out_requests_cover_digits_directions_and_phrasings(pair):
    requests = language.held_out_requests(*pair)
    assert 40 <= len(requests) <= 50
    digits = {word: "one" for word in language.WORDS} | {way: "left" for way in language.DIRECTIONS}
    phrasings = {" ".join(digits.get(w, w) for w in language.normal(r.human).split()) for r in requests}
    assert len(phrasings) >= 4
    source, target = pair
    for request in requests:
        assert [t.modality for t in request.seen] == [source] * (source != "text")
        assert [t.modality for t in request.made] == [target] * (target != "text")
        assert (request.answer is not None) == (target == "text")
    for modality, sides in ((source, [r.seen for r in requests]), (target, [r.made for r in requests])):
        if modality != "text":
            assert {side[0].digit for side in sides} == set(range(10))
        if modality == "video":
            assert {side[0].direction for side in sides} == set(language.DIRECTIONS)


def test_conversations_to_hold_switch_modalities():
    assert len(CONVERSATIONS) == 20 and all(3 <= len(conversation) <= 5 for conversation in CONVERSATIONS)
    for conversation in CONVERSATIONS:
        kinds = {t.modality for request in conversation for t in (*request.seen, *request.made)}
        assert len(kinds | {"text"} if any(r.answer is not None for r in conversation) else kinds) >= 2
        for request in conversation:
            marks = [piece[1] for piece in prompts.split_placeholders(request.human) if not isinstance(piece, str)]
            assert marks == [thing.modality for thing in request.seen]
            assert bool(request.made) != (request.answer is not None)


def test_there_are_fifty_text_only_prompts_without_marks():
    assert len(set(language.TEXT_ONLY)) == 50 and not any("<" in prompt for prompt in language.TEXT_ONLY)


def test_an_answer_needs_its_words_and_no_others_of_their_kind():
    hearing = Request("<audio> which key?", (Thing("audio", 4),), answer="four")
    assert hearing.accepts("This is the tone of key four.") and hearing.accepts("It is a 4!")
    assert not hearing.accepts("This is the tone of key five.") and not hearing.accepts("")
    assert not hearing.accepts("It is four or five.")
    moving = Request("<video> which way?", (Thing("video", 4, "up"),), answer="four up")
    assert moving.accepts("This is a four moving up.") and not moving.accepts("This is a four moving down.")
    sum_of = Request("what is two plus three?", answer="five")
    assert sum_of.accepts("Two plus three is five.") and not sum_of.accepts("Two plus three is six.")
    assert Request("draw a two", made=(Thing("image", 2),)).accepts("whatever")


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != ("text", "text")], ids=" to ".join)
def test_the_reply_of_the_training_text_would_be_right(conversations, pair):
    """Answers composed for other questions about the same thing have what the evaluation looks for."""
    source, target = pair
    wanted = {(r.seen, r.made): r for r in language.held_out_requests(*pair)}
    if target == "text":
        described = [Request("", r.seen, answer=r.answer) for r in wanted.values()]
        assert all(r.accepts(f"This is {language.caption(r.seen[0])}.") for r in described)
    else:
        assert all(r.accepts(language.made(*r.made).gpt) for r in wanted.values())
