import threading
import time

import pytest

from imagery2flow.encoder.loading import ahead


def test_what_is_made_ahead_comes_in_order():
    def make(number):
        time.sleep(0.002 * (number % 3))
        return number**2

    assert list(ahead(make, range(20), threads=4, depth=5)) == [number**2 for number in range(20)]


def test_no_more_is_made_ahead_than_asked_for():
    made, highest = [], []
    for taken, _ in enumerate(ahead(made.append, range(30), threads=3, depth=4), start=1):
        time.sleep(0.003)
        highest.append(len(made) - taken)
    assert len(made) == 30
    assert 1 <= max(highest) <= 4


def test_an_error_reaches_whoever_takes_and_no_thread_stays():
    def make(number):
        if number == 3:
            raise ValueError("patch 3 is broken")
        return number

    before = threading.active_count()
    with pytest.raises(ValueError, match="patch 3 is broken"):
        list(ahead(make, range(30), threads=2, depth=4))
    assert threading.active_count() == before


def test_whoever_stops_early_leaves_no_thread_behind():
    before, steps = threading.active_count(), ahead(lambda number: number, range(100), threads=2, depth=4)
    assert next(steps) == 0
    steps.close()
    assert threading.active_count() == before
