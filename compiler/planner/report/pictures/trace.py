"""A pipeline schedule as a Chrome trace, for ui.perfetto.dev or chrome://tracing: a track for every rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dsc.compiler.planner.pipeline.simulate import Timeline

Event = dict[str, Any]


def chrome_trace(timeline: Timeline, title: str) -> str:
    """The step as JSON in the Trace Event Format, an event a line. Times are in microseconds, to the nanosecond.

    Beside its actions each rank has a counter: the (stage, micro-batch) activations that it holds.
    """
    events = [{"name": "process_name", "ph": "M", "pid": 0, "args": {"name": title}}]
    for rank in range(len(timeline.actions)):
        events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}"}})
    for rank in range(len(timeline.actions)):
        events += _slices(timeline, rank)
        events += _counters(timeline, rank)
    lines = ",\n".join(json.dumps(event, separators=(",", ":"), sort_keys=True) for event in events)
    return f'{{"displayTimeUnit":"ms","traceEvents":[\n{lines}\n]}}\n'


def _slices(timeline: Timeline, rank: int) -> Iterator[Event]:
    for action, start, end in zip(timeline.actions[rank], timeline.start[rank], timeline.end[rank], strict=True):
        members = [
            {"kind": member.kind, "stage": member.stage, "micro_batch": member.micro_batch} for member in action.members
        ]
        yield {
            "name": " & ".join(f"{member.kind} {member.micro_batch}" for member in action.members),
            "cat": action.kind,
            "ph": "X",
            "pid": 0,
            "tid": rank,
            "ts": _microseconds(start),
            "dur": _microseconds(end - start),
            "args": {"members": members},
        }


def _counters(timeline: Timeline, rank: int) -> Iterator[Event]:
    changes: dict[float, int] = {}
    for action, start, end in zip(timeline.actions[rank], timeline.start[rank], timeline.end[rank], strict=True):
        for member in action.members:
            if member.kind == "F":
                changes[start] = changes.get(start, 0) + 1
            elif member.kind != "B":
                changes[end] = changes.get(end, 0) - 1
    held = 0
    for time in sorted(changes):
        if changes[time]:
            held += changes[time]
            yield {
                "name": f"in flight, rank {rank}",
                "ph": "C",
                "pid": 0,
                "ts": _microseconds(time),
                "args": {"activations": held},
            }


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
