"""Comparisons of runs: intervals that are known, and what is refused or said."""

import json

import numpy as np
import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.compare import Side, bootstrap, compare, lines, to_json
from tests.evaluation.small import Brightness, Length


class Wide(Brightness):
    """A figure of many numbers."""

    name = "wide"


def test_the_interval_of_a_mean_is_the_textbook_one():
    """Of paired samples, however much these differ among each other."""
    rng = np.random.default_rng(0)
    samples, gains = rng.normal(50, 30, 400), rng.normal(0.5, 2.0, 400)
    numbers = [np.stack([some, some > 50], 1) for some in (samples, samples + gains)]
    length, longer = bootstrap([Length(), Length()], numbers, seed=1)
    error = 1.96 * gains.std(ddof=1) / 20
    assert length.b - length.a == pytest.approx(gains.mean()) and length.resamples == 1000
    assert length.low == pytest.approx(gains.mean() - error, abs=0.15 * error)
    assert length.high == pytest.approx(gains.mean() + error, abs=0.15 * error)
    assert length.differs and not longer.differs
    assert bootstrap([Length(), Length()], numbers, seed=1) == [length, longer]
    assert bootstrap([Length(), Length()], numbers, seed=2) != [length, longer]
    same, _ = bootstrap([Length(), Length()], [numbers[0]] * 2)
    assert (same.low, same.high, same.differs) == (0, 0, False)


def test_expensive_figures_have_few_resamples():
    rng = np.random.default_rng(0)
    numbers = [rng.normal(0, 1, (300, 7000)), rng.normal(0.01, 1, (300, 7000))]
    (found,) = bootstrap([Wide(), Wide()], numbers)
    error = 1.96 * np.std(numbers[1].mean(1) - numbers[0].mean(1), ddof=1) / 300**0.5
    assert found.resamples == 30 and (found.high - found.low) / 2 == pytest.approx(error, rel=0.4)
    assert (found.high + found.low) / 2 == pytest.approx(found.b - found.a)


def side(folder, ids, values, **changes):
    """A run of Length, with a text of so many characters for each sample."""
    (folder / "numbers").mkdir(parents=True)
    np.save(folder / "numbers" / "length.npy", np.array([[v, 0] for v in values], float))
    (folder / "numbers" / "samples.json").write_text(json.dumps(ids))
    figure = {"name": "Length", "metric": "length", "value": 1.0, "protocol": Length.protocol}
    result = {
        "format": 1, "task": "small", "figures": [figure], "seed": 0, "options": {}, "config": {"batch": 2},
        "protocol": "", "unanswered": 0, "samples_hash": str(ids), "weights": {"llm": "1"},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result | changes))
    return Side.read(str(folder))


def test_samples_that_both_have_are_compared(tmp_path):
    a = side(tmp_path / "a", ["x", "y", "z"], [1, 2, 9])
    b = side(tmp_path / "b", ["z", "x", "w"], [12, 4, 100], seed=3, config={"batch": 4}, weights={"llm": "2"})
    made = []
    found = compare(a, b, lambda ids: made.append(ids) or [Length()])
    length, longer = found.figures
    assert found.samples == 2 and (length.a, length.b) == (5, 8) and (length.low, length.high) == (3, 3)
    assert made == [a.ids, b.ids] and length.differs and not longer.differs
    shown = "\n".join(lines(found))
    for wanted in ("figures are of the 2 that both have", "seed: 0 in A, 3 in B", "config.batch: 2 in A, 4 in B"):
        assert wanted in shown
    assert "[+3.0000, +3.0000] *" in shown and json.loads(to_json(found))["figures"][0]["differs"]
    assert "both are of the same weights" in compare(a, a, lambda ids: [Length()]).notes


def test_what_is_not_compared(tmp_path):
    a = side(tmp_path / "a", ["x", "y"], [1, 2])
    make = lambda ids: [Length()]  # noqa: E731
    with pytest.raises(UserError, match="is a run of small, .* of other"):
        compare(a, side(tmp_path / "b", ["x"], [1], task="other"), make)
    with pytest.raises(UserError, match="have no samples in common"):
        compare(a, side(tmp_path / "c", ["w"], [1]), make)
    figure = a.result["figures"][0]
    for name, changed, message in [
        ("d", {"protocol": "words"}, "not compared: other protocols; A: characters of the text; B: words"),
        ("e", {"value": None}, "not compared: B has no length"),
    ]:
        b = side(tmp_path / name, ["x", "y"], [1, 2], figures=[figure | changed])
        (found,) = compare(a, b, make).figures
        assert found.error == message and message in "\n".join(lines(compare(a, b, make)))
    b = side(tmp_path / "f", ["x", "y"], [1, 2], figures=[figure | {"protocol": "words"}])
    assert "another protocol than this version's" in compare(b, b, make).figures[0].error
    (tmp_path / "a" / "numbers" / "length.npy").write_bytes(b"damaged")
    assert "cannot be read" in compare(a, a, make).figures[0].error
    with pytest.raises(UserError, match="no such file: .*result.json"):
        Side.read(str(tmp_path))
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match="is no result of an evaluation"):
        Side.read(str(tmp_path))
