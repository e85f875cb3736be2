"""Cases in worker processes that may die: a worker that crashes or hangs costs its case, not the run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from bench.onnx_nodes.cases import Case
from bench.onnx_nodes.run import Outcome

_CASE_SECONDS = 120.0
# A worker is replaced after so many cases, which bounds what a library may leak.
_CASES_A_WORKER = 150
_FORK = multiprocessing.get_context("fork")


def _work(pipe: Connection, cases: Sequence[Case], run: Callable[[Case], Outcome]) -> None:
    while True:
        number = pipe.recv()
        if number is None:
            return
        pipe.send(run(cases[number]))


class _Worker:
    def __init__(self, cases: Sequence[Case], run: Callable[[Case], Outcome]) -> None:
        self.pipe, theirs = _FORK.Pipe()
        self.process = _FORK.Process(target=_work, args=(theirs, cases, run), daemon=True)
        self.process.start()
        theirs.close()
        self.number = -1
        self.since = 0.0
        self.done = 0

    def give(self, number: int) -> None:
        self.number, self.since = number, time.monotonic()
        self.pipe.send(number)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_all(cases: Sequence[Case], run: Callable[[Case], Outcome], processes: int) -> Iterator[Outcome]:
    """Outcomes in the order in which they come; `run` is called in forked processes."""
    waiting = iter(range(len(cases)))
    workers: list[_Worker] = []
    for number in waiting:
        workers.append(_Worker(cases, run))
        workers[-1].give(number)
        if len(workers) == processes:
            break
    while workers:
        ready = wait([worker.pipe for worker in workers], timeout=1.0)
        for place, worker in reversed(list(enumerate(workers))):
            outcome = None
            if worker.pipe in ready:
                try:
                    outcome = worker.pipe.recv()
                except EOFError:
                    outcome = _lost(cases[worker.number], "the compiler's process died")
            elif time.monotonic() - worker.since > _CASE_SECONDS:
                outcome = _lost(cases[worker.number], f"no outcome within {_CASE_SECONDS:.0f} s")
            if outcome is None:
                continue
            yield outcome
            worker.done += 1
            if outcome.reason == "COMPILER_CRASH" or worker.done >= _CASES_A_WORKER:
                worker.end()
                worker = workers[place] = _Worker(cases, run)
            following = next(waiting, None)
            if following is None:
                worker.end()
                workers.pop(place)
            else:
                worker.give(following)


def _lost(case: Case, detail: str) -> Outcome:
    return Outcome(case.name, case.operator, "failed", "COMPILER_CRASH", detail)
