"""Whose turn it is among replies that are made at once."""

from __future__ import annotations

import contextlib
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from slm.scheduling import Scheduler


@settings(deadline=None, max_examples=20)
@given(dues=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_who_runs_out_of_sound_first_goes_first(dues: list[int]) -> None:
    scheduler, order = Scheduler(1), []

    def work(number: int, due: int) -> None:
        with scheduler.core(due):
            order.append((due, number))

    with scheduler.core(0.0):
        threads = []
        for number, due in enumerate(dues):
            threads.append(threading.Thread(target=work, args=(number, due)))
            threads[-1].start()
            while scheduler.waiting <= number:
                time.sleep(0.0005)
    for thread in threads:
        thread.join(5)
    assert order == sorted(order)
    assert len(order) == len(dues)


def test_so_many_at_a_time_and_a_failure_frees_its_core() -> None:
    scheduler, inside, most = Scheduler(2), 0, []
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside
        with contextlib.suppress(ValueError), scheduler.core(time.perf_counter()):
            with lock:
                inside += 1
                most.append(inside)
            time.sleep(0.005)
            with lock:
                inside -= 1
            raise ValueError

    threads = [threading.Thread(target=work) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(most) == 9
    assert max(most) == 2
