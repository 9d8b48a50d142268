"""The coordinator of a training on Ray, called as its actor is."""

from __future__ import annotations

import pickle

import pytest

from priorkit.pipeline.errors import PriorkitError
from priorkit.prior.train.coordinator import Coordinator, RayWatch, TakenOver
from priorkit.prior.train.progress import Outcome


def test_four_starts_without_a_step_are_borne_and_the_fifth_is_not() -> None:
    coordinator = Coordinator()
    for attempt in range(1, 5):
        assert coordinator.begin() == attempt
        assert not coordinator.status().is_over
    coordinator.begin()
    error = coordinator.status().error
    assert error is not None
    with pytest.raises(PriorkitError, match="died 4 times in a row before they had made a step more"):
        raise pickle.loads(error)[0]


def test_a_step_more_starts_the_count_anew() -> None:
    coordinator = Coordinator()
    for attempt in range(1, 30):
        assert coordinator.begin() == attempt
        if attempt % 4 == 0:
            assert coordinator.report(attempt, attempt, "") is False
    assert not coordinator.status().is_over
    assert coordinator.status().step == 28


def test_steps_that_are_made_again_are_no_progress() -> None:
    """Workers that die at step 5 each time, before the next checkpoint, would go on for ever."""
    coordinator = Coordinator()
    for step in (5, 3, 5, 3, 5, 3):
        attempt = coordinator.begin()
        assert not coordinator.status().is_over
        coordinator.report(attempt, step, "")
    coordinator.begin()
    assert coordinator.status().is_over


def test_one_that_was_taken_over_is_not_listened_to() -> None:
    coordinator = Coordinator()
    first, second = coordinator.begin(), coordinator.begin()
    assert coordinator.report(second, 7, "new") is False
    assert coordinator.report(first, 9, "old") is None
    coordinator.finish(first, Outcome(step=9, first_step=0, stopped=False, record=None))
    assert (coordinator.status().step, coordinator.status().note, coordinator.status().outcome) == (7, "new", None)


def test_the_outcome_counts_from_the_first_step_of_the_first_attempt() -> None:
    coordinator = Coordinator()
    coordinator.report(coordinator.begin(), 10, "")
    coordinator.report(last := coordinator.begin(), 15, "")
    coordinator.finish(last, Outcome(step=20, first_step=12, stopped=False, record=None))
    assert coordinator.status().outcome == Outcome(step=20, first_step=10, stopped=False, record=None)
    assert coordinator.status().is_over


def test_the_first_error_counts() -> None:
    coordinator = Coordinator()
    for number in range(3):
        coordinator.fail(pickle.dumps(number))
    assert pickle.loads(coordinator.status().error or b"") == 0


def test_a_request_to_stop_is_passed_on() -> None:
    coordinator = Coordinator()
    attempt = coordinator.begin()
    assert coordinator.report(attempt, 1, "") is False
    coordinator.stop()
    assert coordinator.report(attempt, 2, "") is True


class _Remote:
    """A method as Ray has it: called by `.remote`, whose answer `get` returns."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.report = self
        self._coordinator = coordinator

    def remote(self, attempt: int, step: int, note: str) -> bool | None:
        return self._coordinator.report(attempt, step, note)

    @staticmethod
    def get(answer: bool | None) -> bool | None:
        return answer


def test_a_rank_that_was_taken_over_stops_before_it_writes() -> None:
    coordinator = Coordinator()
    remote = _Remote(coordinator)
    watch = RayWatch(remote, remote, coordinator.begin())
    watch.report(3, "")
    watch.before_writing()
    assert coordinator.status().step == 3
    coordinator.begin()
    with pytest.raises(TakenOver):
        watch.before_writing()


def test_a_rank_that_is_not_the_first_does_not_ask() -> None:
    watch = RayWatch(None, None, None)
    watch.report(3, "")
    assert not watch.should_stop()
