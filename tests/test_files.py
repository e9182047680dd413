"""Files that are whole or not there."""

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.files import atomic_write, reading


def test_writes_appear_when_they_are_done(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failed_writes_leave_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)) as caught, atomic_write(path) as file:
        file.write_text("new")
        raise error
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} can't be written: No space left on device"
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("a" * 300) / "a"):
        with pytest.raises(UserError, match=f"{path} can't be written: "), atomic_write(path) as file:
            file.write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_reading_names_the_file_and_the_first_line(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError, match=f"^no such poem: {path}$"), reading(path, "poem"):
        raise AssertionError
    path.touch()
    for error, reason in [(ValueError("it is bad\nvery bad"), "it is bad"), (KeyError(), "KeyError")]:
        with pytest.raises(UserError, match=f"^{path} is not a readable poem: {reason}$"), reading(path, "poem"):
            raise error
    with pytest.raises(UserError, match="^mine$"), reading(path, "poem"):
        raise UserError("mine")
