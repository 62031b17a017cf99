"""Which regions of a folder of pictures match a text?

python examples/search_regions.py --demo
python examples/search_regions.py index photos --out photos.index --model ViT-L/14@336px --sam facebook/sam-vit-base
python examples/search_regions.py search photos.index "a red umbrella"

`index` goes through a folder and its folders; run again, it goes on where it was interrupted, and adds what is new. The
masks of a picture come from a file beside it (photo.masks.npz, .png or .json), else from --sam, else from a grid of
boxes, which needs nothing, and finds things roughly as large as its boxes. `search` draws the hits into one picture.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import search_demo

import alpha_clip
from alpha_clip.mask_sources import SamMasks, grid
from alpha_clip.regions import METHODS
from alpha_clip.search import approximate
from alpha_clip.search.index import RegionIndex
from alpha_clip.search.indexing import distinct, fill, find, load
from alpha_clip.search.sheet import sheet

SPARE = 10  # times as many hits are looked for as are shown: some lie on others


def run_index(args: argparse.Namespace) -> None:
    model, settings = load(args.model, args.device, args.method, f"beside the picture, else {args.sam or 'a grid'}")
    index = RegionIndex.create(args.out, settings)
    if args.sam is None:
        print("without --sam: pictures with no file of masks beside them are searched by a grid of boxes")
    source = SamMasks(args.sam, args.points, args.device) if args.sam else grid
    done, known, broken = fill(index, args.folder, model, source)
    if approximate.is_installed():
        approximate.update(index)
    print(
        f"{done} pictures indexed, {known} were there already, {broken} could not be read; {len(index)} regions in all"
    )
    if broken and not done and not known:
        raise ValueError("no picture could be read")


def run_search(args: argparse.Namespace) -> None:
    index = RegionIndex.open(args.index)
    model, settings = load(args.model or index.settings.model, args.device, index.settings.method, index.settings.masks)
    index.check(settings)
    hits = distinct(find(index, model, [args.text], SPARE * args.k, exact=args.exact)[0], args.k)
    if not hits:
        raise ValueError(f"{args.index} holds no regions: index some pictures first")
    for rank, hit in enumerate(hits, 1):
        print(f"{rank:>3}  {hit.score:.3f}  {hit.paths[0]}  " + " ".join(f"{100 * x:.0f}%" for x in hit.box))
    sheet(hits, args.text).save(args.sheet)
    print(f"hits drawn: {args.sheet}")


def run_demo(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for line in search_demo.report(Path(folder), args.scenes, args.sheet):
            print(line)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--demo", action="store_true", help="draw scenes, index and search them, and count what is right"
    )
    parser.add_argument("--scenes", type=int, default=200, help="of the demo")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands")
    index = commands.add_parser("index", help="index a folder of pictures")
    index.add_argument("folder", type=Path)
    index.add_argument("--out", type=Path, required=True, help="the index: a folder, new or begun")
    index.add_argument("--model", default="tiny", help=f"one of {alpha_clip.available_models()}, or a file")
    index.add_argument("--method", default="alpha", choices=list(METHODS), help="of embed_regions")
    index.add_argument("--sam", help="facebook/sam-vit-base, facebook/sam2.1-hiera-small, facebook/sam3 or a folder")
    index.add_argument("--points", type=int, default=32, help="that SAM is asked at, along each side of the picture")
    index.set_defaults(run=run_index)
    search = commands.add_parser("search", help="the regions nearest to a text")
    search.add_argument("index", type=Path)
    search.add_argument("text")
    search.add_argument("-k", type=int, default=10, help="hits")
    search.add_argument("--model", help="where the index's model lies now, if not where it was")
    search.add_argument("--exact", action="store_true", help="read every feature, even if FAISS has made its graph")
    search.set_defaults(run=run_search)
    for command in (parser, search):
        command.add_argument("--sheet", type=Path, default=Path("search_regions.png"), help="picture of the hits")
    for command in (index, search):
        command.add_argument("--device", help="default: CUDA, else MPS, else the CPU")
    args = parser.parse_args(arguments)
    if args.demo == (args.run is not None):
        parser.error("what to do? give index, search or --demo, one of them")
    if "k" in args and args.k < 1:
        parser.error(f"-k is {args.k}, expected 1 or more")
    return args


def main() -> None:
    args = parse()
    try:
        (args.run or run_demo)(args)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        sys.exit(f"search_regions: {error}")
    except KeyboardInterrupt:
        sys.exit("search_regions: interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
