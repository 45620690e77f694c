"""Makes the scored requests of the three traces, from hard and long to easy and short, by re-weighting two tables.

python benchmarks/make_traces.py           write them into benchmarks/cases/data
python benchmarks/make_traces.py --check   exit 1 unless the files there hold exactly that

A request counts in a trace with the weight

    w = exp(a z(difficulty) + b z(length)), scaled to mean 1,

where z standardises over the table's requests, the difficulty is minus the mean of all marks of the answers of the
cascade's models, and the length is the logarithm of the mean over those models of input and output tokens. Nothing
else about a request changes, so a trace is as real as its table; what re-weighting costs is sample size, which is
printed as Kish's effective size.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "benchmarks" / "cases" / "data"
TRACES = ("trace1", "trace2", "trace3")

FloatArray = NDArray[np.float64]
Row = dict[str, str]


@dataclass(frozen=True)
class Source:
    """A table of scored answers and how its requests are weighted; `tilts` are (a, b) of every trace.

    `marks` are the columns that mark an answer, each from 0 to `full_mark`.
    """

    table: Path
    made: Path
    request: tuple[str, ...]
    models: tuple[str, ...]
    marks: tuple[str, ...]
    full_mark: float
    kept: tuple[str, ...]
    tilts: tuple[tuple[float, float], ...]


SOURCES = (
    # 51 prompts: stronger tilts would leave too few of them to split in two.
    Source(
        table=DATA / "deepseek_r1_51prompts.csv",
        made=DATA / "deepseek_traces.csv",
        request=("prompt_id",),
        models=("R1-Distill-Qwen-7B", "R1-Distill-Llama-70B", "DeepSeek-R1-671B"),
        marks=("score_gemini25pro", "score_grok4fast"),
        full_mark=10,
        kept=("score_gemini25pro", "score_grok4fast", "input_tokens", "output_tokens"),
        tilts=((0.4, 0.2), (0.0, 0.0), (-0.4, -0.2)),
    ),
    Source(
        table=ROOT / "cascadia_fast" / "data" / "example" / "requests.csv.gz",
        made=DATA / "zeroeval_traces.csv.gz",
        request=("dataset", "prompt_id"),
        models=("Llama-3.1-8B", "Llama-3.1-70B"),
        marks=("correct",),
        full_mark=1,
        kept=("input_tokens", "output_tokens", "correct"),
        tilts=((0.3, 0.1), (0.0, 0.0), (-0.3, -0.1)),
    ),
)


@dataclass(frozen=True)
class Requests:
    """The answers of the cascade's models by request: arrays of shape (models, requests), marks from 0 to 100."""

    rows: tuple[tuple[Row, ...], ...]
    marks: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray

    @classmethod
    def read(cls, source: Source) -> Requests:
        with io.TextIOWrapper(_opened(source.table), encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        by_model = [{_key(row, source): row for row in rows if row["model"] == model} for model in source.models]
        order = list(by_model[0])
        answers = tuple(tuple(of_model[key] for key in order) for of_model in by_model)

        def column(name: str) -> FloatArray:
            return np.array([[float(row[name]) for row in of_model] for of_model in answers])

        marks = np.mean([column(name) for name in source.marks], axis=0) * (100 / source.full_mark)
        return cls(answers, marks, column("input_tokens"), column("output_tokens"))

    def weights(self, source: Source) -> FloatArray:
        """Shape (traces, requests), to the four digits that are written."""
        difficulty = _standardised(-self.marks.mean(axis=0))
        length = _standardised(np.log((self.input_tokens + self.output_tokens).mean(axis=0)))
        weights = np.array([np.exp(a * difficulty + b * length) for a, b in source.tilts])
        rounded: FloatArray = np.round(weights / weights.mean(axis=1, keepdims=True), 4)
        return rounded


def content(source: Source) -> bytes:
    """Return the table of a source with one column of weights per trace."""
    requests = Requests.read(source)
    weights = requests.weights(source)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*source.request, "model", *source.kept, *TRACES])
    for of_model in requests.rows:
        for row, weight in zip(of_model, weights.T, strict=True):
            cells = [row[name] for name in (*source.request, "model", *source.kept)]
            table.writerow([*cells, *(f"{value:.4f}" for value in weight)])
    return text.getvalue().encode()


def report(source: Source) -> str:
    """Return what each trace is: effective sample size, and means by model."""
    requests = Requests.read(source)
    size = requests.marks.shape[1]
    lines = [f"{source.made.name}: {size:,} requests, models {', '.join(source.models)}"]
    for trace, (a, b), weight in zip(TRACES, source.tilts, requests.weights(source), strict=True):
        share = weight / weight.sum()
        said = [
            f"a {a:+.1f}, b {b:+.1f}, effective size {1 / np.square(share).sum():,.1f}",
            f"mark {_listed(requests.marks @ share, 1)}",
            f"input {_listed(requests.input_tokens[:1] @ share, 0)}",
            f"output {_listed(requests.output_tokens @ share, 0)} tokens",
        ]
        lines.append(f"  {trace}  {'; '.join(said)}")
    return "\n".join(lines)


def _listed(values: FloatArray, digits: int) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in values)


def _key(row: Row, source: Source) -> tuple[str, ...]:
    return tuple(row[name] for name in source.request)


def _standardised(values: FloatArray) -> FloatArray:
    return np.asarray((values - values.mean()) / values.std())


def _opened(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the scored requests of the three traces.")
    parser.add_argument("--check", action="store_true", help="only say whether the files are what this makes")
    check = parser.parse_args().check
    stale = 0
    for source in SOURCES:
        made = content(source)
        if check:
            with _opened(source.made) as file:
                same = file.read() == made
            stale += not same
            print(f"{source.made.name} is {'up to date' if same else 'out of date; run benchmarks/make_traces.py'}")
            continue
        # Without a time or a name inside, the same table compresses to the same bytes.
        source.made.write_bytes(gzip.compress(made, 9, mtime=0) if source.made.suffix == ".gz" else made)
        print(report(source))
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
