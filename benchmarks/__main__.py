"""How fast is alpha_clip beside open_clip, transformers and OpenAI's clip? Prints Markdown tables.

python -m benchmarks               # all lines, 9 rounds: about an hour on 2 cores, most of it the peers' zero-shot
python -m benchmarks --only image text
python -m benchmarks --quick       # one small round: that all agree, not how fast they are

All libraries have one random ViT-B/16, and must give the same features before anything is timed. Ways take turns, A B
C, A B C, ...; the first round is not counted, and medians are printed. Threads are limited, and bound to as many cores.
Processor time counts all threads. The roof is the FLOPs of the plain computation at the best rate of this machine's
matrix products of the model's shapes; shortcuts that spare FLOPs may exceed it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lines import Scope
    from .tables import Line

KINDS = ("image", "text", "masks", "tokenizer", "import", "zero-shot", "serving", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small round, within two minutes on 2 cores")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="LINE", help=", ".join(KINDS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    bind(args.threads)

    import torch  # it reads the number of threads when it is imported

    from . import lines, peers, tables

    peers.require()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    scope = lines.quick() if args.quick else lines.Scope(args.rounds)
    measured = []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for line in measure(args.only, scope, args.threads, Path(folder)):
            print(f"{tables.table(line)}\n", flush=True)
            measured.append(line)
    print(f"{tables.summary(measured)}\n\n{tables.machine(args.threads, scope.rounds)}")


def bind(threads: int) -> None:
    """Give every library, torch-based or not, as many cores as threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)


def measure(kinds: list[str], scope: Scope, threads: int, folder: Path) -> Iterator[Line]:
    import torch

    from . import lines, peers

    models = peers.torch_peers()
    if "image" in kinds:
        yield from lines.images(models, scope, torch.float32)
    if "text" in kinds:
        yield from lines.texts(models, scope)
    if "masks" in kinds:
        yield from (lines.masks(scope, *size) for size in scope.photos)
    if "tokenizer" in kinds:
        yield from lines.tokenizers(models, scope)
    if "import" in kinds:
        yield lines.imports(scope)
    if "zero-shot" in kinds:
        yield lines.zero_shot(models, scope)
    if "serving" in kinds:
        yield from lines.serving(models, peers.onnx_peers(folder, threads), scope)
    if "bfloat16" in kinds:  # last, for it rounds the weights
        yield from lines.images(models, scope, torch.bfloat16)


if __name__ == "__main__":
    main()
