"""Make training data and embeddings from many shards.

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
    _add_grounding(
        commands.add_parser("annotate-grounding", help="turn the boxes and phrases of GRIT-style shards into masks")
    )
    _add_classification(
        commands.add_parser("annotate-classification", help="turn folders of pictures, one for each class, into masks")
    )
    _add_deduplicate(
        commands.add_parser("deduplicate", help="copy the shards of annotate-... without duplicate pictures")
    )
    _add_embed(commands.add_parser("embed", help="write features of the regions, or of the pictures, to Parquet"))
    _add_inspect(commands.add_parser("inspect", help="write a page with random samples and histograms"))
    return parser


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, help="shards: files, a range {00000..00099}.tar, folders, URLs"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(shards.CACHE), help="folder for shards fetched from URLs; %(default)s"
    )
    _add_run(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, required=True, help="output folder; a rerun goes on where the last one stopped"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each with models of its own")
    _add_debug(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("--ray", action="store_true", help="start the workers on a local Ray, which ends with the run")
    parser.add_argument("--address", help="run the workers on the Ray cluster at this address: auto, or HOST:PORT")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each worker on Ray; %(default)s")
    parser.add_argument("--device", help="device of the models; default: CUDA if there is one, else the CPU")


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show where an error came from")


def _add_area(parser: argparse.ArgumentParser, default: tuple[float, float]) -> None:
    about = "smallest and largest share of the picture a mask may cover"
    parser.add_argument("--area", type=float, nargs=2, default=default, help=about)


def _add_grounding(parser: argparse.ArgumentParser) -> None:
    _add_shards(parser)
    default = AnnotateGrounding("")
    parser.add_argument("--segmenter", required=True, help="hf:FOLDER or hf:REPOSITORY of SAM, SAM 2, SAM 3; colour")
    parser.add_argument("--score", type=float, default=default.score, help="lowest score of a box; %(default)s")
    parser.add_argument("--words", type=int, nargs=2, default=default.words, help="fewest and most words of a phrase")
    _add_area(parser, default.area)
    parser.add_argument(
        "--iou", type=float, default=default.iou, help="lowest IoU of the box and the mask's box; %(default)s"
    )
    parser.add_argument(
        "--duplicates",
        choices=get_args(Duplicates),
        default=default.duplicates,
        help="leave out pictures like an earlier one of the shard in look, in caption, or in both; %(default)s",
    )
    parser.add_argument(
        "--require", nargs="+", default=(), metavar="FIELD", help="drop pictures without these fields, such as url"
    )
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
        "--names",
        type=Path,
        help="file of class names: JSON {folder: name} or lines 'folder name'; default: the folders'",
    )
    parser.add_argument(
        "--background",
        choices=get_args(Background),
        default=default.background,
        help="white: objects alone, in the middle of a square; kept: the pictures as they are; %(default)s",
    )
    parser.add_argument(
        "--keep", type=int, default=default.keep, help="number of masks to keep of each class, the best; %(default)s"
    )
    parser.add_argument(
        "--points", type=int, default=default.points, help="SAM prompt points along each side; %(default)s"
    )
    _add_area(parser, default.area)
    parser.add_argument(
        "--score", type=float, default=default.score, help="lowest cosine of a mask and its class name; %(default)s"
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=default.overlap,
        help="largest share of the smaller one that two masks of a picture may have in common; of two that share more, "
        "the one with the lower score is left out; 1: keep all; %(default)s",
    )
    parser.add_argument(
        "--context",
        type=float,
        default=default.context,
        help="side of the square, in longer sides of the object's box; %(default)s",
    )
    parser.add_argument(
        "--duplicates",
        choices=get_args(Copies),
        default=default.duplicates,
        help="picture: leave out those that look like an earlier one of the class; keep: none; %(default)s",
    )
    parser.add_argument("--batch", type=int, default=default.batch, help="objects captioned at a time; %(default)s")
    parser.set_defaults(do=_annotate_classification)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    _add_shards(parser)
    default = Embed()
    parser.add_argument(
        "--model", default=default.model, help="model, named as for the evaluation, such as ViT-B/16; %(default)s"
    )
    parser.add_argument("--of", choices=get_args(Of), default=default.of, help="what to embed; %(default)s")
    parser.add_argument("--method", default=default.method, help="method of embed_regions, for regions; %(default)s")
    parser.add_argument(
        "--dtype", choices=get_args(Kind), default=default.dtype, help="type of the numbers; %(default)s"
    )
    parser.add_argument(
        "--chunk",
        type=int,
        default=default.chunk,
        help="masks or pictures that go through the model at a time; %(default)s",
    )
    parser.set_defaults(do=_embed)


def _add_deduplicate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="output folder of a finished annotate-... run")
    _add_output(parser)
    help = "leave out pictures that are like an earlier one in look, in caption, or in both; %(default)s"
    parser.add_argument("--by", choices=get_args(Alike), default=Deduplicate.by, help=help)
    parser.set_defaults(do=_deduplicate)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="output folder of a finished annotate-... run")
    parser.add_argument("--samples", type=int, default=24, help="number of samples to show; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed by which the samples are chosen; %(default)s")
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
    """The arguments that are fields of the work; lists become tuples."""
    given = {field.name: getattr(args, field.name) for field in fields(work)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


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
