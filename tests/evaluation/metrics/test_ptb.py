"""Tokens against the Java program that pycocoevalcap runs."""

import pathlib
import random
import shutil
import string
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.evaluation.metrics.ptb import PUNCTUATION, tokenize

PIECES = """
    a the A man dog don't I U.S U.S. etc etc. Mr. st. no. no 5 1,000 3.5 1/2 12:30 it's o'clock dogs' cannot gonna B B.
    rock'n'roll black-and-white t-shirt The It A&B café naïve 90's '90s a.m. p.m vs. fig. x-ray www.foo.com d'art 's US
    foo@bar.com #tag @me :) ... e.g. & % $5 £5 50% mid anti- pro- 1st twenty-five n't OK Dr jr. ft. in. - -- / \" ' ( )
    [ ] ’ ‘ “ ” — – , . ! ? ; : * + = _ <b> < > ~ y'all ma'am isn’t 'tis 1-800-555-1234 and/or É ½ … ¢ ' ` '' ``
""".split()


@pytest.mark.parametrize(
    ("caption", "tokens"),  # what the Java program gives
    [
        ("A man's dog doesn't cannot.", "a man 's dog does n't can not"),
        ('He said "yes, (maybe)"!', "he said yes -lrb- maybe -rrb-"),
        ("Plan B. The u.s. at 3 p.m.", "plan b the u.s. at 3 p.m."),
        ("The black-and-white t-shirt costs $1,000.50, not £5", "the black-and-white t-shirt costs $ 1,000.50 not # 5"),
        ("1 1/2 cups & 3/4 of AT&T's r&b", "1\xa01/2 cups & 3/4 of at&t 's r & b"),
        ("rock'n'roll in the '90s, y'all -- o'clock...", "rock 'n' roll in the '90s y' all o'clock"),
        ("it’s a café — naïve", "it 's a café naïve"),
        ("No. 5 st. etc.a mr.x", "no. 5 st. etc. a mr.x"),
        ("hello!! what?! :) www.foo.com/bar a@b.c #one", "hello !! what ?! :-rrb- www.foo.com/bar a@b.c #one"),
        ("two\nlines\r\nhere", "two lines here"),
        ("", ""), (" . ", ""), ("\x00\u2045", ""),
    ],
)  # fmt: skip
def test_tokens(caption, tokens):
    assert tokenize(caption) == tokens


@pytest.fixture(scope="module")
def java(tmp_path_factory):
    """A function that gives the tokens of texts without line ends by the Java program."""
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = pathlib.Path(module.__file__).with_name("stanford-corenlp-3.4.1.jar")
    program = shutil.which("java")
    if program is None:
        pytest.skip("Java is missing")

    def tokens(texts):
        file = tmp_path_factory.mktemp("texts") / "texts"
        # A line after each text, so that the next one's first word has no influence.
        file.write_text("".join(f"{text}\nqzq\n" for text in texts))
        command = [
            program,
            "-cp",
            jar,
            "edu.stanford.nlp.process.PTBTokenizer",
        ]
        done = subprocess.run([*command, "-preserveLines", "-lowerCase", file], capture_output=True, check=True)
        found = [line.split(" ") for line in done.stdout.decode().split("\n")[::2]]
        return [" ".join(token for token in line if token and token not in PUNCTUATION) for line in found]

    return tokens


def test_random_texts_have_the_tokens_of_the_original(java):
    draw = random.Random(0)
    signs = string.ascii_letters + string.digits + string.punctuation + " " * 15 + "aeiou'.,-" * 3
    texts = ["".join(draw.choices(signs, k=draw.randrange(1, 12))) for _ in range(1500)]
    texts += [
        "".join(draw.choice(PIECES) + draw.choice(["", " ", " ", " ", ". ", ","]) for _ in range(draw.randrange(1, 8)))
        for _ in range(1500)
    ]
    assert [(text, tokenize(text)) for text in texts] == list(zip(texts, java(texts)))


SPECIAL = """assoc attys bancorp calif cannot comdr gonna gotta lemme gimme wanna lieut messrs profs supts thurs treas
    sects paras""".split()
WORDS = st.text(string.ascii_letters, min_size=5, max_size=12).filter(lambda word: word.lower() not in SPECIAL)


@given(st.lists(WORDS, min_size=1), st.sampled_from(["", ".", "!", "?", "...", "'", '"', " -"]))
def test_plain_words_stay_and_punctuation_goes(words, end):
    assert tokenize(" ".join(words) + end) == " ".join(words).lower()
    assert tokenize(", ".join(words) + end) == " ".join(words).lower()


@settings(max_examples=40)
@given(st.text(max_size=30))
def test_any_text_has_tokens_in_lower_case_without_punctuation(text):
    tokens = tokenize(text).split(" ")
    assert not PUNCTUATION & set(tokens) and tokens == [token.lower() for token in tokens]
