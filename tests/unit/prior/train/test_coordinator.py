"""The coordinator of a training on Ray, called directly instead of as an actor."""

from __future__ import annotations

import pickle

import pytest

from priorkit.pipeline.errors import PriorkitError
from priorkit.prior.train.coordinator import Coordinator, RayWatch, TakenOver
from priorkit.prior.train.progress import Outcome


def test_the_fifth_start_without_a_step_fails() -> None:
    coordinator = Coordinator()
    for attempt in range(1, 5):
        assert coordinator.begin() == attempt
        assert not coordinator.status().is_over
    coordinator.begin()
    error = coordinator.status().error
    assert error is not None
    with pytest.raises(PriorkitError, match="died 4 times in a row without a new step"):
        raise pickle.loads(error)[0]


def test_a_new_step_resets_the_count_of_starts() -> None:
    coordinator = Coordinator()
    for attempt in range(1, 30):
        assert coordinator.begin() == attempt
        if attempt % 4 == 0:
            assert coordinator.report(attempt, attempt, "") is False
    assert not coordinator.status().is_over
    assert coordinator.status().step == 28


def test_repeated_steps_are_no_progress() -> None:
    """Workers that die at step 5 every time, before the next checkpoint, would otherwise restart without end."""
    coordinator = Coordinator()
    for step in (5, 3, 5, 3, 5, 3):
        attempt = coordinator.begin()
        assert not coordinator.status().is_over
        coordinator.report(attempt, step, "")
    coordinator.begin()
    assert coordinator.status().is_over


def test_reports_of_an_earlier_attempt_are_ignored() -> None:
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


def test_the_first_error_is_kept() -> None:
    coordinator = Coordinator()
    for number in range(3):
        coordinator.fail(pickle.dumps(number))
    assert pickle.loads(coordinator.status().error or b"") == 0


def test_a_stop_request_is_the_answer_to_a_report() -> None:
    coordinator = Coordinator()
    attempt = coordinator.begin()
    assert coordinator.report(attempt, 1, "") is False
    coordinator.stop()
    assert coordinator.report(attempt, 2, "") is True


class _Remote:
    """Stand-in for a method of a Ray actor: `.remote` calls it, and `get` returns the result."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.report = self
        self._coordinator = coordinator

    def remote(self, attempt: int, step: int, note: str) -> bool | None:
        return self._coordinator.report(attempt, step, note)

    @staticmethod
    def get(answer: bool | None) -> bool | None:
        return answer


def test_a_rank_that_was_taken_over_fails_before_it_writes() -> None:
    coordinator = Coordinator()
    remote = _Remote(coordinator)
    watch = RayWatch(remote, remote, coordinator.begin())
    watch.report(3, "")
    watch.before_writing()
    assert coordinator.status().step == 3
    coordinator.begin()
    with pytest.raises(TakenOver):
        watch.before_writing()


def test_other_ranks_do_not_use_the_coordinator() -> None:
    watch = RayWatch(None, None, None)
    watch.report(3, "")
    assert not watch.should_stop()
