"""The steps of engines under load, put together from the times of the tokens that their client saw.

Requests that an engine works on get a token each at the end of a step. So tokens that come at once are one step, and
what it carried is known: the decodes, and the prompts whose first tokens came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.real_engine_client import Answer

APART_S = 0.008  # the tokens of one step come closer than this, those of two are further apart
FRONT_END_S = 0.015  # a request sent so long before a step starts has reached the engine


@dataclass(frozen=True)
class Step:
    """One step of one engine."""

    took_s: float
    decodes: int
    context: int  # tokens that the decodes read, in all
    prompts: tuple[int, ...]  # tokens of those it read
    waited_s: tuple[float, ...]  # how long before the step they were sent
    from_idle: bool  # then it starts when the first of them is sent


def steps(answers: Sequence[Answer]) -> list[Step]:
    """The steps behind the answers of all servers; those that read a part of a prompt are left out."""
    return [step for port in {a.port for a in answers} for step in _of_one([a for a in answers if a.port == port])]


def _of_one(answers: Sequence[Answer]) -> list[Step]:
    ends = list(_ends(answers))
    found, cut = [], []
    for (before_s, _), (start_s, _), (end_s, tokens) in zip(ends, ends[1:], ends[2:], strict=False):
        joined = [answers[i] for i, place in tokens if place == 0]
        contexts = [answers[i].tokens_in + place for i, place in tokens if place]
        sent_s = min((answer.sent_s for answer in joined), default=start_s)
        from_idle = not contexts and sent_s > start_s
        took_s = end_s - (sent_s if from_idle else start_s)
        prompts = tuple(answer.tokens_in for answer in joined)
        waited_s = tuple(start_s - answer.sent_s for answer in joined)
        found.append(Step(took_s, len(contexts), sum(contexts), prompts, waited_s, from_idle))
        # What had come before the step before, and was not all read in it, was cut off there.
        cut.append(any(answer.sent_s < before_s - FRONT_END_S for answer in joined))
    return [step for step, here, next_one in zip(found, cut, [*cut[1:], False], strict=True) if not (here or next_one)]


def _ends(answers: Sequence[Answer]) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    """When each step ended, and its tokens: which answer, and the place in it."""
    tokens = sorted(
        (s, i, place) for i, answer in enumerate(answers) for place, s in enumerate(answer.token_s.tolist())
    )
    end_s = last_s = tokens[0][0]
    together: dict[int, int] = {}
    for token_s, i, place in tokens:
        if i in together or token_s - last_s > APART_S:
            yield end_s, list(together.items())
            end_s, together = token_s, {}
        together[i] = place
        last_s = token_s
    yield end_s, list(together.items())
