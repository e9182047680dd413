"""Lists of data files: names, weights, and what they give to a run."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.data.order import BatchOrder
from nextgpt_jax.data.readers import expand, read_samples
from nextgpt_jax.data.sources import Mixture, Source, integer_shares, mixture_of, parse_sources
from nextgpt_jax.errors import UserError
from tests.data.test_examples import write


@pytest.mark.parametrize(
    "text, expected",
    [
        ("llava.json", ["llava"]),
        ("a/llava.json:0.5, b/t2m/*.json:.3,c/cc3m-{00..12}.tar:1", ["llava", "t2m", "cc3m"]),
        ("a/train.json,b/train.json,train.json,train.json", ["a-train", "b-train", "train", "train-2"]),
        ("a/train.json,b/train.json", ["a-train", "b-train"]),
        ("gs://bucket/mosit.jsonl:2,folder/", ["mosit", "folder"]),
        (r"C:\\data\\x.json,*.tar,a{1..2}/x.json", None),
        ("", []),
    ],
)
def test_sources_are_named_after_their_files(text, expected):
    if text.startswith("gs"):
        with pytest.raises(UserError, match="folder/ has no weight, but others have: write folder/:WEIGHT"):
            parse_sources(text)
        text = text.replace("folder/", "folder/:1")
    found = parse_sources(text)
    assert expected is None or [source.name for source in found] == expected
    assert len({source.name for source in found}) == len(found)


@pytest.mark.parametrize("weight", ["0", "-1", "half", "nan", "1e9", "", "1/3", "9" * 30])
def test_what_is_no_weight_is_refused(weight):
    if "/" in weight:  # part of a path
        assert parse_sources(f"a.json:{weight}")[0].weight is None
        return
    with pytest.raises(UserError, match="is no weight: write a positive number"):
        parse_sources(f"a.json:{weight}")


def test_a_file_may_be_called_like_a_weight(tmp_path):
    path = write(tmp_path / "a:2", [{"caption": "x", "image_name": "y.png"}])
    assert parse_sources(f"{path}:0.5") == [Source("a:2", path, Fraction(1, 2))]
    assert parse_sources(path) == [Source("a:2", path, None)]
    assert expand(f"{path}:0.5") == [path] and len(read_samples("captioning", f"{path}:0.5")) == 1


@given(st.lists(st.decimals("0.001", 1000, places=3), min_size=1, max_size=8))
def test_shares_are_exactly_the_weights(weights):
    fractions = [Fraction(weight) for weight in weights]
    shares = integer_shares(fractions)
    assert all(share * sum(fractions) == weight * sum(shares) for share, weight in zip(shares, fractions, strict=True))


def test_weights_with_too_many_digits_are_refused():
    with pytest.raises(UserError, match="too many digits"):
        integer_shares([Fraction("0.123456789"), Fraction("999999999.1")])


def test_a_mixture_gives_what_its_weights_say(tmp_path):
    """To the example; and 1,000 batches of the smaller source's samples are each of them equally often."""
    for name, count in (("a", 10), ("b", 30)):
        write(tmp_path / f"{name}.json", [{"caption": f"{name}{i}", "image_name": "x.png"} for i in range(count)])
    samples = read_samples("captioning", f"{tmp_path}/a.json:0.25,{tmp_path}/b.json:0.75")
    mixture = samples.mixture()
    assert mixture.names == ("a", "b") and mixture.shares == (1, 3)
    assert mixture.describe(80) == (
        "sources: a (10 samples, 25.0% of the examples, 2 epochs), b (30 samples, 75.0% of the examples, 2 epochs)"
    )
    for alternate in (False, True):
        order = BatchOrder(mixture.sources, 8, 0, shares=mixture.shares, alternate=alternate)
        drawn = np.concatenate([order(number) for number in range(1000)])
        assert np.bincount(mixture.sources[drawn]).tolist() == [2000, 6000]
        assert (np.bincount(drawn) == 200).all()


def test_a_source_without_usable_samples_is_refused():
    sources = [Source("a", "a.json", Fraction(1)), Source("b", "b.json", Fraction(2))]
    with pytest.raises(UserError, match=r"b\.json: none of its records can be used"):
        mixture_of(sources, [2, 3], np.array([0, 1]))
    plain = mixture_of([source._replace(weight=None) for source in sources], [2, 3], np.array([0, 1, 4]))
    assert plain.shares is None and plain.sources.tolist() == [0, 0, 1]
    assert Mixture(("a",), None, np.zeros(4, int)).describe(8).endswith("100.0% of the examples, 2 epochs)")
