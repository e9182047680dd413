import numpy as np
import pytest

pytest.importorskip("sklearn")
from examples.keypad import judge, world  # noqa: E402


def rng():
    return np.random.default_rng(5)


def test_every_key_is_heard_through_noise():
    random = rng()
    heard = [(key, judge.key(world.tone(key, random), world.RATE)) for key in range(10) for _ in range(10)]
    assert all(key == answer for key, answer in heard)


def test_tones_differ_and_stay_in_range():
    random = rng()
    one, other = world.tone(3, random), world.tone(3, random)
    assert one.dtype == np.float32 and len(one) != len(other)
    assert max(np.abs(one).max(), np.abs(other).max()) <= 1.0
    assert 0.4 * world.RATE <= len(one) <= 1.3 * world.RATE


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_keys_are_heard_at_any_rate(rate):
    time = np.arange(rate // 2) / rate
    for key in range(10):
        row, column = world.frequencies(key)
        wave = 0.3 * np.sin(2 * np.pi * row * time) + 0.3 * np.sin(2 * np.pi * column * time + 1.0)
        assert judge.key(wave.astype(np.float32), rate) == key


def test_clean_tones_are_of_their_key_from_end_to_end():
    wave = world.clean_tone(7, 0.5)
    assert len(wave) == 4000 and judge.key(wave, world.RATE) == 7
    assert judge.key(wave[:800], world.RATE) == 7 and judge.key(wave[-800:], world.RATE) == 7


def _sines(*parts, seconds=0.5):
    time = np.arange(int(seconds * world.RATE)) / world.RATE
    return sum(level * np.sin(2 * np.pi * hertz * time) for hertz, level in parts).astype(np.float32)


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(4000, np.float32),
        np.zeros(10, np.float32),
        np.full(4000, np.nan, np.float32),
        _sines((770, 0.4)),
        _sines((1336, 0.4)),
        _sines((770, 0.4), (1336, 0.1)),  # 12 dB of twist
        _sines((770 * 1.03, 0.4), (1336 * 1.03, 0.4)),
        _sines((770, 0.3), (852, 0.3), (1336, 0.3)),
        _sines((770, 0.3), (1209, 0.3), (1336, 0.3)),
        _sines((770, 0.2), (1336, 0.2), (440, 0.5)),
        _sines((770, 0.3), (1633, 0.3)),  # key B
        _sines((941, 0.3), (1209, 0.3)),  # the star
        _sines((770, 0.4), (1336, 0.4), seconds=0.03),
        0.1 * np.random.default_rng(0).standard_normal(4000).astype(np.float32),
        np.concatenate([world.clean_tone(key, 0.1) for key in (1, 5, 9)]),
    ],
    ids=lambda wave: "",
)
def test_what_is_no_tone_of_one_digit_is_refused(wave):
    assert judge.key(wave, world.RATE) is None


def test_a_little_off_is_still_heard():
    for off in (0.987, 1.013):
        assert judge.key(_sines((770 * off, 0.3), (1336 * off, 0.3)), world.RATE) == 5


def test_movies_show_their_digit_and_direction():
    ink, labels = world.ink()[world.TRAIN], world.scans()[1][world.TRAIN]
    random, right, count = rng(), 0, 0
    for row in range(0, 400, 20):
        for direction in world.STEPS:
            frames = world.movie(ink[row], direction, random)
            assert frames.shape == (world.FRAMES, world.SIZE, world.SIZE, 3) and frames.dtype == np.uint8
            assert judge.motion(frames) == direction
            right += judge.moving_digit(frames) == labels[row]
            count += 1
    assert right >= 0.95 * count


def test_movies_move_steadily_and_stay_on_the_paper():
    ink = world.ink()[:20]
    moving = world.moving(ink, ["right"] * 20, rng())
    amount = moving.sum((2, 3))
    assert (np.ptp(amount, axis=1) < 0.1 * amount.mean(1)).all()
    centre = moving.sum(2) @ np.arange(world.SIZE) / amount
    steps = np.diff(centre, axis=1)
    assert (np.abs(steps - steps.mean(1, keepdims=True)) < 0.3).all() and (7 < 7 * steps.mean(1)).all()


def test_first_and_last_frame_are_those_of_the_whole_movie():
    ink = world.ink()[:4]
    whole = world.moving(ink, ["up"] * 4, rng())
    ends = world.moving(ink, ["up"] * 4, rng(), frames=2)
    np.testing.assert_allclose(whole[:, [0, -1]], ends, atol=1e-6)


def test_movies_seen_backwards_go_the_other_way():
    frames = world.movie(world.ink()[0], "down", rng())
    assert judge.motion(frames[::-1]) == "up"


def test_what_does_not_move_one_way_has_no_direction():
    ink = world.ink()[0]
    still = np.repeat(world.scans()[0][:1], 8, axis=0)
    blank = world.paper(np.zeros((8, 32, 32)))
    looked_at = np.linspace(20.0, 11.0, 8)[:, None] * np.ones(2)
    askew = world.paper(world.zoomed(np.repeat(ink[None], 8, axis=0), looked_at, np.full(8, 0.6)))
    vanishing = world.movie(ink, "left", rng())
    vanishing[4:] = blank[0]
    assert [judge.motion(frames) for frames in (still, blank, askew, vanishing)] == [None] * 4
    assert judge.moving_digit(blank) is None


def test_ink_is_what_was_painted():
    ink = world.ink()[:3]
    np.testing.assert_allclose(world.inked(world.paper(ink)), ink, atol=0.01)
