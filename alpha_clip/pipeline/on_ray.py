"""Process the shards of a run on Ray Data: on a cluster, or on a local Ray that is started and stopped for it."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from . import fingerprints
from .given import check_can_be_sent
from .tasks import MANIFESTS, Task, Work, differing, make, name_of, names_of, prepared

_ATTEMPTS = 4  # how often a shard whose workers are killed is tried
_SECONDS = 20  # how long to wait for a cluster's answer; Ray itself would try for minutes
_TOKEN = (  # `ray start` asks for one where there is one; Ray sends it by itself to "auto" alone
    "if it asks for a token, set RAY_AUTH_MODE=token, with its token in ~/.ray/auth_token or RAY_AUTH_TOKEN; "
    "on a machine of the cluster, --address auto sends the one in the file"
)
_SILENT = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster to work on. All its machines need this package, and shards, folder and models under the same paths.

    If the caller is connected to Ray already, that connection is used, whatever the address, and left open.
    """

    address: str = "local"  # "local": a Ray of its own; "auto", or HOST:PORT: that cluster
    gpus: float = 0  # for each worker


def together(work: Work, shards: Sequence[Path], folder: Path, workers: int, cluster: Cluster) -> Iterator[None]:
    """Process the shards in `workers` actors, each with models of its own; yield after each shard.

    An actor that is killed is started again and repeats its shard, which leaves the same files. Each of Ray Data's
    blocks holds the path of one shard or its result, so that what Ray stores does not grow with the samples.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no such cluster, or it lets nobody in.
        ValueError: the local Ray has fewer GPUs than a worker needs.
        RuntimeError: the workers of a shard were killed again and again.
        TypeError: a model of the work cannot be sent to them.
        Other errors: as the work's `prepare`.
    """
    ray = _ray()
    check_can_be_sent(work, ray.cloudpickle.dumps)
    with _connection(ray, workers, cluster) as threads, _quiet():
        settings = ray.data.DataContext.get_current().copy()
        settings.enable_progress_bars = False
        settings.execution_no_progress_timeout_s = -1  # a shard may take longer than its half an hour
        with ray.data.DataContext.current(settings):
            paths = ray.data.from_items([str(shard.absolute()) for shard in shards], override_num_blocks=len(shards))
        done = paths.map(
            _Worker,
            fn_constructor_args=(work, folder.resolve(), threads, _Origin.of(work)),
            # One task in flight each, so that none waits at one actor while another is idle.
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=cluster.gpus,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"]) from RuntimeError(row["where"])
            yield


@dataclass(frozen=True)
class _Origin:
    """The folder where the run was started, and the files that its model names and word lists stood for there."""

    place: Path
    needed: tuple[Path, ...]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, work: Work) -> _Origin:
        there = tuple(path for path in fingerprints.places(names_of(work)) if path.exists())
        return cls(Path.cwd(), there, work.settings())

    def enter(self, work: Work) -> None:
        """Go to the folder where the run was started, and check that names stand for the same files here.

        Raises:
            FileNotFoundError: a model or word list is missing on this machine.
            ValueError: a model or word list differs from the one where the run was started.
        """
        paths = [self.place / path for path in self.needed]
        if missing := [path for path in paths if not path.exists()]:
            raise FileNotFoundError(
                f"{platform.node()} has no {missing[0]}: see that all machines have it under this path"
            )
        os.chdir(self.place if self.place.is_dir() else os.sep)
        if other := differing(self.settings, work.settings()):
            where = f"{', '.join(map(str, paths))} on {platform.node()}"
            raise ValueError(f"another {', '.join(other)} than where the run was started ({where}): copy it there")


class _Worker:
    """The callable of an actor. Ray restarts killed actors and their tasks without end; `_attempt` limits that."""

    def __init__(self, work: Work, folder: Path, threads: int, origin: _Origin) -> None:
        self.work, self.folder, self.threads, self.origin = work, folder, threads, origin
        self.task: Task | None = None

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        shard = Path(row["item"])
        try:
            with _attempt(shard, self.folder):
                if self.task is None:  # not in `__init__`: a worker that is killed here counts as well
                    torch.set_num_threads(self.threads)
                    self.origin.enter(self.work)
                    self.task = prepared(self.work, self.folder)
                make(shard, self.folder, self.task)
        except Exception as error:  # raised here, it would come with Ray Data's advice and without its type
            return {"shard": shard.name, "error": pickle.dumps(error), "where": traceback.format_exc()}
        return {"shard": shard.name, "error": b"", "where": ""}


@contextmanager
def _attempt(shard: Path, folder: Path) -> Iterator[None]:
    """Count the attempts at a shard: a process killed in here leaves a mark, which `tasks.remove_parts` deletes.

    Raises:
        RuntimeError: too many were killed.
    """
    marks = [folder / MANIFESTS / f".{name_of(shard)}.attempt-{number}.part" for number in range(_ATTEMPTS)]
    mark = next((mark for mark in marks if not mark.exists()), None)
    if mark is None:
        raise RuntimeError(f"{_ATTEMPTS} workers were killed at {shard}, perhaps for want of memory: use fewer workers")
    mark.touch()
    try:
        yield
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


@contextmanager
def _connection(ray: Any, workers: int, cluster: Cluster) -> Iterator[int]:
    """Connect to Ray, and disconnect at the end unless the caller was connected. Yield the threads for each worker."""
    if ray.is_initialized():
        _check_gpus(ray, cluster, may_grow=True)
        yield 1
        return
    local = cluster.address == "local"
    if not local and cluster.address != "auto":
        _check_address(cluster.address)
    own = {"num_cpus": workers, "include_dashboard": False} if local else {}
    try:
        with _silent(), _let_in(ray, cluster.address):
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, **own)
        _check_gpus(ray, cluster, may_grow=not local)
        yield max(1, torch.get_num_threads() // workers) if local else 1
    finally:
        ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Set the environment in which Ray starts: it then logs only fatal errors to stderr, and sends no statistics."""
    mine = {name: value for name, value in _SILENT.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


@contextmanager
def _let_in(ray: Any, address: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:  # these say neither why nor what to do
        if "Failed to connect" in str(error) or isinstance(error, ray.exceptions.AuthenticationError):
            reason = str(error).partition(". ")[0]
            raise ConnectionError(f"the Ray cluster at {address} lets nobody in ({reason}): {_TOKEN}") from error
        raise


def _check_address(address: str) -> None:
    where = urlsplit(address if "://" in address else f"//{address}")
    try:
        socket.create_connection((where.hostname or "", where.port or 0), _SECONDS).close()
    except OSError as error:
        remedy = "start one with `ray start --head`, or leave --address out for a local Ray"
        raise ConnectionError(f"no Ray cluster answers at {address} ({error}): {remedy}; {_TOKEN}") from error


def _check_gpus(ray: Any, cluster: Cluster, may_grow: bool) -> None:
    there = ray.cluster_resources().get("GPU", 0)
    if there >= cluster.gpus:
        return
    message = f"each worker is to have {cluster.gpus:g} GPUs, and Ray has {there:g}"
    if not may_grow:
        raise ValueError(f"{message}: leave --gpus out to work without")
    warnings.warn(f"{message}: nothing is done until the cluster has them", stacklevel=2)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of Ray Data on each execution."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('Ray is not installed: pip install "alpha-clip[pipeline]"') from error
    return ray
