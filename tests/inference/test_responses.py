"""Token ids to text, at once and while they are decoded."""

import pytest

from nextgpt_jax.inference.responses import ResponseParser, TextStream
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.prompts import Output
from nextgpt_jax.weights.tokenizers import load_tokenizer
from tests import FIXTURES, ROOT

FOLDERS = {"sentencepiece": FIXTURES / "vicuna", "bytes": ROOT / "examples" / "keypad" / "weights" / "base" / "llm"}


class Parsed:
    """A tokenizer with its vocabulary and parser."""

    def __init__(self, folder):
        self.tokenizer = load_tokenizer(folder)
        self.vocabulary = Vocabulary(len(self.tokenizer))
        self.parser = ResponseParser(self.tokenizer, self.vocabulary)

    def ids(self, *segments):
        """The ids of texts and of the groups of modalities."""
        found = []
        for segment in segments:
            if isinstance(segment, Output):
                found += self.vocabulary.signal_ids(segment.modality)
            else:
                found += self.tokenizer.encode(segment, add_special_tokens=False)
        return found

    def stream(self, ids, stops=(), chunk=1):
        """The pieces of text from a response that becomes known chunk by chunk, and then is complete."""
        stream, pieces = TextStream(self.parser, stops), []
        for known in range(chunk, len(ids) + 1, chunk):
            pieces.append(stream.advance(ids[:known], done=False))
        return [*pieces, stream.advance(ids, done=True)]


@pytest.fixture(scope="module", params=FOLDERS)
def parsed(request):
    return Parsed(FOLDERS[request.param])


RESPONSES = {
    "words": ("the cat sat on the mat , and so  on.\nIt said: hello!",),
    "characters of many bytes": ("naïve 你好吗 🎹🎵 क्या यह ठीक है? fin",),
    "a medium at the end": ("here is a seven ", Output("image")),
    "a medium in between": (" first ", Output("audio"), " then ", Output("image"), "  and last  "),
    "media alone": (Output("image"), Output("video")),
    "nothing": ("",),
    "white space": (" \n ",),
}


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("segments", RESPONSES.values(), ids=RESPONSES)
def test_the_pieces_make_up_the_text(parsed, segments, chunk):
    ids = parsed.ids(*segments)
    pieces = parsed.stream(ids, chunk=chunk)
    assert "".join(pieces) == parsed.parser.text(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_early(parsed):
    ids = parsed.ids("the cat sat on the mat")
    assert "".join(parsed.stream(ids)[: len(ids) // 2 + 1]).startswith("the cat")


def test_a_response_that_ends_within_a_character(parsed):
    """What its bytes are decoded to is not anticipated."""
    ids = parsed.ids("so 你好")
    for end in range(len(ids)):
        pieces = parsed.stream(ids[:end])
        assert "".join(pieces) == parsed.parser.text(ids[:end])
        assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_a_stop_sequence_is_never_seen(parsed):
    stop = parsed.ids("\n###")
    ids = parsed.ids("yes")
    stream = TextStream(parsed.parser, [stop])
    assert len(stop) > 1
    seen = [stream.advance(ids + stop[:n], done=False) for n in range(len(stop))]
    assert "".join([*seen, stream.advance(ids, done=True)]) == "yes"


def test_the_beginning_of_a_stop_sequence_that_is_none(parsed):
    stop = parsed.ids("\n###")
    ids = [*parsed.ids("yes"), *stop[:-1], *parsed.ids(" sir")]
    assert "".join(parsed.stream(ids, [stop])) == parsed.parser.text(ids)


def test_segments(parsed):
    response = parsed.parser.response(
        parsed.ids("first ", Output("audio"), Output("image"), "last \n"), 5, stopped=False
    )
    assert (response.finish_reason, response.prompt_tokens) == ("length", 5)
    first, audio, image, last = response.segments
    assert (first.strip(), audio, image, last.strip()) == ("first", Output("audio"), Output("image"), "last")
    assert not last.endswith((" ", "\n")) and response.text == f"{first}{last}".strip()
