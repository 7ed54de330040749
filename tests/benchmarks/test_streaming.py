"""The streaming benchmark counts images, and says what is wrong in one line."""

import itertools
import time

import pytest

from benchmarks import streaming
from benchmarks.streaming import Rates


def test_rates_are_images_a_second(monkeypatch):
    monkeypatch.setattr(streaming, "ROUND_SECONDS", 0.2)
    pixels = (time.sleep(0.005) or number for number in itertools.count())
    rates = streaming.measure(lambda raw: time.sleep(0.02), pixels, images=7, ahead=1, rounds=1)
    # A busy machine sleeps longer than it is told to.
    for found, most in zip(rates, (7 / 0.02, 7 / 0.005, 7 / 0.025), strict=True):
        assert most / 3 < found[0] <= most


def test_medians_are_compared():
    options = streaming.parse(["--workers=3"])
    rates = Rates(step=[100, 110, 900], stream=[330, 1, 400], fed=[88, 88, 88])
    rows = dict(streaming.rows(rates, options, "some images", 1.5))
    assert rows["step alone"] == "110 (100 to 900) images/s"
    assert rows["3 workers alone"] == "330 (1 to 400) images/s"
    assert rows["ratio"] == "3.00"
    assert rows["both at once"].endswith("0.80 of the step alone")


def test_what_is_wrong_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(streaming, "use_every_core", lambda tasks: None)
    assert streaming.main(["--dataset=nothing_like_it", f"--data_dir={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith("error: 'nothing_like_it' is no known data set")
    with pytest.raises(SystemExit, match="2"):
        streaming.parse(["--workers=-1"])
