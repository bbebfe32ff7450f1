from controller.llm.breaker import Breaker


def test_the_breaker_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(limit=3, pause_s=60)
    breaker = breaker.failed(0).failed(1)
    assert breaker.allows(1)
    breaker = breaker.failed(2)
    assert not breaker.allows(61.9)
    assert breaker.allows(62)


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(limit=2, pause_s=60).failed(0).succeeded().failed(1)
    assert breaker.allows(1)


def test_the_pause_doubles_while_the_server_stays_bad_up_to_an_hour() -> None:
    breaker, now, pauses = Breaker(limit=1, pause_s=600), 0.0, []
    for _ in range(5):
        breaker = breaker.failed(now)
        pauses.append(breaker.closed_at - now)
        now = breaker.closed_at
    assert pauses == [600, 1200, 2400, 3600, 3600]


def test_calls_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() -> None:
    breaker = Breaker(limit=3, pause_s=60)
    for number in range(20):
        breaker = breaker.failed(float(number))
    assert breaker.closed_at == 2 + 60
    assert breaker.failed(62).closed_at == 62 + 120
