"""Moving from plan to plan in the drift benchmark: what stays, what goes where, and when replicas open and close."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# Last on the path: the package itself stays the installed one.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.drift_plans import LANES, first_plan, replanned
from benchmarks.drift_run import Deployment
from benchmarks.drift_traffic import Cases, Traffic
from benchmarks.drift_transition import MOMENT_S, History, Kind, Replica, Seen, arrange, rolling_order, schedule
from benchmarks.paper_cases import DEEPSEEK

NODE = 8
SMALL, MIDDLE, LARGE = Kind(0, 1, 1), Kind(1, 4, 1), Kind(2, 8, 1)
RELOAD_S = {0: 2.0, 1: 9.0, 2: 20.0}


def at(kind: Kind, first: int) -> Replica:
    return Replica(kind, frozenset(range(first, first + kind.gpus)))


def changed(old: list[Replica], wanted: dict[Kind, int], gpus: int = 16) -> History:
    history = History(gpus, NODE, list(old))
    history.change(100.0, wanted)
    return history


def test_what_both_plans_have_stays_where_it_is() -> None:
    old = [at(LARGE, 0), at(MIDDLE, 8), at(MIDDLE, 12)]
    history = changed(old, {LARGE: 1, MIDDLE: 1, SMALL: 4})
    change = history.transitions[0]
    assert change.kept == (0, 1)
    assert [history.replicas[number].kind for number in change.new] == [SMALL] * 4
    assert set().union(*(history.replicas[number].gpus for number in change.new)) == set(range(12, 16))


@pytest.mark.parametrize("first", [0, 8])
def test_a_new_replica_goes_where_the_fewest_would_have_to_move(first: int) -> None:
    old = {0: at(MIDDLE, first), 1: at(SMALL, 15 - first), 2: at(SMALL, 14 - first)}
    kept, new = arrange(old, {LARGE: 1, MIDDLE: 1, SMALL: 2}, 16, NODE)
    assert kept == (0,)
    assert [replica.kind for replica in new] == [LARGE, SMALL, SMALL]
    assert new[0].gpus == frozenset(range(8 - first, 16 - first))


KINDS = (Kind(0, 1, 1), Kind(0, 2, 1), Kind(1, 4, 1), Kind(1, 4, 3), Kind(2, 8, 1), Kind(2, 8, 2))
PLANS = st.lists(st.sampled_from(KINDS), min_size=1, max_size=12).filter(
    lambda kinds: sum(kind.gpus for kind in kinds) <= 32
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PLANS, min_size=2, max_size=4))
def test_every_plan_that_fits_is_placed_after_any_other(plans: list[list[Kind]]) -> None:
    _, first = arrange({}, Counter(plans[0]), 32, NODE)
    history = History(32, NODE, first)
    for place, plan in enumerate(plans[1:]):
        history.change(100.0 * (place + 1), Counter(plan))
        here = [history.replicas[number] for number in history.current]
        assert Counter(replica.kind for replica in here) == Counter(plan)
        taken = [gpu for replica in here for gpu in replica.gpus]
        assert len(taken) == len(set(taken))
        assert max(taken) < 32
        for replica in here:
            by_node = Counter(gpu // NODE for gpu in replica.gpus)
            assert sum(count < NODE for count in by_node.values()) <= 1


def test_where_large_ones_stand_in_the_way_nothing_stays() -> None:
    long = Kind(1, 4, 3)  # a node and a half
    old = {0: Replica(long, frozenset(range(12))), 1: Replica(long, frozenset(range(16, 28)))}
    kept, new = arrange(old, {long: 2, LARGE: 1}, 32, NODE)
    assert kept == ()
    assert Counter(replica.kind for replica in new) == {long: 2, LARGE: 1}


def test_a_model_that_nobody_serves_comes_first_and_none_loses_its_last_replica() -> None:
    going = [at(LARGE, 0), at(LARGE, 8)]
    new = [at(Kind(2, 4, 2), 0), at(MIDDLE, 8), at(MIDDLE, 12)]
    order = rolling_order([], going, new, {1, 2})
    assert [replica.kind.model for replica in order] == [1, 1, 2]


def test_new_replicas_open_when_the_old_are_done_and_weights_are_loaded() -> None:
    old = [at(LARGE, 0), at(LARGE, 8)]
    history = changed(old, {Kind(2, 4, 2): 2})
    first, second = history.transitions[0].new
    seen = Seen(ended_s={0: 130.0, 1: 170.0})
    one_by_one = schedule(history, RELOAD_S, 1, seen)
    assert one_by_one.windows[0].closes_s == 100.0
    assert one_by_one.windows[first].opens_s == 150.0
    # The other old one serves on until then; its requests end later than it closes.
    assert one_by_one.windows[1].closes_s == 150.0
    assert one_by_one.windows[second].opens_s == 190.0
    together = schedule(history, RELOAD_S, 2, seen)
    assert [window.closes_s for window in together.windows[:2]] == [100.0, 100.0]
    assert [together.windows[number].opens_s for number in (first, second)] == [150.0, 190.0]
    assert one_by_one.routes_from_s == together.routes_from_s == (100.0,)
    assert one_by_one.open_s([0, 1, first, second], 100.0, 190.0) == 90.0
    assert together.open_s([0, 1, first, second], 100.0, 190.0) == 40.0


def test_an_old_replica_that_ends_before_it_closes_is_waited_for_until_then() -> None:
    history = changed([at(LARGE, 0)], {Kind(2, 4, 2): 1}, gpus=8)
    found = schedule(history, RELOAD_S, 1, Seen(ended_s={0: 60.0}))
    assert found.windows[history.transitions[0].new[0]].opens_s == 120.0


def test_routing_waits_for_an_added_model_and_a_given_up_one_for_its_last_request() -> None:
    old = [at(MIDDLE, 0), at(MIDDLE, 4), at(LARGE, 8)]
    history = changed(old, {SMALL: 4, LARGE: 1})
    change = history.transitions[0]
    assert (set(change.added), set(change.given_up)) == ({0}, {1})
    seen = Seen({0: 140.0, 1: 110.0}, {(0, 1): 160.0})
    found = schedule(history, RELOAD_S, 1, seen)
    assert found.routes_from_s == (min(found.windows[number].opens_s for number in change.new),)
    closes_s = sorted(found.windows[number].closes_s for number in change.given_up[1])
    assert closes_s == [100.0, pytest.approx(160.0, abs=2 * MOMENT_S)]


def test_models_that_change_places_cannot_wait_for_one_another() -> None:
    history = changed([at(LARGE, 0), at(LARGE, 8)], {Kind(1, 8, 1): 2})
    assert schedule(history, RELOAD_S, 1, Seen({0: 150.0, 1: 150.0})).routes_from_s == (159.0,)
    history = changed([at(LARGE, 0)], {Kind(1, 8, 1): 1}, gpus=8)
    assert schedule(history, RELOAD_S, 1, Seen({0: 150.0})).routes_from_s == (100.0,)


def test_a_replica_that_is_replaced_before_it_opens_never_does() -> None:
    history = changed([at(LARGE, 0)], {Kind(2, 4, 2): 1}, gpus=8)
    history.change(120.0, {LARGE: 1})
    found = schedule(history, RELOAD_S, 1, Seen(ended_s={0: 150.0}))
    assert found.windows[0].closes_s == 100.0
    assert not found.windows[1].ever
    assert found.windows[2].opens_s == 170.0


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases(DEEPSEEK)


@pytest.fixture(scope="module")
def traffic(cases: Cases) -> Traffic:
    return cases.traffic((66.0, 72.0, 76.0), seed=1)


def test_one_plan_for_each_phase_that_is_the_same_is_one_plan(cases: Cases, traffic: Traffic) -> None:
    plan = first_plan(traffic)
    once, thrice = (Deployment([plan] * count, traffic, cases.reload_s(), LANES).run(1) for count in (1, 3))
    assert once.latency_s.tobytes() == thrice.latency_s.tobytes()
    assert np.isfinite(once.latency_s).all()


@pytest.mark.parametrize("lanes", [1, 2, 32])
def test_no_gpu_serves_two_replicas_and_none_serves_while_it_is_closed(
    cases: Cases, traffic: Traffic, lanes: int
) -> None:
    deployment = Deployment(replanned(traffic), traffic, cases.reload_s(), lanes)
    served = deployment.run(1)
    assert sum(len(change.new) for change in served.history.transitions) > 2
    windows, reload_s = served.schedule.windows, cases.reload_s()
    assert sum(came_s.size for came_s, _ in served.visits_s.values()) >= traffic.arrival_s.size
    for number, (came_s, _) in served.visits_s.items():
        # Who comes while none is open waits at the one that opens soonest.
        assert came_s.max(initial=0.0) < windows[number].closes_s
    for one, other in itertools.combinations(sorted(served.visits_s), 2):
        if served.history.replicas[one].gpus & served.history.replicas[other].gpus:
            free_s = max(windows[one].closes_s, served.visits_s[one][1].max(initial=0.0))
            assert free_s + reload_s[served.history.replicas[other].model] <= windows[other].opens_s
