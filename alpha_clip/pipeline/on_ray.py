"""The shards of a run on Ray: on a cluster, or on a local Ray of its own, which is stopped in the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tasks import Work, make

_RETRIES = 3  # of a shard whose worker was killed


@dataclass(frozen=True)
class Cluster:
    """Where to work. All machines must see shards and folder under the same paths, and have this package installed."""

    address: str = "local"  # "local": a Ray of its own; "auto", or HOST:PORT: that cluster
    gpus: float = 0  # for each worker; without, Ray hides them


def together(work: Work, shards: Sequence[Path], folder: Path, workers: int, cluster: Cluster) -> Iterator[None]:
    """Do the shards in `workers` actors, each with models of its own; yield for each that is done.

    An actor that is killed is started again, and does its shard again, which leaves the same files.

    Raises:
        ImportError: Ray is not installed. ConnectionError: there is no such cluster.
        RuntimeError: the workers of a shard were killed again and again.
    """
    ray = _ray()
    from ray.util import ActorPool

    local = {"num_cpus": workers, "include_dashboard": False} if cluster.address == "local" else {}
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        settings = {"num_cpus": 1, "num_gpus": cluster.gpus, "max_restarts": _RETRIES, "max_task_retries": _RETRIES}
        actor = ray.remote(**settings)(_Worker)
        pool = ActorPool([actor.remote(work, folder.resolve()) for _ in range(min(workers, len(shards)))])
        for _ in pool.map_unordered(_ask, [shard.resolve() for shard in shards]):
            yield
    except ray.exceptions.RayActorError as error:
        raise RuntimeError("a worker was killed again and again, perhaps for want of memory: use fewer") from error
    finally:
        ray.shutdown()


class _Worker:
    def __init__(self, work: Work, folder: Path) -> None:
        self.task, self.folder = work.prepare(), folder

    def make(self, shard: Path) -> None:
        make(shard, self.folder, self.task)


def _ask(actor: Any, shard: Path) -> Any:
    return actor.make.remote(shard)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError('Ray is not installed: pip install "alpha-clip[pipeline]"') from error
    return ray
