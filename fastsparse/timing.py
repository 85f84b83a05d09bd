"""Fair timing of several ways to do the same work: interleaved rounds.

Calls take turns, round after round (A B C A B C ...), so that a machine whose speed wanders slows all of them,
and two are compared by the median of the ratios within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]
Clock = Callable[[], float]

# Seconds. OpenBLAS workers wait for their next product on a busy core for 2^28 clock cycles, about 0.1 s.
PAUSE = 0.15
# Seconds. From this on a call's own data flush the caches anyway: no untimed call comes first.
_LONG = 0.03
_BLOCK = 0.1  # seconds of calls by one side before the other's turn


def interleaved(
    calls: Mapping[str, Call],
    *,
    rounds: tuple[int, int] = (3, 15),
    seconds: float = 1.0,
    block: float = 0.003,
    pause: float | Mapping[str, float] = 0.0,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call, one entry for each round that a call took part in.

    Parameters
    ----------
    calls : mapping of name to callable
        Each does the whole work once. One that measures itself has an attribute `elapsed`: a function from a number of
        calls to their seconds.
    rounds : (int, int)
        Fewest and most rounds. Slow calls sit out those beyond the fewest: fast ones need many short measurements.
    seconds : float
        For everything; exceeded where the fewest rounds take longer.
    block : float
        A measurement is the mean of calls that take about so many seconds, after untimed ones that take as long.
    pause : float, or mapping of name to float
        Seconds of rest before each measurement, or before those of some calls: threads of other libraries stop waiting
        for work.
    clock : callable
        Wall clock, or processor time where the machine does something else as well.

    Returns
    -------
    dict of str to list of float
        In the order of `calls`. Entry i of any two comes from the same round.
    """
    fewest, most = rounds
    once = {name: _estimate(call, clock) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for turn in range(most):
        if turn >= fewest and sum(spent.values()) > seconds:
            break
        for name, call in calls.items():
            if turn >= fewest and spent[name] > seconds / len(calls):
                continue
            time.sleep(pause.get(name, 0.0) if isinstance(pause, Mapping) else pause)
            begin = clock()
            if once[name] < _LONG:
                while clock() - begin < block:
                    call()
            repeats = max(1, round(block / max(once[name], 1e-7)))
            found[name].append(_elapsed(call, repeats, clock) / repeats)
            spent[name] += clock() - begin
    return found


def latencies(calls: Mapping[str, Call], seconds: float) -> dict[str, list[list[float]]]:
    """Seconds of every single call, by rounds: about `seconds` for each of `calls`, at least three rounds.

    A round is a block of calls by each in turn; the first call of a block is not counted.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in calls}
    turn, end = 0, time.perf_counter() + seconds * len(calls)
    while turn < 3 or time.perf_counter() < end:
        for name, call in calls.items():
            call()
            taken = [_elapsed(call, 1, time.perf_counter)]
            while sum(taken) < min(_BLOCK, seconds / 3):
                taken.append(_elapsed(call, 1, time.perf_counter))
            found[name].append(taken)
        turn += 1
    return found


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times faster ours is: the median of the ratios within the rounds that both took part in."""
    return statistics.median(t / o for t, o in zip(theirs, ours))


def _estimate(call: Call, clock: Clock) -> float:
    """Seconds of one call: the third one, or the second if that is long. The first may plan, or compile kernels."""
    _elapsed(call, 1, clock)
    for _ in range(2):
        elapsed = _elapsed(call, 1, clock)
        if elapsed > _LONG:
            break
    return elapsed


def _elapsed(call: Call, repeats: int, clock: Clock) -> float:
    own = getattr(call, "elapsed", None)
    if own is not None:
        return float(own(repeats))
    begin = clock()
    for _ in range(repeats):
        call()
    return clock() - begin
