"""The engine against queueing theory, against a naive simulation, and against itself."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from controller.simulation.engine import Engine, Requests, StagePlan
from controller.simulation.service import ServiceLaw, stream
from tests.controller.simulation.naive import NaiveStage

NEVER_S = 1e9


def poisson(rate: float, duration_s: float, seed: int = 1) -> NDArray[np.float64]:
    generator = stream(seed, "test arrivals")
    return np.sort(generator.uniform(0, duration_s, generator.poisson(rate * duration_s)))


def engine_of(
    stages: list[StagePlan],
    arrivals: NDArray[np.float64],
    servers: dict[str, int],
    *,
    seed: int = 1,
    timeout_s: float = NEVER_S,
) -> Engine:
    engine = Engine(stages, Requests(stages, arrivals, timeout_s, seed))
    for place, (name, count) in enumerate(servers.items()):
        for number in range(count):
            engine.add_replica(name, 100 * place + number, 1.0, 1.0, 0.0)
    return engine


def one_stage(law: ServiceLaw, queue_limit: int = 10**9) -> list[StagePlan]:
    return [StagePlan("only", law, queue_limit=queue_limit)]


def mean_wait(law: ServiceLaw, rate: float, servers: int, requests: int = 100_000, seeds: int = 3) -> float:
    """Over several runs; the mean service time is taken off the mean latency."""
    waits = []
    for seed in range(seeds):
        engine = engine_of(one_stage(law), poisson(rate, requests / rate, seed), {"only": servers}, seed=seed)
        engine.advance(requests / rate)
        waits.append(engine.latencies(0.05 * requests / rate).mean() - law.time_s(1, 1.0, 1.0))
    return float(np.mean(waits))


def erlang_c(servers: int, load: float) -> float:
    """Probability of waiting in M/M/c at an offered load in Erlang."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.7), (3, 0.8), (8, 0.9)])
def test_waits_in_m_m_c_are_erlangs(servers: int, utilisation: float) -> None:
    load = servers * utilisation
    expected = erlang_c(servers, load) / (servers - load) * 0.01
    assert mean_wait(ServiceLaw(cpu_s=0.01, scv=1.0), 100 * load, servers) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("scv", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("spread", ["gamma", "lognormal"])
def test_waits_in_m_g_1_are_pollaczeks_and_khinchines(scv: float, spread: str) -> None:
    law = ServiceLaw(cpu_s=0.1, scv=scv, spread="gamma" if spread == "gamma" else "lognormal")
    expected = 0.75 / (1 - 0.75) * (1 + scv) / 2 * 0.1
    assert mean_wait(law, 7.5, 1) == pytest.approx(expected, rel=0.08)


def test_a_tandem_of_exponential_stages_waits_as_jacksons_network_does() -> None:
    law = ServiceLaw(cpu_s=0.01, scv=1.0)
    stages = [StagePlan("first", law, queue_limit=10**9), StagePlan("second", law, ("first",), queue_limit=10**9)]
    latencies = []
    for seed in range(4):
        engine = engine_of(stages, poisson(70, 1500, seed), {"first": 1, "second": 1}, seed=seed)
        engine.advance(1500)
        latencies.append(engine.latencies(100).mean())
    assert np.mean(latencies) == pytest.approx(2 * 0.01 / (1 - 0.7), rel=0.06)


def test_littles_law_holds_at_a_stage() -> None:
    engine = engine_of(one_stage(ServiceLaw(cpu_s=0.08, scv=1.5)), poisson(10, 20_000), {"only": 1})
    engine.advance(20_000)
    waiting = np.mean([sample.queue for sample in engine.samples[0]])
    wait = engine.latencies(0).mean() - 0.08
    assert waiting == pytest.approx(10 * wait, rel=0.05)


def test_busy_time_is_the_sum_of_the_services() -> None:
    stages = one_stage(ServiceLaw(cpu_s=0.1, scv=0.5))
    engine = engine_of(stages, poisson(12, 1000), {"only": 2})
    engine.advance(2000)
    assert engine.in_system == 0
    assert engine.queues[0].busy_s(2000) == pytest.approx(0.1 * sum(engine.requests.demands[0]))
    assert engine.ready_s(0) == pytest.approx(2 * 2000)


def test_a_rate_change_speeds_up_what_is_in_service() -> None:
    stages = one_stage(ServiceLaw(batch_s=0.0, item_s=1.0))
    engine = Engine(stages, Requests(stages, np.array([10.0, 20.0]), NEVER_S, 1))
    engine.add_replica("only", 1, 1.0, 0.5, 0.0)
    engine.set_share("only", 1, 1.0, 11.0)
    engine.set_share("only", 1, 0.25, 20.5)
    engine.advance(100)
    assert engine.done_t == pytest.approx([10 + 1 + 0.5, 20 + 0.5 + 0.5 * 4])


def test_a_cpu_resize_follows_amdahls_law() -> None:
    stages = one_stage(ServiceLaw(cpu_s=1.0, serial_fraction=0.2))
    engine = Engine(stages, Requests(stages, np.array([0.0, 10.0]), NEVER_S, 1))
    engine.add_replica("only", 1, 1.0, 1.0, 0.0)
    engine.set_cores("only", 1, 4.0, 5.0)
    engine.advance(100)
    assert engine.done_t == pytest.approx([1.0, 10 + 0.2 + 0.8 / 4])


def test_a_removed_replica_finishes_its_request_and_takes_no_other() -> None:
    stages = one_stage(ServiceLaw(cpu_s=4.0))
    engine = Engine(stages, Requests(stages, np.array([0.0, 0.5, 0.6]), NEVER_S, 1))
    engine.add_replica("only", 1, 1.0, 1.0, 0.0)
    engine.add_replica("only", 2, 1.0, 1.0, 0.0)
    engine.advance(1.0)
    engine.remove_replica("only", 2)
    engine.remove_replica("only", 1)
    engine.advance(10.0)
    assert engine.done_t == pytest.approx([4.0, 4.5])
    assert sorted(engine.gone) == [(4.0, "only", 1), (4.5, "only", 2)]
    assert engine.in_system == 1


def test_a_replica_serves_nothing_before_it_is_ready_and_none_if_removed_while_starting() -> None:
    stages = one_stage(ServiceLaw(cpu_s=1.0))
    engine = Engine(stages, Requests(stages, np.array([1.0, 2.0]), NEVER_S, 1))
    engine.add_replica("only", 1, 1.0, 1.0, 30.0)
    engine.add_replica("only", 2, 1.0, 1.0, 20.0)
    engine.advance(10.0)
    engine.remove_replica("only", 2)
    engine.advance(100.0)
    assert engine.done_t == pytest.approx([31.0, 32.0])


def test_batches_form_while_the_server_is_busy_and_share_their_fixed_cost() -> None:
    stages = one_stage(ServiceLaw(batch_s=1.0, item_s=0.5, max_batch=3))
    engine = Engine(stages, Requests(stages, np.array([0.0, 0.1, 0.2, 0.3, 0.4]), NEVER_S, 1))
    engine.add_replica("only", 1, 1.0, 1.0, 0.0)
    engine.advance(100)
    assert engine.done_t == pytest.approx([1.5, 4.0, 4.0, 4.0, 5.5])
    assert engine.queues[0].batch_n == [1, 3, 1]


def test_a_full_queue_drops_what_arrives() -> None:
    stages = one_stage(ServiceLaw(cpu_s=1.0), queue_limit=2)
    engine = Engine(stages, Requests(stages, np.array([0.0, 0.1, 0.2, 0.3, 1.1]), NEVER_S, 1))
    engine.add_replica("only", 1, 1.0, 1.0, 0.0)
    engine.advance(100)
    assert (engine.failed_id, engine.failed_t) == ([3], [0.3])
    assert engine.done_id == [0, 1, 2, 4]


def test_a_client_that_has_given_up_is_not_served() -> None:
    stages = one_stage(ServiceLaw(cpu_s=1.0))
    engine = Engine(stages, Requests(stages, np.array([0.0, 0.1, 0.2]), 1.5, 1))
    engine.add_replica("only", 1, 1.0, 1.0, 0.0)
    engine.advance(100)
    assert engine.done_t == pytest.approx([1.0, 2.0])
    assert (engine.failed_id, engine.failed_t) == ([2], [2.0])


def test_a_frame_is_done_when_its_last_crop_is() -> None:
    stages = [
        StagePlan("split", ServiceLaw(cpu_s=0.1)),
        StagePlan("crops", ServiceLaw(cpu_s=1.0), ("split",), fan_out=3.0),
    ]
    engine = engine_of(stages, np.arange(0.0, 10_000.0, 50.0), {"split": 1, "crops": 2})
    engine.advance(20_000)
    fans = engine.requests.fans[1]
    assert fans is not None
    assert np.mean(fans) == pytest.approx(3.0, rel=0.1)
    assert engine.queues[1].arrived == sum(fans)
    assert engine.latencies(0) == pytest.approx([0.1 + math.ceil(fan / 2) for fan in fans])


def test_a_diamond_waits_for_its_slower_branch() -> None:
    stages = [
        StagePlan("a", ServiceLaw(cpu_s=0.1)),
        StagePlan("b", ServiceLaw(cpu_s=0.2), ("a",)),
        StagePlan("c", ServiceLaw(cpu_s=0.7), ("a",)),
        StagePlan("d", ServiceLaw(cpu_s=0.1), ("b", "c")),
    ]
    engine = engine_of(stages, np.array([0.0, 10.0]), dict.fromkeys("abcd", 1))
    engine.advance(100)
    assert engine.done_t == pytest.approx([0.9, 10.9])


TIMES = st.floats(0.01, 59.9)
CHANGES = st.lists(
    st.tuples(TIMES, st.sampled_from(["open", "close", "speed"]), st.integers(0, 5), st.sampled_from([0.25, 0.5, 1.0])),
    max_size=12,
)


def plausible(changes: list[tuple[float, str, int, float]]) -> list[tuple[float, str, int, float]]:
    """In order, no server opened twice, none closed that is not open; the last server number is never reused."""
    open_servers, used, kept, last = {0}, {0}, [], 0.0
    for at, kind, server, value in sorted(changes):
        if at - last < 1e-6:
            continue
        if (
            (kind == "open" and server not in used)
            or (kind == "close" and server in open_servers)
            or (kind == "speed" and server in open_servers)
        ):
            kept.append((at, kind, server, value))
            last = at
            if kind == "open":
                open_servers.add(server)
                used.add(server)
            elif kind == "close":
                open_servers.discard(server)
    return kept


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=CHANGES,
    seed=st.integers(0, 1000),
    rate=st.floats(0.5, 12.0),
    max_batch=st.sampled_from([1, 1, 4]),
    limit=st.sampled_from([3, 1000]),
    timeout_s=st.sampled_from([3.0, NEVER_S]),
    stops=st.lists(TIMES, max_size=6),
)
def test_whatever_changes_the_engine_agrees_with_a_naive_simulation(
    changes: list[tuple[float, str, int, float]],
    seed: int,
    rate: float,
    max_batch: int,
    limit: int,
    timeout_s: float,
    stops: list[float],
) -> None:
    law = ServiceLaw(cpu_s=0.05, batch_s=0.1, item_s=0.1, max_batch=max_batch, scv=0.5)
    stages = one_stage(law, limit)
    arrivals = poisson(rate, 60, seed)
    requests = Requests(stages, arrivals, timeout_s, seed)
    naive = NaiveStage(law, requests.demands[0], requests.deadlines[0], limit)
    for task, at in enumerate(arrivals):
        naive.at(float(at), "arrive", task)
    naive.at(0.0, "open", 0, 1.0, 0.5)
    engine = Engine(stages, requests)
    engine.add_replica("only", 0, 1.0, 0.5, 0.0)
    moments = sorted(
        [
            *((at, kind, server, value) for at, kind, server, value in plausible(changes)),
            *((at, "stop", 0, 0.0) for at in stops),
        ]
    )
    for at, kind, server, value in moments:
        engine.advance(at)
        if kind == "open":
            engine.add_replica("only", server, 1.0, value, at)
            naive.at(at, "open", server, 1.0, value)
        elif kind == "close":
            engine.remove_replica("only", server)
            naive.at(at, "close", server)
        elif kind == "speed":
            engine.set_share("only", server, value, at)
            naive.at(at, "speed", server, 1.0, value)
    engine.advance(61.0)
    naive.run(61.0)
    assert engine.done_t == pytest.approx([time for time, _ in naive.departed])
    finished = dict(zip(engine.done_id, engine.done_t, strict=True))
    assert finished == pytest.approx({task: at for at, task in naive.departed})
    assert sorted(engine.failed_id) == sorted(task for _, task in naive.dropped)
    queue = engine.queues[0]
    assert engine.arrived == len(engine.done_id) + len(engine.failed_id) + queue.queue_depth() + queue.in_service()


def video() -> list[StagePlan]:
    return [
        StagePlan("pre", ServiceLaw(cpu_s=0.05, scv=0.4), queue_limit=40),
        StagePlan(
            "inf", ServiceLaw(batch_s=0.02, item_s=0.02, max_batch=4, scv=0.2), ("pre",), queue_limit=60, fan_out=2.5
        ),
        StagePlan("post", ServiceLaw(cpu_s=0.01, scv=1.0), ("inf",)),
    ]


def changed(engine: Engine, stops: tuple[float, ...] = ()) -> Engine:
    """A fixed sequence of changes, with stops on the way that must make no difference."""
    moments = sorted({40.0, 90.25, 130.5, 170.0, *stops})
    for at in moments:
        engine.advance(at)
        if at == 40.0:
            engine.set_share("inf", 100, 0.3, at + 0.1)
            engine.add_replica("pre", 7, 1.0, 1.0, at + 20)
        elif at == 90.25:
            engine.remove_replica("pre", 0)
            engine.set_share("inf", 100, 1.0, at + 0.1)
        elif at == 130.5:
            engine.set_cores("post", 200, 2.0, at + 0.2)
            engine.remove_replica("inf", 101)
    return engine


def start(seed: int = 3) -> Engine:
    return engine_of(video(), poisson(16, 200, seed), {"pre": 1, "inf": 2, "post": 1}, seed=seed, timeout_s=8.0)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = changed(start()), changed(start())
    assert one.done_t == other.done_t
    assert one.samples == other.samples


def test_where_a_run_is_stopped_on_the_way_makes_no_difference() -> None:
    one = changed(start())
    other = changed(start(), tuple(np.arange(0.37, 170, 0.731)))
    assert other.done_t == pytest.approx(one.done_t)
    assert other.done_id == one.done_id
    assert other.failed_id == one.failed_id


def test_a_copy_goes_on_as_its_original_does_and_leaves_it_alone() -> None:
    original = changed(start())
    copy = original.copy(keep_s=10)
    busy = copy.copy()
    busy.add_replica("pre", 50, 1.0, 1.0, 171.0)
    busy.advance(230)
    original.advance(230)
    copy.advance(230)
    kept = len(copy.done_t)
    assert copy.done_t == original.done_t[-kept:]
    assert copy.done_id == original.done_id[-kept:]
    assert copy.samples[0][-50:] == original.samples[0][-50:]
    assert busy.done_t != copy.done_t
    assert copy.in_system == original.in_system


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 500), rate=st.floats(1, 60))
def test_nothing_is_lost_whatever_the_load(seed: int, rate: float) -> None:
    engine = changed(
        engine_of(video(), poisson(rate, 200, seed), {"pre": 1, "inf": 2, "post": 1}, seed=seed, timeout_s=8.0)
    )
    assert engine.arrived == len(engine.done_id) + len(engine.failed_id) + engine.in_system
    assert len({*engine.done_id, *engine.failed_id}) == len(engine.done_id) + len(engine.failed_id)
    for queue in engine.queues:
        assert queue.arrived == queue.done + queue.dropped + queue.queue_depth() + queue.in_service()
    engine.advance(400)
    assert engine.in_system == 0


def test_forgetting_old_tasks_changes_nothing() -> None:
    long = engine_of(video(), poisson(8, 3000), {"pre": 1, "inf": 2, "post": 1})
    long.advance(3000)
    assert long.arrived == len(long.done_id) + long.in_system
    assert len(long.queues[0].tasks) < 0.8 * long.arrived
    assert [sample.done for sample in long.samples[2]][-1] == len(long.done_id)


def test_half_an_hour_at_100_requests_per_second_takes_seconds() -> None:
    stages = [
        StagePlan("pre", ServiceLaw(cpu_s=0.018, scv=0.3)),
        StagePlan("inf", ServiceLaw(batch_s=0.006, item_s=0.005, max_batch=8, scv=0.2), ("pre",)),
        StagePlan("post", ServiceLaw(cpu_s=0.003, scv=0.3), ("inf",)),
    ]
    engine = engine_of(stages, poisson(100, 1800), {"pre": 3, "inf": 3, "post": 1})
    began = time.process_time()
    engine.advance(1800)
    assert engine.in_system < 100
    assert time.process_time() - began < 6.0
