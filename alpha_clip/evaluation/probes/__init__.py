"""Single questions about a model, each answered on the regions of a task's samples by a function `probe`."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from ..samples import Sample, Task, UnusableSample
from ..subjects import Subject
from ..tables import Finding
from ..ways import Way
from . import attention, graded, identity, noise, sensitivity, size, unions

PICTURES = 100  # samples of a task that probes look at

Probe = Callable[[Subject, Sequence[Sample], Sequence[str], Sequence[Way] | None], Finding]

PROBES: dict[str, Probe] = {
    "identity": identity.probe,
    "sensitivity": sensitivity.probe,
    "noise": noise.probe,
    "unions": unions.probe,
    "graded": graded.probe,
    "size": size.probe,
    "attention": attention.probe,
}


def probe(
    names: Sequence[str],
    subjects: Sequence[Subject],
    task: Task,
    ways: Sequence[Way] | None = None,
    leave_out: Container[str] = (),
) -> list[Finding]:
    """Run the probes of these names, or all if one of them is "all", on each subject.

    Args:
        task: at most `PICTURES` samples are used, spread evenly.
        ways: for the probes that compare ways; None: see each probe.
        leave_out: keys of samples to skip, such as those that a run with these ways could not use.

    Raises:
        ValueError: there is no such probe.
    """
    chosen = list(PROBES) if "all" in names else names
    if unknown := [name for name in chosen if name not in PROBES]:
        raise ValueError(f"there is no probe {unknown[0]!r}: expected all, or some of {', '.join(PROBES)}")
    samples = some_of(task, leave_out)
    return [
        _of(subject, PROBES[name](subject, samples, task.templates, ways), several=len(subjects) > 1)
        for subject in subjects
        for name in chosen
    ]


def _of(subject: Subject, found: Finding, several: bool) -> Finding:
    return replace(found, title=f"{found.title} ({subject.name})") if several else found


def some_of(task: Task, leave_out: Container[str] = ()) -> list[Sample]:
    """At most `PICTURES` samples, spread evenly, without unusable ones and those whose key is in `leave_out`."""
    step = max(1, len(task.keys) / PICTURES)
    found = []
    for i in range(min(PICTURES, len(task.keys))):
        number = int(i * step)
        if task.keys[number] in leave_out:
            continue
        try:
            found.append(task.read(number))
        except UnusableSample:
            continue
    return found
