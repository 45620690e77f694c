"""The loops of the event simulation: engines, their queues and batches, and what one step does to them.

Step times are taken apart (see ``event_simulation.costs``), so that a step costs a few additions whatever the batch:
contexts count only in sum, and who is done when is known in advance. Steps in which nothing happens but decoding are
walked in a loop of their own. State lies in records, which compiled functions change in place: as arrays in a tuple it
took six times as long. Arguments: `c` costs, `q` requests, `e` one engine, `slots` its decodes, `i` a request.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
DISPATCHES = ("random", "round_robin", "least_outstanding")
RANDOM, LEAST_OUTSTANDING = 0, 2
WATERMARK = 0.01  # of the KV cache, kept free when a prompt is admitted to an engine that is not empty
NOBODY = -1


class PerToken(NamedTuple):
    """Cost of a sequence and of its cached tokens, in layers with full attention and in those with a sliding window."""

    fixed: float
    full: float
    windowed: float


class Costs(NamedTuple):
    """One engine, as the loops below need it."""

    decode_step_s: FloatArray  # a step by its decodes, without attention
    prompt_step_s: FloatArray  # a step with prompts by the tokens it carries ...
    sampled_s: FloatArray  # ... and what it takes to sample so many
    decode_s: PerToken
    prefill_s: PerToken
    kv_bytes: PerToken
    window: float
    kv_capacity_bytes: float
    max_num_seqs: int
    max_batched_tokens: int


REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("first_token_s", "f8"),
        ("finish_s", "f8"),
        ("fill_s", "f8"),
        ("tokens_in", "i8"),
        ("tokens_out", "i8"),
        ("written", "i8"),  # output tokens, when it last joined or left the decodes
        ("behind", "i8"),  # the next one in the queue
        ("admission", "i8"),  # number of its latest admission
        ("replica", "i8"),
    ]
)

ENGINE = np.dtype(
    [
        ("now_s", "f8"),  # when the step in flight started
        ("end_s", "f8"),  # when it ends; infinite in an idle engine
        ("admit_s", "f8"),  # when the head of the queue could be admitted; infinite if it has no room or is nobody
        ("context", "f8"),  # tokens that the decodes of the step in flight read, in all ...
        ("in_window", "f8"),  # ... and of these, the ones no further back than the window
        ("decoding_s", "f8"),  # summed over sequences
        ("steps", "i8"),  # completed
        ("change", "i8"),  # number of the step at whose end a decode ends or outgrows the window
        ("running", "i8"),  # decodes
        ("growing", "i8"),  # those whose context is shorter than the window
        ("joins", "i8"),  # prompts that the step in flight completes
        ("partial", "i8"),  # the prompt that was cut off
        ("partial_done", "i8"),  # its tokens that are in the cache
        ("head", "i8"),  # of the queue
        ("tail", "i8"),
        ("outstanding", "i8"),
        ("admissions", "i8"),
        ("preemptions", "i8"),
        ("processed", "i8"),  # tokens
    ]
)

# A decode; `joining` lists the prompts that the step in flight completes. It has nothing to do with the rest.
SLOT = np.dtype([("request", "i8"), ("last_step", "i8"), ("last_context", "i8"), ("joining", "i8")])


@nb.njit(cache=True)
def over_context(cost, window, context):
    return cost.fixed + cost.full * context + cost.windowed * min(context, window)


@nb.njit(cache=True)
def _over_contexts(cost, sequences, context, in_window):
    """The same of several sequences: what they see in all, and of that, what lies within the window."""
    return cost.fixed * sequences + cost.full * context + cost.windowed * in_window


@nb.njit(cache=True)
def prefill_attention_s(c, tokens, before):
    growing = min(max(c.window - before, 0.0), tokens)
    pairs_s = c.prefill_s.full * tokens * (before + 0.5 * tokens)
    pairs_s += c.prefill_s.windowed * (growing * (before + 0.5 * growing) + c.window * (tokens - growing))
    return max(pairs_s, over_context(c.decode_s, c.window, before + tokens))


@nb.njit(cache=True)
def _queue_last(q, e, i):
    q[i].behind = NOBODY
    if e.head == NOBODY:
        e.head = i
        e.admit_s = q[i].arrival_s
    else:
        q[e.tail].behind = i
    e.tail = i
    e.outstanding += 1


@nb.njit(cache=True)
def _queue_first(q, e, i):
    if e.head == NOBODY:
        e.tail = i
    q[i].behind = e.head
    e.head = i


@nb.njit(cache=True)
def _join(c, e, slots, request, context, left):
    """Start decoding: the next step reads `context` tokens, and `left` tokens are to be written."""
    slot = slots[e.running]
    slot.request, slot.last_step, slot.last_context = request, e.steps + left, context + left
    e.running += 1
    e.context += context
    e.in_window += min(context, c.window)
    e.change = min(e.change, slot.last_step)
    if context < c.window:
        e.growing += 1
        e.change = min(e.change, e.steps + np.int64(c.window - context))


@nb.njit(cache=True)
def _leave(c, e, slots, k):
    """Take a decode out; return its request and how many tokens it still had to write."""
    request, left = slots[k].request, slots[k].last_step - e.steps
    context = slots[k].last_context - left
    e.context -= context
    e.in_window -= min(context, c.window)
    e.running -= 1
    last = slots[e.running]
    slots[k].request, slots[k].last_step, slots[k].last_context = last.request, last.last_step, last.last_context
    return request, left


@nb.njit(cache=True)
def _look_ahead(c, e, slots):
    """Find the next step that changes the batch, and count the contexts shorter than the window."""
    e.change = np.iinfo(np.int64).max
    e.growing = 0
    for k in range(e.running):
        e.change = min(e.change, slots[k].last_step)
        room = np.int64(c.window) - (slots[k].last_context - (slots[k].last_step - e.steps))
        if room > 0:
            e.growing += 1
            e.change = min(e.change, e.steps + room)


@nb.njit(cache=True)
def _held_bytes(c, e):
    decodes = _over_contexts(c.kv_bytes, e.running, e.context, e.in_window)
    return decodes + over_context(c.kv_bytes, c.window, e.partial_done)


@nb.njit(cache=True)
def _preempt_partial(q, e):
    _queue_first(q, e, e.partial)
    e.partial, e.partial_done = NOBODY, 0
    e.preemptions += 1


@nb.njit(cache=True)
def _make_room(c, q, e, slots):
    """Take places away, the latest admission first, until every decode can write its token.

    Whoever is taken out last does not fit any more: that would have been room enough for the others.
    """
    before = e.preemptions
    while _held_bytes(c, e) > c.kv_capacity_bytes:
        if e.partial != NOBODY:
            _preempt_partial(q, e)
            continue
        latest = 0
        for k in range(1, e.running):
            if q[slots[k].request].admission > q[slots[latest].request].admission:
                latest = k
        i, left = _leave(c, e, slots, latest)
        q[i].written = q[i].tokens_out - left
        _queue_first(q, e, i)
        e.preemptions += 1
    if e.preemptions > before:
        _look_ahead(c, e, slots)


@nb.njit(cache=True)
def _read(c, q, e, slots, i, done, budget):
    """Let the step in flight read on in prompt `i`; return the tokens read and how long attention takes."""
    target = q[i].tokens_in + q[i].written
    chunk = min(target - done, budget)
    if done + chunk == target:
        slots[e.joins].joining = i
        e.joins += 1
        e.partial, e.partial_done = NOBODY, 0
    else:
        e.partial, e.partial_done = i, done + chunk
    return chunk, prefill_attention_s(c, chunk, done)


@nb.njit(cache=True)
def _start_step(c, q, e, slots):
    """Decide at `now_s` what the next step carries, and when it ends."""
    _make_room(c, q, e, slots)
    n = e.running
    budget = c.max_batched_tokens - n
    step_s = _over_contexts(c.decode_s, n, e.context, e.in_window)
    held = _held_bytes(c, e)
    if e.partial != NOBODY and budget > 0:
        i, done = e.partial, e.partial_done
        end = done + min(q[i].tokens_in + q[i].written - done, budget)
        more = over_context(c.kv_bytes, c.window, end) - over_context(c.kv_bytes, c.window, done)
        if held + more > c.kv_capacity_bytes:
            _preempt_partial(q, e)
        else:
            chunk, attention_s = _read(c, q, e, slots, i, done, budget)
            held, budget, step_s = held + more, budget - chunk, step_s + attention_s
    e.admit_s = np.inf
    while e.head != NOBODY:
        i = e.head
        if q[i].arrival_s > e.now_s:
            e.admit_s = q[i].arrival_s
            break
        places = n + e.joins + (e.partial != NOBODY)
        whole = over_context(c.kv_bytes, c.window, q[i].tokens_in + q[i].written)
        free = c.kv_capacity_bytes * (1.0 if places == 0 else 1 - WATERMARK) - held
        if budget == 0 or places == c.max_num_seqs or whole > free:
            break
        e.head = q[i].behind
        q[i].admission = e.admissions
        e.admissions += 1
        chunk, attention_s = _read(c, q, e, slots, i, 0, budget)
        held += over_context(c.kv_bytes, c.window, chunk)
        budget, step_s = budget - chunk, step_s + attention_s
    tokens = c.max_batched_tokens - budget
    sampled = n + e.joins
    step_s += c.decode_step_s[tokens] if tokens == sampled else c.prompt_step_s[tokens] + c.sampled_s[sampled]
    e.end_s = e.now_s + step_s
    e.decoding_s += n * step_s
    e.processed += tokens


@nb.njit(cache=True)
def _decode(c, e, until_s):
    """Walk through steps in which all decodes write a token and nothing else happens."""
    if e.joins > 0 or e.partial != NOBODY:
        return
    n, growing, context, in_window = e.running, e.growing, e.context, e.in_window
    fixed_s = c.decode_step_s[n] + c.decode_s.fixed * n
    now_s, end_s, most = e.now_s, e.end_s, e.change - e.steps - 1
    until_s, steps = min(until_s, e.admit_s), 0
    while steps < most and end_s < until_s:
        context += n
        in_window += growing
        if c.kv_bytes.full * context + c.kv_bytes.windowed * in_window > c.kv_capacity_bytes:
            break
        steps += 1
        now_s = end_s
        end_s = now_s + (fixed_s + c.decode_s.full * context + c.decode_s.windowed * in_window)
    e.decoding_s += n * (end_s - e.end_s)
    e.steps += steps
    e.processed += n * steps
    e.context += n * steps
    e.in_window += growing * steps
    e.now_s, e.end_s = now_s, end_s


@nb.njit(cache=True)
def _finish_step(c, q, e, slots, sent):
    """Hand out the tokens of the step in flight; return the number of requests sent so far, see `_served`."""
    e.now_s = e.end_s
    e.steps += 1
    e.context += e.running
    e.in_window += e.growing
    if e.steps >= e.change:
        k = 0
        while k < e.running:
            if slots[k].last_step == e.steps:
                i, _ = _leave(c, e, slots, k)
                sent = _served(q, e, i, sent)
            else:
                k += 1
        _look_ahead(c, e, slots)
    for k in range(e.joins):
        i = slots[k].joining
        q[i].written += 1
        if q[i].written == 1:
            q[i].first_token_s = e.now_s + q[i].fill_s
        left = q[i].tokens_out - q[i].written
        if left > 0:
            _join(c, e, slots, i, q[i].tokens_in + q[i].written, left)
        else:
            sent = _served(q, e, i, sent)
    e.joins = 0
    return sent


@nb.njit(cache=True)
def _served(q, e, i, sent):
    """Note that a request is done; in a closed loop (`sent` is not `NOBODY`) its client sends the next one."""
    q[i].finish_s = e.now_s + q[i].fill_s
    e.outstanding -= 1
    if sent == NOBODY or sent == q.size:
        return sent
    q[sent].arrival_s = q[i].finish_s
    _queue_last(q, e, sent)
    return sent + 1


@nb.njit(cache=True)
def _advance(c, q, e, slots, until_s, sent):
    """Run one engine through everything that happens before `until_s`."""
    while True:
        if e.end_s == np.inf:
            if e.head == NOBODY:
                return
            start_s = max(e.now_s, q[e.head].arrival_s)
            if start_s >= until_s:
                return
            e.now_s = start_s
            _start_step(c, q, e, slots)
        if e.end_s < until_s:
            _decode(c, e, until_s)
        if e.end_s >= until_s:
            return
        sent = _finish_step(c, q, e, slots, sent)
        if e.running > 0 or e.partial != NOBODY:
            _start_step(c, q, e, slots)
        else:
            e.end_s = np.inf


@nb.njit(cache=True)
def _least_outstanding(e, uniform):
    """Choose among the engines with the fewest unfinished requests, at random."""
    fewest, ties = e[0].outstanding, 0
    for r in range(e.size):
        if e[r].outstanding < fewest:
            fewest, ties = e[r].outstanding, 0
        ties += e[r].outstanding == fewest
    skip = int(uniform * ties)
    for r in range(e.size):
        if e[r].outstanding == fewest:
            if skip == 0:
                return r
            skip -= 1
    return 0


@nb.njit(cache=True)
def run_open_loop(c, q, e, slots, dispatch, uniform):
    for i in range(q.size):
        r = i % e.size
        if dispatch == RANDOM:
            r = int(uniform[i] * e.size)
        elif dispatch == LEAST_OUTSTANDING:
            for k in range(e.size):
                _advance(c, q, e[k], slots[k], q[i].arrival_s, NOBODY)
            r = _least_outstanding(e, uniform[i])
        _advance(c, q, e[r], slots[r], q[i].arrival_s, NOBODY)
        q[i].replica = r
        _queue_last(q, e[r], i)
    for r in range(e.size):
        _advance(c, q, e[r], slots[r], np.inf, NOBODY)


@nb.njit(cache=True)
def run_closed_loop(c, q, e, slots, concurrency):
    sent = min(concurrency, q.size)
    for i in range(sent):
        _queue_last(q, e[0], i)
    _advance(c, q, e[0], slots[0], np.inf, sent)
