"""The cache returns what was built, survives broken files, and never stands in the way."""

import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metajax.data import cache
from metajax.data.images import LabelledImages


def _images(seed: int = 0) -> LabelledImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    counts = np.array([2, 3], np.int32)
    return LabelledImages(pixels, counts, ("a", "ä/β"), ("first", ""))


def _assert_same(left: LabelledImages, right: LabelledImages):
    assert left.images.dtype == right.images.dtype and left.counts.dtype == right.counts.dtype
    np.testing.assert_array_equal(left.images, right.images)
    np.testing.assert_array_equal(left.counts, right.counts)
    assert (left.names, left.groups) == (right.names, right.groups)


def _forbidden() -> LabelledImages:
    raise AssertionError("built although the cache has it")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("METAJAX_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "metajax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_dir() == tmp_path / "home" / ".cache" / "metajax"


def test_second_call_reads_what_the_first_built(folder):
    _assert_same(cache.cached("some data/1.0 28", _images), _images())
    _assert_same(cache.cached("some data/1.0 28", _forbidden), _images())
    (file,) = folder.iterdir()
    assert file.name.startswith("some-data-1.0-28-") and file.suffix == ".npz"


def test_different_keys_have_different_files(folder):
    cache.cached("a b", _images)
    _assert_same(cache.cached("a-b", lambda: _images(1)), _images(1))
    assert len(list(folder.iterdir())) == 2


def test_file_of_another_key_is_not_used(folder):
    cache.cached("one", _images)
    cache.cached("two", lambda: _images(1))
    one, two = sorted(folder.iterdir())
    one.write_bytes(two.read_bytes())
    _assert_same(cache.cached("one", _images), _images())


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "flipped"])
def test_broken_file_is_built_again(folder, damage):
    cache.cached("key", _images)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        at = content.index(_images().images.tobytes())
        content[at + 7] ^= 1
    broken = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "garbage": b"PK" + b"x" * 99,
        "flipped": content,
    }
    file.write_bytes(broken[damage])
    _assert_same(cache.cached("key", _images), _images())
    _assert_same(cache.cached("key", _forbidden), _images())


class _Trap:
    """An object whose unpickling is noticed."""

    sprung = False

    def __reduce__(self):
        return (setattr, (_Trap, "sprung", True))


@pytest.mark.filterwarnings("ignore")
def test_pickles_are_not_opened(folder):
    cache.cached("key", _images)
    (file,) = folder.iterdir()
    trap = np.array([_Trap()], object)
    np.savez(file, images=trap, counts=trap, text=trap)
    _assert_same(cache.cached("key", _images), _images())
    assert not _Trap.sprung


def test_inconsistent_file_is_built_again(folder):
    cache.cached("key", lambda: _images()._replace(counts=np.array([2, 2], np.int32)))
    _assert_same(cache.cached("key", _images), _images())


def test_failed_build_leaves_nothing(folder):
    def fail():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        cache.cached("key", fail)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize(
    "name", ["file/cache", "a" * 300, "b" * 5000, "loop", "~nobody-of-this-name"]
)
def test_works_without_a_writable_folder_and_warns_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "~nobody-of-this-name").write_text("")
    monkeypatch.setenv("METAJAX_CACHE_DIR", name)
    cache._warn_unwritable.cache_clear()
    with pytest.warns(UserWarning, match="METAJAX_CACHE_DIR") as warned:
        _assert_same(cache.cached("key", _images), _images())
    assert len(warned) == 1 and len(str(warned[0].message)) < 500
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _assert_same(cache.cached("key", lambda: _images(1)), _images(1))


_FILL = """
import sys
import numpy as np
from metajax.episodes import cache
from metajax.episodes.images import LabelledImages

def build():
    print("building", flush=True)
    sys.stdin.readline()  # until both have found no file
    pixels = np.arange(60_000, dtype=np.uint8).reshape(600, 10, 10, 1)
    return LabelledImages(pixels, np.array([200, 400], np.int32), ("a", "b"), ("", ""))

print(cache.cached("key", build).fingerprint(), flush=True)
"""


def test_two_processes_that_fill_it_at_once_both_end_right(folder):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", _FILL], **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["building\n"] * 2
    for process in both:  # now both write
        process.stdin.write("\n")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert found == {cache.cached("key", _forbidden).fingerprint() + "\n"}
    assert [file.suffix for file in folder.iterdir()] == [".npz"]


def test_many_at_once_all_get_whole_images(folder):
    barrier = threading.Barrier(8)

    def build():
        barrier.wait()  # All eight find no file, build, and write at about the same time.
        return _images()

    with ThreadPoolExecutor(8) as pool:
        for images in pool.map(lambda _: cache.cached("key", build), range(8)):
            _assert_same(images, _images())
    assert [file.suffix for file in folder.iterdir()] == [".npz"]
    _assert_same(cache.cached("key", _forbidden), _images())
