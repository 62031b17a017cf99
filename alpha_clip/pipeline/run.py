"""Process the shards of a run, one after the other or in several processes, and skip those that are done."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from .. import atomic
from . import on_ray
from .given import check_can_be_sent
from .ledger import Ledger
from .on_ray import Cluster
from .tasks import (
    MANIFESTS,
    REJECTS,
    REMEDY,
    SETTINGS,
    Task,
    Work,
    check_ours,
    check_place,
    differing,
    is_done,
    is_there,
    make,
    name_of,
    prepared,
    remove_parts,
    summarise,
)

_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def run(
    work: Work,
    shards: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    workers: int = 1,
    cluster: Cluster | None = None,
) -> Ledger:
    """Process the shards that are not done yet, and write the report for all in the folder. Return its counts.

    With more than one worker, each is a process with models of its own, on this machine or on Ray's `cluster`; the
    files are the same.

    Raises:
        ValueError: `workers` is below 1; two shards have the same name; the folder holds a run with other settings, or
            files that no run wrote and that this one would overwrite, perhaps a shard.
        RuntimeError: another run is at work in the folder, a worker was killed, or the files of a shard are missing at
            the end. What is done stays.
        TypeError: a model of the work cannot be sent to other processes, or `shards` is one path.
        NotADirectoryError: the folder is a file, or its path leads through one.
        Other errors: as the work's `prepare` and `on_ray.together`.

    Warns:
        UserWarning: shards in the folder were made with different versions of a package.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    if isinstance(shards, (str, os.PathLike)):
        raise TypeError(f"shards is {shards!r}, expected a list of paths: pass [{shards!r}]")
    return _run(work, [*map(Path, shards)], Path(folder), workers, cluster)


def _run(work: Work, shards: Sequence[Path], folder: Path, workers: int, cluster: Cluster | None) -> Ledger:
    _names_differ(shards)
    check_place(shards, folder)
    check_ours(work, shards, folder)
    for place in (folder, folder / MANIFESTS, folder / REJECTS):
        place.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK, timeout=0):
            _claim(folder / SETTINGS, work)
            remove_parts(folder)
            left = [shard for shard in shards if not is_done(shard, folder)]
            done = _doing(work, left, folder, workers, cluster)
            for _ in tqdm(done, "shards", total=len(shards), initial=len(shards) - len(left), disable=None):
                pass
            _check_all_are_done(left, folder)
            _claim(folder / SETTINGS, work)  # adds the weights that the Hub sent meanwhile
            remove_parts(folder)  # left by a killed run's workers that had not ended yet
            return summarise(folder)
    except Timeout as error:
        raise RuntimeError(f"another run is at work in {folder}: wait for its end, or name another folder") from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        remedy = f"free some space for {folder}, and run the same command again: what is done stays"
        raise OSError(error.errno, f"{error.strerror}: {remedy}") from error


def _doing(work: Work, shards: Sequence[Path], folder: Path, workers: int, cluster: Cluster | None) -> Iterable[None]:
    if not shards:
        return ()
    if cluster is not None:
        return on_ray.together(work, shards, folder, workers, cluster)
    return _alone(work, shards, folder) if workers == 1 else _together(work, shards, folder, workers)


def _check_all_are_done(shards: Sequence[Path], folder: Path) -> None:
    missing = [shard.name for shard in shards if not is_there(shard, folder)]
    if missing:
        remedy = "see that all machines have it under this path, and run the same command again"
        raise RuntimeError(f"{_some(missing)} are not in {folder} though workers did them: {remedy}")
    changed = [shard.name for shard in shards if not is_done(shard, folder)]
    if changed:
        raise RuntimeError(f"{_some(changed)} changed while they were read: leave them alone, and run again")


def _some(shards: Sequence[str]) -> str:
    return f"{len(shards)} shards ({', '.join(shards[:5])}{', ...' * (len(shards) > 5)})"


def _names_differ(shards: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for shard in shards:
        name = name_of(shard)
        if name in seen:
            raise ValueError(f"{seen[name]} and {shard} would both become {name}: rename one of them")
        seen[name] = shard


def _claim(path: Path, work: Work) -> None:
    """Write the settings to `path`. If a shard was done already, refuse settings other than those written there.

    Fingerprints of weights that become known only during the run are added later.
    """
    now = json.loads(json.dumps(work.settings()))
    begun = path.exists() and any((path.parent / MANIFESTS).glob("[!.]*.json"))
    before = json.loads(path.read_text(encoding="utf-8")) if begun else now
    if other := differing(before, now):
        other = ["command"] if "command" in other else other  # the other differences follow from it
        both = "; ".join(f"{name}: {before.get(name)} there, {now.get(name)} now" for name in other)
        raise ValueError(f"{path.parent} holds a run with another {', '.join(other)} ({both}): {REMEDY}")
    found = now | {name: value for name, value in before.items() if value is not None}
    if found != before or not begun:
        atomic.write_text(path, json.dumps(found, indent=1, sort_keys=True) + "\n")


def _alone(work: Work, shards: Sequence[Path], folder: Path) -> Iterator[None]:
    task = prepared(work, folder)
    for shard in shards:
        make(shard, folder, task)
        yield


# --- in several processes ---

_task: Task | None = None  # the task of this process, if it is a worker


def _together(work: Work, shards: Sequence[Path], folder: Path, workers: int) -> Iterator[None]:
    check_can_be_sent(work)
    threads = max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(
        min(workers, len(shards)),
        multiprocessing.get_context("spawn"),  # a fork of a process that has used torch or CUDA may hang
        _start,
        (os.getpid(), threads),
    )
    try:
        with pool:
            futures = [pool.submit(_make, work, shard, folder) for shard in shards]
            try:
                for future in as_completed(futures):
                    future.result()
                    yield
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise RuntimeError("a worker was killed, perhaps for want of memory: run the same command again") from error


def _start(parent: int, threads: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)


def _end_with(parent: int) -> None:
    """End this worker when its parent has ended; after a killed run it would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _make(work: Work, shard: Path, folder: Path) -> None:
    global _task
    if _task is None:  # not in `_start`, whose errors would be lost
        _task = prepared(work, folder)
    make(shard, folder, _task)
