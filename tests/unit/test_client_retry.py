"""The course of a request: what is tried again, what is not, and what is said at the end."""

from __future__ import annotations

import json
from random import Random

import pytest

from raftkv.client.answers import (
    Answer,
    BadRequest,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    Unavailable,
)
from raftkv.client.retry import IN_FLIGHT_MAX, SPAN_MAX, Accept, Again, Course, Fail, Follow, Numbers, Step


def course(*, write: bool = True, keyed: bool = True) -> Course:
    return Course(write=write, keyed=keyed, random=Random(1))


def refusal(
    status: int, code: str, *, outcome: str = "not_applied", retryable: bool = False, **headers: str
) -> Answer:
    body = json.dumps({"code": code, "outcome": outcome, "retryable": retryable, "detail": ""}).encode()
    return Answer(status, {"content-type": "application/problem+json", **headers}, body)


NO_LEADER = refusal(503, "no_leader", retryable=True)
TIMED_OUT = refusal(504, "commit_timeout", outcome="unknown", retryable=True)


def test_success_and_not_modified_are_results() -> None:
    for status in (200, 201, 202, 304):
        assert course().answered(Answer(status, {}, b"")) == Accept()


def test_what_was_not_applied_is_tried_again_even_without_a_key() -> None:
    for step in (course(keyed=False).answered(NO_LEADER), course(keyed=False).not_sent("refused")):
        assert isinstance(step, Again)


def test_what_may_have_been_applied_is_tried_again_only_under_a_key() -> None:
    for attempt in ("timed out", "lost"):

        def step_of(the: Course, attempt: str = attempt) -> Step:
            return the.lost("reset") if attempt == "lost" else the.answered(TIMED_OUT)

        assert isinstance(step_of(course(keyed=True)), Again)
        step = step_of(course(keyed=False))
        assert isinstance(step, Fail)
        assert isinstance(step.error, OutcomeUnknown)
        assert isinstance(step_of(course(write=False, keyed=False)), Again)


def test_doubt_outlasts_a_later_refusal() -> None:
    """One attempt was lost; that the next was not applied says nothing about the first."""
    doubtful = course()
    doubtful.lost("reset")
    doubtful.answered(NO_LEADER)
    assert isinstance(doubtful.out_of_time(), OutcomeUnknown)


@pytest.mark.parametrize("code", ["idempotency_expired", "idempotency_mismatch", "bad_request"])
def test_a_final_refusal_after_a_lost_attempt_leaves_the_outcome_unknown(code: str) -> None:
    fresh = course().answered(refusal(422, code))
    assert isinstance(fresh, Fail)
    assert isinstance(fresh.error, BadRequest)
    doubtful = course()
    doubtful.lost("reset")
    step = doubtful.answered(refusal(422, code))
    assert isinstance(step, Fail)
    assert isinstance(step.error, OutcomeUnknown)


def test_what_the_state_machine_answered_settles_a_lost_attempt() -> None:
    doubtful = course()
    doubtful.lost("reset")
    step = doubtful.answered(refusal(412, "precondition_failed", etag='"7"'))
    assert isinstance(step, Fail)
    assert isinstance(step.error, PreconditionFailed)
    assert step.error.current == 7
    assert step.error.outcome == "not_applied"


def test_without_doubt_the_deadline_means_not_applied() -> None:
    patient = course()
    patient.answered(NO_LEADER)
    error = patient.out_of_time()
    assert isinstance(error, Unavailable)
    assert error.outcome == "not_applied"
    assert error.problem.code == "no_leader"
    assert isinstance(course().out_of_time(), Unavailable)


def test_a_missing_key_is_not_tried_again() -> None:
    step = course(write=False, keyed=False).answered(refusal(404, "key_not_found"))
    assert isinstance(step, Fail)
    assert isinstance(step.error, NotFound)


def test_in_flight_is_asked_again_and_is_doubt() -> None:
    waiting = course()
    step = waiting.answered(refusal(409, "in_flight", outcome="unknown", retryable=True))
    assert isinstance(step, Again)
    assert isinstance(waiting.out_of_time(), OutcomeUnknown)


def test_a_proxys_5xx_is_doubt_and_its_4xx_is_not() -> None:
    bad_gateway = Answer(502, {"content-type": "text/html"}, b"<h1>Bad Gateway</h1>")
    step = course(keyed=False).answered(bad_gateway)
    assert isinstance(step, Fail)
    assert isinstance(step.error, OutcomeUnknown)
    assert isinstance(course().answered(bad_gateway), Again)
    step = course().answered(Answer(403, {"content-type": "text/html"}, b"no"))
    assert isinstance(step, Fail)
    assert isinstance(step.error, BadRequest)


def test_an_internal_error_of_a_write_is_unknown_and_final() -> None:
    step = course().answered(refusal(500, "internal", outcome="unknown"))
    assert isinstance(step, Fail)
    assert isinstance(step.error, OutcomeUnknown)


def test_redirects_are_followed_by_origin_and_a_circle_ends_in_waiting() -> None:
    circling = course()
    answer = Answer(307, {"location": "http://h:1/v1/kv/k?x=1"}, b"")
    for _ in range(5):
        assert circling.answered(answer) == Follow("http://h:1")
    assert isinstance(circling.answered(answer), Again)
    assert isinstance(course().answered(Answer(307, {}, b"")), Again)
    assert isinstance(course().answered(Answer(307, {"location": "javascript:alert(1)"}, b"")), Again)


def test_waiting_grows_with_jitter_and_stays_bounded() -> None:
    waiting = course()
    delays = []
    for _ in range(40):
        step = waiting.answered(NO_LEADER)
        assert isinstance(step, Again)
        delays.append(step.delay_s)
    assert 0.01 <= delays[0] <= 0.02
    assert all(0.25 <= delay <= 0.5 for delay in delays[10:])
    assert len(set(delays[10:])) > 20


def test_retry_after_of_a_full_queue_is_obeyed_within_a_bound() -> None:
    for text, least, most in (("1", 1, 1), ("3600", 5, 5), ("soon", 0, 1)):
        step = course().answered(refusal(429, "overloaded", retryable=True, **{"retry-after": text}))
        assert isinstance(step, Again)
        assert least <= step.delay_s <= most


def test_numbers_rise_from_one_and_bound_what_is_under_way() -> None:
    numbers = Numbers()
    taken = [numbers.take() for _ in range(IN_FLIGHT_MAX)]
    assert taken == list(range(1, IN_FLIGHT_MAX + 1))
    assert not numbers.free()
    numbers.done(17)
    assert numbers.take() == IN_FLIGHT_MAX + 1


def test_no_number_lags_behind_by_more_than_the_window() -> None:
    """The cluster forgets what is 1,024 behind: an old write still on its way holds the new ones back."""
    numbers = Numbers()
    oldest = numbers.take()
    highest = oldest
    while numbers.free():
        highest = numbers.take()
        numbers.done(highest)
    assert highest - oldest == SPAN_MAX - 1
    numbers.done(oldest)
    assert numbers.free()


def test_who_is_not_patient_learns_of_the_first_failure() -> None:
    course = Course(write=False, keyed=False, random=Random(1), patient=False)
    step = course.not_sent("refused")
    assert isinstance(step, Fail)
    assert isinstance(step.error, Unavailable)
    assert step.error.problem.code == "unreachable"
