"""Claims about how many requests a server gets: it grows while it answers promptly, and shrinks when it is too much."""

from __future__ import annotations

import math

import pytest
from httpx2 import Headers

from distill.endpoints.servers.pace import START, ConcurrencyLimit, RateLimit
from distill.endpoints.servers.server import (
    DRAINED_AFTER,
    FIRST_REST_S,
    Server,
    ServerSettings,
    retry_after_s,
)
from distill.endpoints.servers.server_fields import ServerFields


def saturated(limit: ConcurrencyLimit) -> ConcurrencyLimit:
    limit.in_flight = int(limit.limit)
    return limit


def test_the_limit_grows_with_each_prompt_beginning_up_to_the_most() -> None:
    limit = ConcurrencyLimit(256)
    for _ in range(1000):
        saturated(limit).began(0.01, limit.epoch)
    assert limit.limit == 256


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limit = ConcurrencyLimit(256)
    limit.in_flight = START - 1
    for _ in range(100):
        limit.began(0.01, limit.epoch)
    assert limit.limit == START


def test_single_failures_cut_nothing_but_many_do_and_only_once_for_those_in_flight_together() -> None:
    limit = ConcurrencyLimit(64)
    for number in range(1, 400):
        epoch = limit.epoch
        if number % 20 == 0:
            limit.failed(epoch)
        else:
            saturated(limit).began(0.01, epoch)
    assert limit.limit == 64 and limit.epoch == 0
    for _ in range(30):
        limit.refused(0)
    assert limit.epoch == 1 and limit.limit == pytest.approx(0.7 * 64)


def test_refusals_cut_down_to_one_and_failures_to_the_start() -> None:
    refused, failing = ConcurrencyLimit(64), ConcurrencyLimit(64)
    for _ in range(200):
        refused.refused(refused.epoch)
        failing.failed(failing.epoch)
    assert refused.limit == 1 and failing.limit == START


def test_a_queue_stops_the_growth_and_a_long_one_shrinks_it() -> None:
    limit = ConcurrencyLimit(256)
    for _ in range(20):
        saturated(limit).began(0.05, 0)
    before = limit.limit
    for _ in range(20):
        saturated(limit).began(6.0, 0)
    assert limit.limit == before and limit.epoch == 0
    saturated(limit).began(60.0, 0)
    assert limit.limit < before and limit.epoch == 1


def test_a_slow_server_that_always_takes_its_time_is_not_taken_for_a_queue() -> None:
    limit = ConcurrencyLimit(64)
    for _ in range(100):
        saturated(limit).began(30.0, limit.epoch)
    assert limit.limit > START


def test_requests_and_tokens_are_spaced_over_the_minute() -> None:
    requests = RateLimit(requests_per_minute=120)
    sent_at, now = [], 100.0
    for _ in range(10):
        now += requests.wait_s(now)
        requests.sent(1.0, now)
        sent_at.append(now)
    assert sent_at[-1] - sent_at[0] == pytest.approx(4.5)
    tokens = RateLimit(tokens_per_minute=6000)
    tokens.sent(1000, 0.0)
    assert tokens.wait_s(0.0) == pytest.approx(10.0) and tokens.wait_s(10.0) == 0.0
    tokens.correct(1000, 100)
    assert tokens.wait_s(1.0) == 0.0
    assert RateLimit().wait_s(5.0) == 0.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT", "Date": "Fri, 31 Dec 1999 23:59:49 GMT"}, 10.0),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "inf"}, 0.0),
        ({"Retry-After": "Fri, 99 Dec 1999 23:59:59 GMT"}, 0.0),
        ({}, 0.0),
    ],
)
def test_retry_after_is_read_in_both_forms_and_a_date_by_the_servers_own_clock(
    headers: dict[str, str], seconds: float
) -> None:
    assert retry_after_s(Headers(headers)) == seconds


def server(now: list[float]) -> Server:
    settings = ServerSettings(url="http://127.0.0.1:9/v1", model="m")
    return Server(settings=settings, fields=ServerFields(settings.url), most=64, now=lambda: now[0])


def test_a_server_that_fails_in_a_row_rests_ever_longer_and_is_tried_by_one_request() -> None:
    now = [0.0]
    one = server(now)
    for _ in range(DRAINED_AFTER):
        assert one.wait_s() == 0.0
        one.failed("500", others=True)
    assert one.wait_s() == FIRST_REST_S and not one.is_live
    now[0] = FIRST_REST_S
    assert one.wait_s() == 0.0
    one.limit.in_flight = 1
    assert one.wait_s() == math.inf, "one request tries it"
    one.limit.in_flight = 0
    one.failed("500", others=True)
    assert one.wait_s() == 2 * FIRST_REST_S
    one.answered(10, 1.0)
    now[0] += 2 * FIRST_REST_S
    assert one.wait_s() == 0.0 and one.is_live


def test_the_only_server_is_never_drained() -> None:
    one = server([0.0])
    for _ in range(50):
        one.failed("500", others=False)
    assert one.is_live and one.wait_s() == 0.0
