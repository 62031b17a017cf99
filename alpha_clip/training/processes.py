"""Collective operations that also work without a process group, so that the loss is written once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) outside of a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Under `torchrun`, join its process group: NCCL on CUDA, Gloo elsewhere. Otherwise do nothing.

    Raises:
        ValueError: `device` is the GPU of another process.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        own = int(os.environ["LOCAL_RANK"])
        if device.index != own:
            raise ValueError(
                f"the model of local rank {own} is on {device}, expected cuda:{own}, each process on a device of its "
                f"own: alpha_clip.load(..., device=f\"cuda:{{os.environ['LOCAL_RANK']}}\")"
            )
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def row_counts(rows: int, device: torch.device) -> list[int]:
    """The number of rows of each process, in the order of ranks."""
    _, world = rank_and_world()
    if world == 1:
        return [rows]
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([rows], device=device))
    return [int(size) for size in sizes]


def gather(x: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows of all processes to (A, ...), differentiably; `counts` is how many each has."""
    if len(counts) == 1:
        return x
    import torch.distributed.nn.functional as distributed

    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])])
    if x.requires_grad:
        parts = list(distributed.all_gather(padded))
    else:
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def gather_objects(mine: list[Any]) -> list[Any]:
    """The items of all processes, in the order of ranks."""
    _, world = rank_and_world()
    if world == 1:
        return mine
    lists: list[list[Any]] = [[] for _ in range(world)]
    dist.all_gather_object(lists, mine)
    return [item for items in lists for item in items]


def total(*values: float, device: torch.device) -> list[float]:
    """Each value summed over all processes."""
    if rank_and_world()[1] == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()
