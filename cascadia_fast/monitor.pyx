# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: auto_pickle=False, embedsignature=False
"""The live gateway's monitor: one cheap call per stage visit, statistics and a workload to re-plan on when asked.

`observe` writes one record of 56 bytes into a ring that is allocated once, so it costs the same at any load and the
memory never grows. It holds the GIL from the first byte of a record to the last: threads neither lose a visit nor see
half of one. Everything that takes time (statistics, raking) works on a copy, in Python (`traffic`, `reweighting`).
"""

cimport cython
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject_Hash
from libc.math cimport INFINITY, NAN, isfinite, isnan

import numpy as np

from cascadia_fast.errors import InputError
from cascadia_fast.reweighting import reweight
from cascadia_fast.traffic import VISIT, TrafficWindow

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1

# No model has a context of a billion tokens: a larger count is a bug upstream and would drown every mean.
cdef double MAX_TOKENS = 1e9

cdef struct Visit:
    Py_hash_t request
    long long stage
    double now_s
    double latency_s
    double input_tokens
    double output_tokens
    double score


@cython.final
cdef class Monitor:
    """Watches a live cascade: one `observe` per stage visit, statistics over a sliding window.

    Parameters
    ----------
    stages
        Number of models in the cascade, 1 to 64.
    window_s
        Length of the window, in seconds.
    capacity
        Number of visits held, 64 to 2^24, at 56 bytes each. Statistics look back up to two windows; when the traffic
        fills the ring sooner, the window shrinks, and `Snapshot.window_s` says to what.

    Attributes
    ----------
    observations
        Visits recorded since the monitor was made.

    Raises
    ------
    InputError
        When an argument is out of range.
    """

    cdef readonly Py_ssize_t stages
    cdef readonly double window_s
    cdef readonly Py_ssize_t capacity
    cdef readonly long long observations
    cdef Py_ssize_t _next
    cdef Visit[::1] _ring

    # Not __init__: __new__ alone would leave no ring to write to.
    def __cinit__(self, stages, window_s=300.0, capacity=65_536):
        cdef double stage_count = number_of(stages), window = number_of(window_s), places = number_of(capacity)
        if not 1 <= stage_count <= 64 or stage_count != <Py_ssize_t>stage_count:
            raise InputError(f"stages of Monitor is {stages!r}; give the number of models in the cascade, 1 to 64")
        if not (isfinite(window) and window > 0):
            raise InputError(f"window_s of Monitor is {window_s!r}; give a positive number of seconds")
        if not 64 <= places <= 1 << 24 or places != <Py_ssize_t>places:
            raise InputError(f"capacity of Monitor is {capacity!r}; give a whole number of visits, 64 to {1 << 24:,}")
        self.stages = <Py_ssize_t>stage_count
        self.window_s = window
        self.capacity = <Py_ssize_t>places
        self.observations = 0
        self._next = 0
        self._ring = np.zeros(self.capacity, VISIT)

    def observe(self, str request_id not None, stage, input_tokens, output_tokens, score, latency_s, now_s):
        """Record that a stage has answered a request and its judge, if any, has scored the answer.

        Safe to call from any thread. Positional arguments are the fastest.

        Parameters
        ----------
        request_id
            Any text; the same for every visit of one request, different for different requests within a window.
        stage
            Index of the model, 0 for the smallest.
        input_tokens, output_tokens
            Tokens of this visit, 0 to 1e9; output tokens include thinking.
        score
            The judge's score, 0 to 100; NaN or None when the judge failed or was not asked.
        latency_s
            Seconds from the request's arrival at the stage to now; NaN, None or a negative number (a clock was set
            back) counts as unknown.
        now_s
            Reading of the gateway's clock, in seconds; a monotonic one is best. A clock that falls back by less than a
            window holds the window's end until it has caught up; by more, the statistics start afresh.

        Raises
        ------
        InputError
            When an argument is out of range; nothing is recorded.
        """
        # Every conversion comes before the first write: a foreign number type may run Python code, hence other threads.
        cdef double at_stage = number_of(stage)
        cdef double tokens_in = number_of(input_tokens)
        cdef double tokens_out = number_of(output_tokens)
        cdef double judged = number_of(score)
        cdef double latency = number_of(latency_s)
        cdef double now = number_of(now_s)
        cdef Py_hash_t request = PyObject_Hash(request_id)
        cdef Visit* visit
        if not (0 <= at_stage < self.stages) or at_stage != <long long>at_stage:
            raise _bad("stage", stage, f"the index of the visited model, 0 to {self.stages - 1}")
        if not (0 <= tokens_in <= MAX_TOKENS):
            raise _bad("input_tokens", input_tokens, "the number of prompt tokens, 0 to 1e9")
        if not (0 <= tokens_out <= MAX_TOKENS):
            raise _bad("output_tokens", output_tokens, "the number of generated tokens, 0 to 1e9")
        if not (isnan(judged) or 0 <= judged <= 100):
            raise _bad("score", score, "the judge's score on the scale 0 to 100, NaN if there is none")
        if not isfinite(now):
            raise _bad("now_s", now_s, "the reading of a clock in seconds")
        visit = &self._ring[self._next]
        visit.request = request
        visit.stage = <long long>at_stage
        visit.now_s = now
        visit.latency_s = latency if isfinite(latency) and latency >= 0 else NAN
        visit.input_tokens = tokens_in
        visit.output_tokens = tokens_out
        visit.score = judged
        self._next += 1
        if self._next == self.capacity:
            self._next = 0
        self.observations += 1

    def window(self, now_s=None):
        """Return a copy of what is held for the window that ends at `now_s`, as a `TrafficWindow`.

        Parameters
        ----------
        now_s
            Reading of the clock `observe` is given; without it, the window ends at the latest visit.
        """
        cdef double given_s = NAN if now_s is None else number_of(now_s)
        cdef double end_s, known_from_s
        cdef Py_ssize_t kept = 0, k
        cdef Visit visit
        cdef bint restarted
        if now_s is not None and not isfinite(given_s):
            raise InputError(f"now_s of Monitor is {now_s!r}; give the reading of a clock in seconds, or leave it out")
        # Allocated first: from here to the last copy no Python code runs, so no other thread writes meanwhile.
        found = np.empty(self.capacity, VISIT)
        cdef Visit[::1] copies = found
        end_s = self._latest_s() if now_s is None else given_s
        known_from_s = self._known_from_s()
        # A clock that restarted has left visits from its future: then the first one of the present says since when.
        restarted = known_from_s > end_s
        observations = self.observations
        for k in range(self._held()):
            visit = self._visit(k)
            if end_s - 2 * self.window_s < visit.now_s <= end_s:
                copies[kept] = visit
                kept += 1
                if restarted:
                    known_from_s = min(known_from_s, visit.now_s)
        return TrafficWindow(found[:kept].copy(), self.stages, self.window_s, end_s, known_from_s, observations)

    def snapshot(self, now_s=None):
        """Return the `Snapshot` of the window that ends at `now_s`, or at the latest visit.

        Takes a few milliseconds for 10,000 visits (20 to 50 ms for a full ring of 65,536): not for the event loop.
        """
        return self.window(now_s).snapshot()

    def reweight(self, reference, now_s=None):
        """Return the `Reweighted` reference: the workload with everything that tells how far to trust it.

        Takes, raises and warns what `workload` does.
        """
        return reweight(reference, self.window(now_s))

    def workload(self, reference, now_s=None):
        """Return the workload to plan on: the observed rate and burstiness, and the reference raked to the traffic.

        Live data are censored: a request accepted by the first stage has no scores of larger models. So the requests of
        `reference`, which every model has answered, are weighted until they show the observed lengths and scores of
        the first stage (see `cascadia_fast.reweighting`).

        Parameters
        ----------
        reference
            A `Workload` whose models are this cascade's; its `rate_from` and `headroom` carry over.
        now_s
            End of the window; without it, the latest visit.

        Raises
        ------
        InputError
            When fewer than 50 requests were seen, or the reference has another number of models.

        Warns
        -----
        CascadiaWarning
            When the weighted reference is worth fewer than 30 requests, or does not cover the traffic.
        """
        return reweight(reference, self.window(now_s)).workload

    cdef inline Py_ssize_t _held(self) noexcept:
        return <Py_ssize_t>min(self.observations, <long long>self.capacity)

    cdef inline Visit _visit(self, Py_ssize_t k) noexcept:
        """The k-th oldest visit held."""
        cdef Py_ssize_t place = self._next - self._held() + k
        return self._ring[place + self.capacity if place < 0 else place]

    cdef double _latest_s(self) noexcept:
        """Time of the last visit, or the latest one less than a window ahead of it (threads, a clock set back)."""
        cdef Py_ssize_t k
        cdef double last_s, latest_s, now_s
        if self.observations == 0:
            return NAN
        last_s = latest_s = self._visit(self._held() - 1).now_s
        for k in range(self._held()):
            now_s = self._visit(k).now_s
            if latest_s < now_s < last_s + self.window_s:
                latest_s = now_s
        return latest_s

    cdef double _known_from_s(self) noexcept:
        """The first arrival, or the time before which visits have been overwritten."""
        cdef Visit oldest
        if self.observations == 0:
            return NAN
        oldest = self._visit(0)
        if self.observations > self.capacity or isnan(oldest.latency_s):
            return oldest.now_s
        return oldest.now_s - oldest.latency_s


cdef inline double number_of(object value) except? -1.0:
    """A Python number as a double without allocating: NaN for None, infinity for what is too large or no number."""
    cdef int overflow = 0
    cdef long long whole
    if PyFloat_Check(value):
        return PyFloat_AS_DOUBLE(value)
    if PyLong_CheckExact(value):
        whole = PyLong_AsLongLongAndOverflow(value, &overflow)
        return <double>whole if overflow == 0 else INFINITY
    return _foreign_number_of(value)


cdef double _foreign_number_of(object value) except? -1.0:
    if value is None:
        return NAN
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return INFINITY


cdef object _bad(str name, object value, str expected):
    return InputError(f"{name} given to Monitor.observe is {value!r}; give {expected}")
