"""The slow simulator of the cascade against examples worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from reference import event_simulation
from reference.brute_force import engine
from reference.cascade_engine import MeasuredCosts, ReplicaCosts, Scheduler
from reference.cascade_simulation import REFUSED, SERVED, TIMED_OUT, UNFINISHED, Simulated, Station, simulate, uniform

from cascadia_fast import _core

# A decode step takes 1 s, a step with prompts half a second per token.
COSTS = MeasuredCosts(decode_step_s=[1.0] * 5, prompt_step_s=0.5 * np.arange(9), sampled_s=[0.0] * 5)
PLAIN = Scheduler(block_tokens=1, watermark=0.0)


def costs(**changes: Any) -> MeasuredCosts:
    return dataclasses.replace(COSTS, **changes)


def run(
    *stages: Station,
    tokens_in: ArrayLike,
    tokens_out: ArrayLike,
    path: ArrayLike | None = None,
    **more: Any,
) -> Simulated:
    """Every scored request once; all of them take all stages unless `path` says otherwise."""
    requests = np.asarray(tokens_in).shape[1]
    path = np.full(requests, 2 ** len(stages) - 1) if path is None else path
    return simulate(stages, tokens_in=tokens_in, tokens_out=tokens_out, path=path, drawn=np.arange(requests), **more)


def one(
    costs: MeasuredCosts,
    arrival_s: list[float] | None,
    tokens_in: list[int],
    tokens_out: list[int],
    scheduler: Scheduler = PLAIN,
    **more: Any,
) -> Simulated:
    return run(
        Station([(costs, 1, 1.0)], scheduler),
        tokens_in=[tokens_in],
        tokens_out=[tokens_out],
        arrival_s=arrival_s,
        **more,
    )


def test_chunked_prompts() -> None:
    """The second prompt is cut in two by the budget of 4; the third rides with the rest of it."""
    found = one(
        costs(prompt_step_s=0.5 * np.arange(5), request_s=0.25), [0.0, 0.5, 0.5], [3, 5, 1], [2, 1, 3]
    )  # steps end at 1.5, 3.5, 5, 6 and 7
    assert found.first_token_s.tolist() == [1.75, 5.25, 5.25]
    assert found.finished_s.tolist() == [3.75, 5.25, 7.25]
    assert found.times_s[0, :, 1].tolist() == [0.0, 1.5, 3.5]
    assert (found.steps[0], found.busy_s[0], found.decoding_s[0], found.prompt_tokens[0]) == (5, 7.0, 4.0, 9)
    assert found.ended_s == 7.25
    assert found.visits_done == 3


def test_prompts_first() -> None:
    """As above, but the decode waits while prompts are read; two prompts of one token each cost a decode step."""
    found = one(
        costs(prompt_step_s=0.5 * np.arange(5)),
        [0.0, 0.5, 0.5],
        [3, 5, 1],
        [2, 1, 3],
        dataclasses.replace(PLAIN, batching="prompts_first"),
    )  # steps end at 1.5, 3.5 (4 tokens of the second), 4.5 (its last and the third), 5.5, 6.5
    assert found.first_token_s.tolist() == [1.5, 4.5, 4.5]
    assert found.finished_s.tolist() == [5.5, 4.5, 6.5]


def test_attention_of_decodes_and_chunks() -> None:
    """Of 6 prompt tokens in chunks of 4 and 2, then of contexts 7 and 8."""
    found = one(
        costs(prompt_step_s=0.5 * np.arange(5), prompt_pair_s=1.0, context_token_s=2.0, sequence_s=3.0), [0.0], [6], [3]
    )
    first = 2.0 + max(4 * 2.0, 3.0 + 2.0 * 4)
    second = 1.0 + max(2 * 5.0, 3.0 + 2.0 * 6)
    assert found.first_token_s[0] == first + second
    assert found.finished_s[0] == first + second + 1.0 + (3.0 + 2.0 * 7) + 1.0 + (3.0 + 2.0 * 8)


def test_preemption_reads_everything_again() -> None:
    """Of 10 tokens of cache two requests hold 8 after their prompts, 10 one step later, and cannot hold 12."""
    found = one(costs(kv_capacity_tokens=10), [0.0, 0.0, 0.0], [4, 4, 8], [3, 3, 3])
    assert found.status.tolist() == [SERVED, SERVED, REFUSED]
    # Both read until 4 and decode until 5; the second is pushed out, the first ends at 6, the second reads 6 tokens.
    assert found.first_token_s[:2].tolist() == [4.0, 4.0]
    assert found.finished_s[:2].tolist() == [6.0, 9.0]
    assert found.preempted[0].tolist() == [0, 1, 0]
    assert (found.preemptions[0], found.prompt_tokens[0], found.peak_kv_share[0]) == (1, 14, 1.0)
    assert found.times_s[0, 2, 0] == 0.0
    assert found.replica[0, 2] == 0


def test_partial_prompt_is_preempted_before_decodes() -> None:
    """Eight tokens of cache. The decode at context 5 leaves room for 3 tokens of the second prompt, at 6 for 2."""
    found = one(costs(prompt_step_s=0.5 * np.arange(5), kv_capacity_tokens=12), [0.0, 1.0], [4, 7], [5, 1])
    # Read until 2; then 3 of the 7 beside the first decode until 4; then 3 more fit (6 + 6), until 6; the decode at 7
    # pushes the prompt out, and decodes alone until 7 and 8 (5 tokens); then the prompt is read in 4 + 3.
    assert found.finished_s.tolist() == [8.0, 11.5]
    assert found.preempted[0].tolist() == [0, 1]
    assert found.prompt_tokens[0] == 4 + 6 + 7


def test_watermark_and_blocks() -> None:
    """Of 16 tokens 12 may be taken while somebody runs; 5 tokens hold 2 blocks of 4."""
    scheduler = Scheduler(block_tokens=4, watermark=0.25)
    found = one(costs(kv_capacity_tokens=16), [0.0, 0.0], [5, 5], [2, 2], scheduler)
    assert found.times_s[0, :, 1].tolist() == [0.0, 2.5 + 1.0]  # 8 + 8 is too much
    found = one(costs(kv_capacity_tokens=16), [0.0, 0.0], [5, 4], [2, 2], scheduler)
    assert found.times_s[0, :, 1].tolist() == [0.0, 0.0]  # 8 + 4 is not; 3 tokens of budget are left
    found = one(costs(kv_capacity_tokens=16), [0.0], [15], [1], scheduler)
    assert found.status[0] == SERVED  # alone it may take all


def test_prefix_hits() -> None:
    """Of 7 tokens 80 % are 5, which is one block of 4; of 4, all cached, the last has to be read, and so its block."""
    found = one(COSTS, [0.0, 100.0], [7, 4], [1, 1], Scheduler(block_tokens=4, prefix_hit_share=0.8))
    assert found.prompt_tokens[0] == 3 + 4
    found = one(COSTS, [0.0, 100.0], [7, 4], [1, 1], Scheduler(block_tokens=4, prefix_hit_share=1.0))
    assert found.prompt_tokens[0] == 3 + 4
    found = one(COSTS, [0.0, 100.0], [7, 5], [1, 1], Scheduler(block_tokens=4, prefix_hit_share=1.0))
    assert found.prompt_tokens[0] == 3 + 1
    assert found.finished_s.tolist() == [1.5, 101.0]  # one token that is sampled: a decode step


def test_shortest_first() -> None:
    found = one(
        COSTS, [0.0, 0.1, 0.2, 0.3], [8, 8, 3, 3], [1] * 4, dataclasses.replace(PLAIN, admission="shortest_first")
    )
    assert found.finished_s.tolist() == [4.0, 11.0, 8.0, 8.0]  # 3 + 3 + 2 tokens of the second, then its other 6


def test_deadlines() -> None:
    """One cancelled while it decodes, one dropped in the queue, one that ends late but ends."""
    slow = costs(decode_step_s=[1.0, 2.0])
    found = one(slow, [0.0, 0.0, 1.0], [2, 2, 2], [9, 1, 1], timeout_s=6.0)
    # Steps end at 1, 3, 5 and 7: there the first is cancelled and the second dropped, then the third reads until 8.
    assert found.status.tolist() == [TIMED_OUT, TIMED_OUT, TIMED_OUT]
    found = one(slow, [0.0, 0.0, 1.5], [2, 2, 2], [9, 1, 1], timeout_s=6.0)
    assert found.status.tolist() == [TIMED_OUT, TIMED_OUT, SERVED]
    assert found.finished_s[2] == 8.0
    assert math.isnan(found.finished_s[0])
    assert found.times_s[0, 0, 2] == 1.0  # its first token was there


def test_closed_loop() -> None:
    """Two clients at an engine that serves one at a time; what is refused sends the next at once."""
    alone = costs(decode_step_s=[1.0, 1.0], kv_capacity_tokens=20, request_s=0.5)
    found = one(alone, None, [2, 2, 40, 2, 2], [1, 1, 1, 1, 1], concurrency=2)
    assert found.status.tolist() == [SERVED, SERVED, REFUSED, SERVED, SERVED]
    # The first is served at 1.5, sends the third, which is refused, so the fourth comes at 1.5, too.
    assert found.arrived_s.tolist() == [0.0, 0.0, 1.5, 1.5, 2.5]
    assert found.finished_s[[0, 1, 3, 4]].tolist() == [1.5, 2.5, 3.5, 4.5]
    assert one(alone, None, [2], [1], concurrency=0).status.tolist() == [UNFINISHED]


def two_stages(**more: Any) -> Simulated:
    """Requests that take stage 0, stage 1, and both."""
    station = Station([(costs(request_s=0.5), 1, 1.0)], PLAIN)
    return run(
        station,
        station,
        tokens_in=[[2, 2, 2], [4, 4, 4]],
        tokens_out=[[2, 2, 2], [3, 3, 3]],
        path=[1, 2, 3],
        arrival_s=[0.0, 100.0, 200.0],
        **more,
    )


def test_escalation_with_an_external_judge() -> None:
    found = two_stages(judge_delay_s=[10.0])
    # Stage 0: 1 s and 1 s, and half a second to fill; then the judge; stage 1: 2, 1, 1 s and fill, not judged.
    assert found.finished_s.tolist() == [12.5, 104.5, 217.0]
    assert found.first_token_s.tolist() == [12.5, 102.5, 215.0]
    assert found.times_s[1, 2].tolist() == [212.5, 212.5, 215.0, 217.0]
    assert np.isnan(found.times_s[1, 0]).all()
    assert found.replica.tolist() == [[0, -1, 0], [-1, 0, 0]]


def test_late_only_when_it_goes_on() -> None:
    """Judged after its deadline: served if that was all, cancelled on arrival at the next stage."""
    found = two_stages(judge_delay_s=[10.0], timeout_s=12.5)
    assert found.status.tolist() == [SERVED, SERVED, TIMED_OUT]
    assert np.isnan(found.times_s[1, 2]).all()
    assert two_stages(judge_delay_s=[10.0], timeout_s=17.0).status.tolist() == [SERVED] * 3


def test_hosted_judge() -> None:
    found = two_stages(
        judge=Station([(costs(request_s=0.25), 1, 1.0)], PLAIN),
        judge_tokens_in=[[6, 6, 6], [1, 1, 1]],
        judge_tokens_out=[[1, 1, 1], [1, 1, 1]],
    )
    assert found.times_s.shape == (3, 3, 4)
    assert found.finished_s.tolist() == [2.5 + 3.25, 104.5, 202.5 + 3.25 + 4.5]
    assert found.station.tolist() == [0, 1, 2]
    assert found.prompt_tokens.tolist() == [4, 8, 12]


def test_a_stage_that_refuses_is_skipped() -> None:
    small, large = (Station([(costs(kv_capacity_tokens=size), 1, 1.0)], PLAIN) for size in (5, 50))
    found = run(
        small, large, tokens_in=[[4, 4], [4, 4]], tokens_out=[[2, 2], [1, 1]], path=[1, 3], arrival_s=[0.0, 0.0]
    )
    assert found.status.tolist() == [REFUSED, SERVED]
    assert found.finished_s[1] == 2.0
    assert found.visits_done == 1


def test_a_step_sees_all_that_arrived_when_it_starts() -> None:
    """An arrival at the moment when a step ends is part of the next one, and finds the replica free."""
    found = one(COSTS, [0.0, 1.0], [2, 2], [2, 1])
    assert found.times_s[0, 1].tolist() == [1.0, 1.0, 2.5, 2.5]
    station = Station([(COSTS, 2, 1.0)], PLAIN, "least_outstanding")
    found = run(station, tokens_in=[[2, 8, 2]], tokens_out=[[1, 1, 1]], arrival_s=[0.0, 0.0, 1.0])
    assert found.replica[0, 0] == found.replica[0, 2] != found.replica[0, 1]


def test_hand_overs_come_after_arrivals_from_outside() -> None:
    """At 1.0 the first request is handed to stage 1, where the second arrives from outside and is first."""
    first = Station([(COSTS, 1, 1.0)], PLAIN)
    second = Station([(COSTS, 2, 1.0)], PLAIN, "round_robin")
    found = run(
        first, second, tokens_in=[[2, 1], [1, 1]], tokens_out=[[1, 1], [1, 1]], path=[3, 2], arrival_s=[0.0, 1.0]
    )
    assert found.replica[1].tolist() == [1, 0]


def test_dispatch() -> None:
    kinds = [(costs(), 1, 1.0), (costs(), 1, 2.0)]

    def chosen(dispatch: str, requests: int = 6) -> list[int]:
        lengths = [[8] * requests]
        station = Station(kinds, PLAIN, dispatch)
        found = run(station, tokens_in=lengths, tokens_out=lengths, arrival_s=np.arange(requests) / 100, seed=3)
        return [int(replica) for replica in found.replica[0]]

    assert chosen("round_robin") == [0, 1, 0, 1, 0, 1]
    assert chosen("random") == [math.floor(2 * uniform(3, 0, index)) for index in range(6)]
    weighted = chosen("capacity_weighted", 300)
    assert weighted[0] == 1
    assert weighted.count(1) == 200
    assert chosen("least_outstanding", 300).count(1) == 150
    assert chosen("power_of_two", 300).count(1) == 150
    with pytest.raises(ValueError, match="'best'"):
        chosen("best")


def test_draws_are_uniform_and_their_own() -> None:
    draws = np.array([[uniform(7, stream, index) for index in range(2000)] for stream in range(6)])
    assert abs(draws.mean(axis=1) - 0.5).max() < 4 * math.sqrt(1 / 12 / 2000)
    assert abs(np.corrcoef(draws) - np.eye(6)).max() < 4 / math.sqrt(2000)
    assert uniform(8, 0, 0) != uniform(7, 0, 0)


def test_costs_of_a_replica() -> None:
    """Blocks round up what full layers keep; a sliding window of 128 tokens keeps no more than that."""
    replica = engine("gpt-oss-20b", 1, 1, "mxfp4")
    limits = _core.EngineLimits()
    kv = ReplicaCosts(replica, limits).kv
    per_token = [kv(context + 1, 1) - kv(context, 1) for context in (10, 1000)]
    assert kv(10, 1) == pytest.approx(replica.kv_bytes(10.0))
    assert kv(1000, 16) - replica.kv_bytes(1000.0) == pytest.approx(8 * per_token[1])
    assert kv(17, 16) - kv(17, 1) == pytest.approx(15 * per_token[1])
    assert per_token[0] > 1.5 * per_token[1]


def test_stops_in_time() -> None:
    found = one(COSTS, [0.0, 10.0], [2, 2], [1, 1], stop_s=5.0)
    assert found.status.tolist() == [SERVED, UNFINISHED]
    assert found.ended_s == 1.0
    assert math.isnan(found.arrived_s[1])


@pytest.mark.parametrize(
    ("model", "limits", "rate_per_s", "longest_in", "longest_out", "preempts"),
    [
        (("llama-3.1-8b",), {"max_num_seqs": 8, "max_batched_tokens": 64}, 15.0, 300, 40, False),
        (("llama-3.1-8b",), {"memory_utilization": 0.235}, 30.0, 3000, 600, True),
        (("gpt-oss-20b", 1, 1, "mxfp4"), {"memory_utilization": 0.195}, 60.0, 1000, 800, True),
    ],
)
def test_agrees_with_the_simulation_of_one_station(
    model: tuple[Any, ...],
    limits: dict[str, Any],
    rate_per_s: float,
    longest_in: int,
    longest_out: int,
    preempts: bool,
) -> None:
    """One that keeps the KV cache token by token, and whose engines the load model is held to."""
    rng = np.random.default_rng(5)
    count = 100
    arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, count))
    lengths = rng.integers(1, longest_in, count), rng.integers(1, longest_out, count)
    replica, engine_limits = engine(*model, **limits), _core.EngineLimits(**limits)
    expected = event_simulation.simulate(replica, arrival_s, *lengths, limits=engine_limits)
    station = Station([(ReplicaCosts(replica, engine_limits), 1, 1.0)], Scheduler(block_tokens=1))
    found = run(station, tokens_in=[lengths[0]], tokens_out=[lengths[1]], arrival_s=arrival_s)
    np.testing.assert_allclose(found.first_token_s, expected.first_token_s, rtol=1e-9)
    np.testing.assert_allclose(found.finished_s, expected.finish_s, rtol=1e-9)
    assert found.preemptions[0] == expected.preemptions
    assert (expected.preemptions > 0) == preempts
