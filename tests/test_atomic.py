"""Files are there whole, or as they were."""

import os

import pytest

from alpha_clip import atomic


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "kept.txt"
    atomic.write_text(path, "before")
    with atomic.replacing(path, sync=True) as part:
        part.write_bytes("é".encode())
        assert path.read_text() == "before" and part.name.startswith(f".kept.txt.{os.getpid()}.")
    assert path.read_text("utf-8") == "é" and os.listdir(tmp_path) == ["kept.txt"]


@pytest.mark.parametrize("begun", [True, False])
def test_after_an_error_what_was_there_still_is_and_nothing_else(tmp_path, begun):
    path = tmp_path / "kept.txt"
    path.write_text("before")

    def write():
        with atomic.replacing(path) as part:
            if begun:
                part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["kept.txt"]


def test_two_at_once_have_names_of_their_own(tmp_path):
    path = tmp_path / "kept.txt"
    with atomic.replacing(path) as first, atomic.replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["kept.txt"]
