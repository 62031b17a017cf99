"""Name, embed, look at and search regions of pictures: the command `alpha-clip`, a thin layer over the library.

alpha-clip classify photo.jpg --mask dog.png "a dog" "a cat"
alpha-clip classify photo.jpg --box 20,30,200,180 --box 210,30,400,180 "a dog" "a cat" --json
alpha-clip embed photo.jpg --masks-dir masks/ --out features.npy
alpha-clip attention photo.jpg --mask dog.png --out attention.png
alpha-clip search photos/ "a red umbrella" --out hits.png
alpha-clip models

Pictures, masks and texts may come from a pipe, as -. Photos need a full-size model, such as
--model ViT-L/14@336px; the default, tiny, works offline but knows only drawings.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

MODEL = "tiny"
METHODS = (  # of `embed_regions` for our models; not imported from there, as --help should not wait for torch
    "alpha",
    "whole",
    "crop",
    "masked_crop",
    "cut_out",
    "blur",
    "gray",
    "red_circle",
    "maskclip",
    "pool",
    "ensemble",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if it was done, 1 if it failed, or 2 if the arguments were wrong."""
    if sys.stderr is None:  # it was closed, and messages would go into the answer
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    args = _parser().parse_args(arguments)
    _check(args)
    if sys.stdout is None and (args.command == "search" or getattr(args, "out", None) in (None, "-")):
        _complain("the standard output is closed, expected a place for the answer")
        return 1
    in_our_words: Callable[[object], object] = str
    try:
        from . import commands  # imports torch

        in_our_words = commands.in_our_words
        command: Callable[[argparse.Namespace], None] = getattr(commands, args.command)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _complain(commands.in_our_words(message))
            if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
                sys.stdout.reconfigure(errors="backslashreplace")  # file names may not fit the encoding
            command(args)
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe
        _print_no_more()
    except KeyboardInterrupt:
        kept = "; what was indexed is kept, and the same command goes on from there"
        _complain("interrupted" + (kept if args.command == "search" else ""))
        return 1
    except (ImportError, IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
        if args.debug:
            raise
        _complain(in_our_words(error))
        try:
            if sys.stdout:
                sys.stdout.flush()
        except OSError:
            _print_no_more()
        return 1
    return 0


def _print_no_more() -> None:
    """Send the rest to the null device, or Python would flush at exit, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: object) -> None:
    print(f"alpha-clip: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        """Like argparse's, but without ignoring a failure to write."""
        try:
            print(self.format_help(), end="", file=file or sys.stdout or sys.stderr, flush=True)
        except BrokenPipeError:
            _print_no_more()
        except OSError as error:
            _print_no_more()
            self.exit(1, f"alpha-clip: {error}\n")

    def error(self, message: str) -> NoReturn:
        if re.match("unrecognized arguments: (?!--)", message):
            message += '; labels stand side by side, and "--" before what begins with "-"'
        elif message in (f"argument {option}: expected one argument" for option in ("--box", "--mask")):
            message += "; one that begins with - as --box=-5,0,20,30 or --mask=-#4"
        self.exit(2, f"{self.prog}: {message} (--help says more)\n")


def _check(args: argparse.Namespace) -> None:
    """Refuse what argparse accepts: options that would have no effect, and a second reader of the standard input."""
    given = {_POSITIONAL.get(name, f"--{name.replace('_', '-')}"): value for name, value in vars(args).items()}
    regions: list[tuple[str, Any]] = given.pop("--regions", [])
    texts = [(name, text) for name, value in given.items() for text in (value if isinstance(value, list) else [value])]
    texts = [(name, text) for name, text in [*texts, *regions] if isinstance(text, str)]
    if empty := next((name for name, text in texts if not text.strip()), None):
        args.refuse(f"{empty} is empty: expected something, or leave it out")
    if len(piped := [name for name, text in texts if name in _READS and re.fullmatch(r"-(#\d+)?", text)]) > 1:
        args.refuse(f"{' and '.join(piped)} are -, expected one: the standard input is read once; name files instead")
    if args.command == "search":
        if args.points is not None and args.sam is None:
            args.refuse("--points is for a segmenter, expected --sam NAME too; or leave it out")
        if args.out == "-":
            args.refuse("--out is -, where the hits are listed: expected a file for the picture of them")
    else:
        _check_regions(args, regions)
    if args.command == "classify":
        _check_labels(args)
    if device := given.get("--device"):
        _check_device(args, device)


def _check_regions(args: argparse.Namespace, regions: Sequence[tuple[str, Any]]) -> None:
    kinds, method = list(dict.fromkeys(kind for kind, _ in regions)), getattr(args, "method", None)
    if getattr(args, "text", None):
        if unused := [*kinds, *(["--method"] if method else [])]:
            args.refuse(f"{' and '.join(unused)} say where to look in a picture, and --text has none: leave one out")
    elif method not in (None, "alpha", "whole") and not regions:
        args.refuse(f"--method {method} looks at a region, expected --mask, --box or --masks-dir too; or leave it out")
    if args.command == "attention" and len(regions) > 1:
        args.refuse(f"{len(regions)} regions were given, expected one --mask or one --box, or none: the whole picture")


def _check_labels(args: argparse.Namespace) -> None:
    labels = [label.strip() for label in args.labels if label != "-"]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        args.refuse(f"the label {twice!r} was given twice, expected each once")
    if (places := args.template.count("{}")) != 1:
        args.refuse(f"--template {args.template!r} has {places} places {{}}, expected 1, where the label goes")


def _check_device(args: argparse.Namespace, device: str) -> None:
    import torch  # the command needs it anyway

    try:
        torch.device(device)
    except RuntimeError:
        args.refuse(f"--device {device!r} is unknown to torch, expected cpu, cuda, cuda:1 or mps; or leave it out")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="alpha-clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (arguments, about, example) in _COMMANDS.items():
        chosen = commands.add_parser(name, help=about, description=f"{about}\n\n{example}")
        chosen.formatter_class = argparse.RawDescriptionHelpFormatter
        chosen.set_defaults(command=name, refuse=chosen.error)
        chosen.add_argument("--debug", action="store_true", help="show where an error came from")
        arguments(chosen)
    return parser


def _classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", help="a picture; - reads it from the standard input")
    parser.add_argument(
        "labels", nargs="+", metavar="LABEL", help="what it may be; - reads labels from a pipe, one per line"
    )
    parser.add_argument("--template", default="{}", help='a sentence for each label, such as "a photo of {}." [{}]')
    _add_json(parser)
    _add_regions(parser)
    _add_method(parser)
    _add_model(parser)


def _embed(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("image", nargs="?", help="a picture; - reads it from the standard input")
    what.add_argument("--text", nargs="+", help="texts instead of a picture; - reads them from a pipe, one per line")
    _add_out(parser, ".npy", "a .npy to write, (rows, width) float32, or - [print JSON]")
    _add_regions(parser)
    _add_method(parser)
    _add_model(parser)


def _attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", help="a picture; - reads it from the standard input")
    _add_out(parser, ".png", "the picture to write, or - [attention.png]", "attention.png")
    parser.add_argument("--layer", type=int, default=-1, help="block of the image tower [-1, the last]")
    _add_region(parser, f"{_MASK}; default: the whole picture")
    _add_model(parser)


def _search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of pictures, searched with its subfolders")
    parser.add_argument("wanted", metavar="TEXT", help="what to look for; - reads it from the standard input")
    parser.add_argument("-k", type=_count, default=10, help="hits [10]")
    _add_out(parser, ".png", "a .png to draw the hits into")
    _add_json(parser, "print JSON; boxes are x0, y0, x1, y1 as shares of width and height")
    parser.add_argument(
        "--sam", help="SAM for the regions: facebook/sam-vit-base, facebook/sam2.1-hiera-small, or a folder"
    )
    parser.add_argument("--points", type=_count, help="SAM prompt points along each side [32]")
    parser.add_argument("--index", metavar="PATH", help="where to keep the features [~/.cache/alpha_clip/search]")
    parser.add_argument("--exact", action="store_true", help="compare with every feature, even if FAISS is installed")
    _add_method(parser, tuple(method for method in METHODS if method != "whole"))
    _add_model(parser)


def _models(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser, about: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=about)


def _add_out(parser: argparse.ArgumentParser, kind: str, about: str, default: str | None = None) -> None:
    def named(text: str) -> str:
        if text != "-" and not text.lower().endswith(kind):
            raise argparse.ArgumentTypeError(f"{text!r} is no name for what is written, expected one in {kind}")
        return text

    parser.add_argument("--out", metavar="FILE", type=named, default=default, help=about)


_MASK = "a mask of the picture's size; FILE#4 takes the pixels of a label map that are 4"


class _Add(argparse.Action):
    """Append a pair (option, value) to one list, which keeps the order in which they are typed."""

    def __call__(self, _: Any, args: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(args, self.dest, [*getattr(args, self.dest), (self.option_strings[0], values)])


def _add_region(parser: argparse.ArgumentParser, about: str) -> None:
    to_regions: dict[str, Any] = {"action": _Add, "dest": "regions", "default": []}
    parser.add_argument("--mask", **to_regions, metavar="FILE[#VALUE]", help=about)
    parser.add_argument("--box", **to_regions, type=_box, metavar="X0,Y0,X1,Y1", help="a box in pixels")


def _add_regions(parser: argparse.ArgumentParser) -> None:
    _add_region(
        parser,
        f"{_MASK}. Repeat this, --box and --masks-dir for more regions; their order is kept",
    )
    about = "a folder of masks, taken in the order of their names; default: the whole picture"
    parser.add_argument("--masks-dir", action=_Add, dest="regions", metavar="DIR", help=about)


def _add_method(parser: argparse.ArgumentParser, methods: Sequence[str] = METHODS) -> None:
    parser.add_argument("--method", choices=methods, help="how to look at a region [alpha]")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=MODEL, help=f"a name, a file, or hf-hub:user/repo [{MODEL}]")
    about = "tag or file of its alpha weights, or none for plain CLIP, which ignores masks [the best available]"
    parser.add_argument("--alpha", metavar="TAG", help=about)
    parser.add_argument("--device", help="such as cpu or cuda [CUDA if there is one, else MPS, else the CPU]")


def _box(text: str) -> tuple[float, ...]:
    try:
        x0, y0, x1, y1 = (float(x) for x in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no box, expected x0,y0,x1,y1: 20,30,200,180") from error
    if not (x0 < x1 and y0 < y1):  # NaN too
        raise argparse.ArgumentTypeError(f"{text!r} is no box, expected x0 < x1 and y0 < y1, as in 20,30,200,180")
    return x0, y0, x1, y1


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count, expected 1 or more")
    return int(text)


_POSITIONAL = {"image": "IMAGE", "labels": "LABEL", "folder": "DIR", "wanted": "TEXT"}
_READS = ("IMAGE", "LABEL", "TEXT", "--text", "--mask")  # these read the standard input as - (--mask also as -#4)

_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, str]] = {
    "classify": (
        _classify,
        "Name each region of a picture as one of the labels.",
        'alpha-clip classify photo.jpg --mask dog.png "a dog" "a cat" --model ViT-L/14@336px',
    ),
    "embed": (
        _embed,
        "Write features of unit length, one row for each region of a picture, or for each text.",
        "alpha-clip embed photo.jpg --masks-dir masks/ --out features.npy\nalpha-clip embed --text 'a dog'",
    ),
    "attention": (
        _attention,
        "Draw where the class token looks, over the picture, through a mask or without.",
        "alpha-clip attention photo.jpg --mask dog.png --out attention.png",
    ),
    "search": (
        _search,
        "Find the regions in a folder's pictures that are nearest to a text.",
        'alpha-clip search photos/ "a red umbrella" --out hits.png\n'
        'alpha-clip search photos/ "a red umbrella" --model ViT-L/14@336px --sam facebook/sam-vit-base --json',
    ),
    "models": (_models, "List the models, and the alpha weights there are for them.", "alpha-clip models --json"),
}
