"""A light client: one connection per request, streamed answers, and the time of every token.

It shares the machine with the engines, so it parses nothing but counts the events that carry a token.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_engine_model import VOCABULARY
from benchmarks.real_engine_servers import MODEL_NAME

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
ANSWERED_WITHIN_S = 120.0
_PIECE_BYTES = 1 << 16
_EVENT = b"data: {"
_TOKENS_WRITTEN = b'"completion_tokens":'


@dataclass(frozen=True)
class Answer:
    """When a request was sent and when its tokens came, on the clock of `time.perf_counter`."""

    port: int
    tokens_in: int
    sent_s: float
    token_s: FloatArray

    @property
    def first_token_s(self) -> float:
        return float(self.token_s[0])

    @property
    def finished_s(self) -> float:
        return float(self.token_s[-1])


async def ask(port: int, tokens_in: int, tokens_out: int) -> Answer:
    """Send a random prompt and read the whole answer."""
    async with asyncio.timeout(ANSWERED_WITHIN_S):
        return await _ask(port, tokens_in, tokens_out)


async def _ask(port: int, tokens_in: int, tokens_out: int) -> Answer:
    request = _request(tokens_in, tokens_out)
    sent_s = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    token_s: list[float] = []
    end = b""
    while piece := await reader.read(_PIECE_BYTES):
        now_s = time.perf_counter()
        end = (end + piece)[-_PIECE_BYTES:]
        token_s += [now_s] * piece.count(_EVENT)
    writer.close()
    # The last event carries no token but their number. A front end that lags behind packs several into one event.
    written = int(end.rpartition(_TOKENS_WRITTEN)[2].partition(b"}")[0].partition(b",")[0] or -1)
    if written != tokens_out:
        raise RuntimeError(f"asked for {tokens_out} tokens and got {written}; the server said {end[-500:]!r}")
    return Answer(port, tokens_in, sent_s, np.array(token_s[:-1]))


def _request(tokens_in: int, tokens_out: int) -> bytes:
    # Token ids make the length exact, and random ones no prompt the beginning of another.
    body = {
        "model": MODEL_NAME,
        "prompt": np.random.default_rng().integers(0, VOCABULARY, tokens_in).tolist(),
        "max_tokens": tokens_out,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass(frozen=True)
class Load:
    """Requests in order of sending: arrays of shape (requests,)."""

    arrival_s: FloatArray  # from the start
    tokens_in: IntArray
    tokens_out: IntArray

    @property
    def size(self) -> int:
        return self.tokens_in.size


@dataclass(frozen=True)
class Served:
    """What became of them: times from the start, arrays of shape (requests,)."""

    arrival_s: FloatArray
    first_token_s: FloatArray
    finished_s: FloatArray
    port: IntArray


class _Balancer:
    """Sends each request to the server with the fewest unfinished ones, ties at random."""

    def __init__(self, ports: Sequence[int], load: Load, seed: int) -> None:
        self.ports, self.load = ports, load
        self.draws = np.random.default_rng(seed).random(load.size)
        self.outstanding = [0] * len(ports)

    async def send(self, i: int) -> Answer:
        fewest = min(self.outstanding)
        ties = [k for k, count in enumerate(self.outstanding) if count == fewest]
        k = ties[int(self.draws[i] * len(ties))]
        self.outstanding[k] += 1
        try:
            return await ask(self.ports[k], int(self.load.tokens_in[i]), int(self.load.tokens_out[i]))
        finally:
            self.outstanding[k] -= 1


async def open_loop(ports: Sequence[int], load: Load, seed: int) -> Served:
    """Send each request at its time."""
    balancer = _Balancer(ports, load, seed)
    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for i, due_s in enumerate(load.arrival_s):
            await asyncio.sleep(start_s + due_s - time.perf_counter())
            tasks.append(group.create_task(balancer.send(i)))
    answers = [task.result() for task in tasks]
    times_s = np.array([[a.sent_s, a.first_token_s, a.finished_s] for a in answers]) - start_s
    arrival_s, first_token_s, finished_s = times_s.T
    return Served(arrival_s, first_token_s, finished_s, np.array([a.port for a in answers]))


async def closed_loop(
    ports: Sequence[int], load: Load, concurrency: int, pause_s: float, rng: np.random.Generator
) -> list[Answer]:
    """Send requests from so many clients, each of which waits for its answer and then a while, `pause_s` at most."""
    balancer = _Balancer(ports, load, int(rng.integers(1 << 32)))
    waiting = iter(range(load.size))
    answers = []

    async def client() -> None:
        for i in waiting:
            await asyncio.sleep(rng.uniform(0, pause_s))
            answers.append(await balancer.send(i))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(client())
    return answers
