"""What torchrun runs in test_objective: a short training run, whose loss curve and weights are compared.

torchrun --nproc-per-node 2 tests/distributed_run.py OUT [--accumulate N] [--stop-after STEP] [--dies]
python tests/distributed_run.py OUT --killed step|save
"""

import argparse
import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from test_training import Halves, tiny_model, words_to_ids

from alpha_clip.training import Sample, SecondText, TrainConfig, finetune

torch.set_num_threads(1)


class Uneven(Halves):
    """One to three samples an item, so that processes hold different numbers; of all kinds that there are."""

    def __getitem__(self, index: int) -> list[Sample]:
        first, second = super().__getitem__(index)
        whole = Sample(first.image, first.text)
        graded = replace(first, second=SecondText(second.text, 0.3, whole=True))
        crowded = replace(second, hard_negatives=(first.text, second.text))
        return [[first, second, whole], [graded], [second, crowded, first]][index % 3]


class Dying(Uneven):
    """Ends the second process without a word."""

    def __getitem__(self, index: int) -> list[Sample]:
        if os.environ.get("RANK") == "1":
            os._exit(9)
        return super().__getitem__(index)


def settings(**changes: int) -> TrainConfig:
    return TrainConfig(
        **({"steps": 6, "batch_size": 8, "workers": 0, "warmup": 2, "lr": 3e-4, "alpha_lr": 3e-3, "save_every": 2}
           | {"distill": 1.0, "distill_tokens": 0.5, "train_text": True, "evaluate_every": 3} | changes)
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=30)
    parser.add_argument("--stop-after", type=int)
    parser.add_argument("--dies", action="store_true")
    parser.add_argument("--killed", choices=["step", "save"])
    parser.add_argument("--tower", help="another library's, of test_training_towers")
    args = parser.parse_args()
    if args.killed == "step":
        kill_at(torch.nn.utils, "clip_grad_norm_", 4)
    elif args.killed == "save":
        kill_at(os, "fsync", 4)  # of last.pt at step 4, for best.safetensors has its own
    data = Dying(args.pictures) if args.dies else Uneven(args.pictures)
    if args.stop_after:
        data = Stopping(data, args.stop_after)
    model, ids = tiny_model(), words_to_ids
    if args.tower:
        import test_training_towers

        model, ids = test_training_towers.made(args.tower), test_training_towers.ids
    finetune(model, data, settings(accumulate=args.accumulate), args.out, validation=Uneven(12), tokenize=ids)


def kill_at(module: ModuleType, name: str, call: int) -> None:
    """kill -9 in the given call of a function."""
    original, calls = getattr(module, name), itertools.count(1)

    def killed(*args):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(module, name, killed)


class Stopping:
    """SIGTERM in the middle of step `after`, as a cluster sends it to every process."""

    def __init__(self, data: Uneven, after: int) -> None:
        self.data, self.left = data, after * 8 // int(os.environ["WORLD_SIZE"])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> list[Sample]:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return self.data[index]


if __name__ == "__main__":
    main()
