"""Training data and embeddings from many shards:

python -m alpha_clip.pipeline annotate-grounding --input "grit/{00000..00099}.tar" --output out/ --segmenter hf:FOLDER
python -m alpha_clip.pipeline annotate-classification --input imagenet/train --output out/ --segmenter hf:FOLDER \\
    --captioner hf:FOLDER --model ViT-L/14
python -m alpha_clip.pipeline deduplicate out/ --output distinct/
python -m alpha_clip.pipeline embed --input out/ --output features/ --model ViT-B/16
python -m alpha_clip.pipeline inspect out/
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from ..training import shards
from . import folders
from .caption import Background
from .classification import AnnotateClassification, Copies
from .duplicates import Alike, Deduplicate
from .embedding import Embed, Kind, Of
from .filters import Duplicates
from .grounding import AnnotateGrounding
from .inspection import inspect
from .ledger import Ledger
from .on_ray import Cluster
from .run import run
from .tasks import Work


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            args.do(args)
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped: the same command goes on from what is done\n")  # 130: as shells say it
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if args.debug:
            raise
        parser.exit(2, f"error: {error}\n")


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpha_clip.pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    _add_grounding(commands.add_parser("annotate-grounding", help="boxes and phrases of GRIT-style shards to masks"))
    _add_classification(
        commands.add_parser("annotate-classification", help="folders of pictures, one a class, to masks")
    )
    _add_deduplicate(commands.add_parser("deduplicate", help="shards of annotate-... without pictures that are alike"))
    _add_embed(commands.add_parser("embed", help="features of the regions, or of the pictures, of shards, to Parquet"))
    _add_inspect(commands.add_parser("inspect", help="a page with random samples and histograms"))
    return parser


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", nargs="+", required=True, help="a shard, a range {00000..00099}.tar, a folder, URLs")
    parser.add_argument("--cache", type=Path, default=Path(shards.CACHE), help="for shards at URLs; %(default)s")
    _add_run(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder; a rerun goes on where the last one stopped")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with models of its own")
    _add_debug(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("--ray", action="store_true", help="start the workers on a local Ray, which ends with the run")
    parser.add_argument("--address", help="of a Ray cluster, to start the workers there: auto, or HOST:PORT")
    parser.add_argument("--gpus", type=float, default=0, help="for each worker on Ray; %(default)s")
    parser.add_argument("--device", help="of the model; default: CUDA if there is one, else the CPU")


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show where an error came from")


def _add_grounding(parser: argparse.ArgumentParser) -> None:
    _add_shards(parser)
    default = AnnotateGrounding("")
    parser.add_argument("--segmenter", required=True, help="hf:FOLDER or hf:REPOSITORY of SAM, SAM 2, SAM 3; colour")
    parser.add_argument("--score", type=float, default=default.score, help="lowest of a box; %(default)s")
    parser.add_argument("--words", type=int, nargs=2, default=default.words, help="of a phrase, fewest and most")
    parser.add_argument("--area", type=float, nargs=2, default=default.area, help="of a mask, share of the picture")
    parser.add_argument("--iou", type=float, default=default.iou, help="lowest, of the box and the mask's; %(default)s")
    parser.add_argument(
        "--duplicates",
        choices=get_args(Duplicates),
        default=default.duplicates,
        help="leave out pictures of a shard like an earlier one's in look, in caption, or in both; %(default)s",
    )
    parser.add_argument("--require", nargs="+", default=(), metavar="FIELD", help="drop pictures without, such as url")
    parser.add_argument("--batch", type=int, default=default.batch, help="pictures in memory at a time; %(default)s")
    parser.set_defaults(do=_annotate_grounding)


def _add_classification(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, help="folders that hold a folder of pictures for each class"
    )
    _add_run(parser)
    default = AnnotateClassification("", "")
    parser.add_argument("--segmenter", required=True, help="hf:FOLDER or hf:REPOSITORY of SAM, SAM 2, SAM 3; colour")
    parser.add_argument(
        "--captioner",
        required=True,
        help="hf:FOLDER or hf:REPOSITORY of BLIP-2 or a newer model; words:FILE@MODEL, a CLIP that chooses among lines",
    )
    parser.add_argument("--model", default=default.model, help="a CLIP that ranks the masks; %(default)s")
    parser.add_argument(
        "--names", type=Path, help="JSON {folder: name} or lines 'folder name'; default: as the folders"
    )
    parser.add_argument(
        "--background",
        choices=get_args(Background),
        default=default.background,
        help="white: objects alone, in the middle of a square; kept: the pictures as they are; %(default)s",
    )
    parser.add_argument("--keep", type=int, default=default.keep, help="masks of a class, the best; %(default)s")
    parser.add_argument("--points", type=int, default=default.points, help="that SAM is asked at, a side; %(default)s")
    parser.add_argument("--area", type=float, nargs=2, default=default.area, help="of a mask, share of the picture")
    parser.add_argument(
        "--score", type=float, default=default.score, help="lowest of a mask, the cosine with its name; %(default)s"
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=default.overlap,
        help="of two masks of a picture that share more of the smaller one, leave out the one with the lower score; "
        "1: keep all; %(default)s",
    )
    parser.add_argument(
        "--context",
        type=float,
        default=default.context,
        help="side of the square to the object's longer side; %(default)s",
    )
    parser.add_argument(
        "--duplicates",
        choices=get_args(Copies),
        default=default.duplicates,
        help="picture: leave out those of a class that look like an earlier one; %(default)s",
    )
    parser.add_argument("--batch", type=int, default=default.batch, help="objects captioned at a time; %(default)s")
    parser.set_defaults(do=_annotate_classification)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    _add_shards(parser)
    default = Embed()
    parser.add_argument("--model", default=default.model, help="as for the evaluation, such as ViT-B/16; %(default)s")
    parser.add_argument("--of", choices=get_args(Of), default=default.of, help="%(default)s")
    parser.add_argument("--method", default=default.method, help="of embed_regions, for regions; %(default)s")
    parser.add_argument("--dtype", choices=get_args(Kind), default=default.dtype, help="%(default)s")
    parser.add_argument("--chunk", type=int, default=default.chunk, help="masks or pictures at a time; %(default)s")
    parser.set_defaults(do=_embed)


def _add_deduplicate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of a run of annotate-... that has ended")
    _add_output(parser)
    help = "leave out pictures like an earlier one in look, in caption, or in both; %(default)s"
    parser.add_argument("--by", choices=get_args(Alike), default=Deduplicate.by, help=help)
    parser.set_defaults(do=_deduplicate)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of a run of annotate-... that has ended")
    parser.add_argument("--samples", type=int, default=24, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="chooses them; %(default)s")
    _add_debug(parser)
    parser.set_defaults(do=_inspect)


def _annotate_grounding(args: argparse.Namespace) -> None:
    _run(AnnotateGrounding(**_chosen(args, AnnotateGrounding)), _shards(args), args)


def _annotate_classification(args: argparse.Namespace) -> None:
    classes = folders.class_folders(args.input, args.output)
    args.names = folders.read_names(args.names) if args.names else None
    for folder in classes:  # before the work of hours, not in the middle
        folders.class_name(folder, args.names)
    _run(AnnotateClassification(**_chosen(args, AnnotateClassification)), classes, args)


def _embed(args: argparse.Namespace) -> None:
    _run(Embed(**_chosen(args, Embed)), _shards(args), args)


def _deduplicate(args: argparse.Namespace) -> None:
    work = Deduplicate(args.folder, args.by)
    _do(work, work.shards(), args, None)


def _inspect(args: argparse.Namespace) -> None:
    sys.stdout.write(f"{inspect(args.folder, args.samples, args.seed)}\n")


def _chosen(args: argparse.Namespace, work: type) -> dict[str, Any]:
    """What was said of the work's fields; lists become tuples."""
    said = {field.name: getattr(args, field.name) for field in fields(work)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}


def _shards(args: argparse.Namespace) -> list[Path]:
    return shards.local(args.input, args.cache.expanduser())


def _run(work: Work, sources: Sequence[Path], args: argparse.Namespace) -> None:
    cluster = Cluster(args.address or "local", args.gpus) if args.ray or args.address else None
    if args.gpus and cluster is None:
        raise ValueError(f"--gpus {args.gpus:g} is for workers on Ray: add --ray or --address, or leave it out")
    _do(work, sources, args, cluster)


def _do(work: Work, sources: Sequence[Path], args: argparse.Namespace, cluster: Cluster | None) -> None:
    _show(run(work, sources, args.output, args.workers, cluster), args.output, len(sources))


def _show(found: Ledger, folder: Path, asked: int) -> None:
    counts = found.summary()
    lines = [f"{kind:9}{name:55}{n:10}" for kind in ("pictures", "regions") for name, n in counts[kind].items()]
    if any(name.startswith("rejected") for name in (*found.pictures, *found.regions)):
        lines.append(f"{folder / 'rejects.jsonl'} says of each that was rejected why")
    if found.duplicates:
        remedy = f"`python -m alpha_clip.pipeline deduplicate {folder} --output OTHER` leaves them out"
        lines.append(
            f"{found.duplicates} of the pictures written are like an earlier one in look and caption: {remedy}"
        )
    if found.shards is not None and found.shards > asked:
        lines.append(f"these are of all {found.shards} shards in {folder}, {found.shards - asked} of other runs")
    sys.stdout.write("\n".join([*lines, f"{folder / 'report.json'}\n"]))


if __name__ == "__main__":
    main()
