"""Serve a page to try the model on, in a browser, on this computer.

    python -m alpha_clip.demo
    python -m alpha_clip.demo --model ViT-L/14@336px --sam facebook/sam-vit-base
    python -m alpha_clip.demo --folder photos --index photos.index

Without options it starts offline, with the small built-in model, which knows only drawings.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..api import available_models, load
from ..errors import WordsNeverRead
from .leftovers import Leftovers
from .samples import samples
from .uploads import limit_pixels
from .viewer import Viewer

MODEL = "tiny"
STROKES = 5  # MB: the page sends each stroke as pictures of up to 1024 x 1024 pixels of four bytes
DRAWINGS = "The model here is small and knows drawings only. For photos, start this page with a larger one."


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted. Return 0 then, or 1 if it could not start."""
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the temporary files go then, too
    try:
        with tempfile.TemporaryDirectory(prefix="alpha-clip-demo-") as folder, warnings.catch_warnings():
            warnings.showwarning = _warn
            warnings.simplefilter("ignore", WordsNeverRead)  # the page says so itself
            serve(args, Path(folder))
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        _warn(str(error))
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)  # noqa: T201 below ^C
    return 0


def serve(args: argparse.Namespace, folder: Path) -> None:
    """Serve the page until it is interrupted, with uploads and strokes in `folder`."""
    # Gradio reads both variables when it is imported.
    files = folder / "files"
    os.environ["GRADIO_TEMP_DIR"] = str(files)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from .page import Page

    _check_free(args.host, args.port)
    limit_pixels(args.max_megapixels)
    model, preprocess = load(args.model, args.device, alpha_vision_ckpt_pth=args.alpha or "auto")
    clicks = finder = None
    if args.sam:
        from .clicks import Clicks

        clicks = Clicks(args.sam, args.device)
    if args.folder:
        from .finder import Finder

        kept = args.index or folder / "index"
        finder = Finder(args.folder, kept, model, args.model, args.sam, args.device)
    viewer = Viewer(model.eval(), preprocess)
    note = DRAWINGS if args.model == MODEL else f"The model is {args.model}."
    page = Page(viewer, samples(), note=note, clicks=clicks, finder=finder, megapixels=args.max_megapixels)
    if not _is_loopback(args.host):
        _warn(f"{args.host}: whoever can reach this computer can use the page, and what they send is not encrypted")
    url = page.launch(args.host, args.port, round(args.max_megabytes * 2**20))
    leftovers = Leftovers(files, args.keep)
    print(f"Open {url} (Ctrl+C ends it)", flush=True)  # noqa: T201
    try:
        while True:
            time.sleep(min(60, args.keep))
            leftovers.delete_old()
    finally:
        page.blocks.close(verbose=False)


def _check_free(host: str, port: int | None) -> None:
    """Check that the address can be listened at, before the model is loaded.

    Gradio would try a host that does not exist a hundred times, and find a taken port only at the end.

    Raises:
        OSError: the address cannot be listened at.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        at = host if port is None else f"port {port} of {host}"
        raise OSError(f"cannot listen at {at} ({error.strerror}): choose another --port or --host") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"alpha_clip.demo: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpha_clip.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(available_models())
    parser.add_argument("--model", default=MODEL, help=f"{names}, a file, or hf-hub:user/repo [{MODEL}]")
    parser.add_argument("--alpha", metavar="TAG", help="tag or file of the alpha weights [the best there are]")
    parser.add_argument("--device", help="device, such as cpu or cuda [CUDA if there is one, else MPS, else the CPU]")
    parser.add_argument(
        "--sam",
        metavar="NAME",
        help="a SAM, SAM 2 or SAM 3 of transformers, for clicks and for the masks of the search",
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="folder of pictures that visitors may search")
    parser.add_argument(
        "--index", type=Path, metavar="DIR", help="folder that keeps the index of the pictures [none is kept]"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at [127.0.0.1: only this computer]")
    parser.add_argument("--port", type=_port, metavar="N", help="port to listen at [the first free one from 7860 on]")
    parser.add_argument(
        "--max-megabytes", type=_megabytes, default=20, metavar="N", help="largest size of an uploaded file [20]"
    )
    parser.add_argument(
        "--max-megapixels", type=_positive, default=50, metavar="N", help="largest uploaded picture [50]"
    )
    parser.add_argument(
        "--keep",
        type=_seconds,
        default=600,
        metavar="SECONDS",
        help="age at which uploads and strokes are deleted [600]",
    )
    return parser


def _positive(text: str) -> float:
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def _megabytes(text: str) -> float:
    if (number := float(text)) < STROKES:
        raise argparse.ArgumentTypeError(f"{text} is less than {STROKES}, which a picture with strokes on it can take")
    return number


def _port(text: str) -> int:
    if not 0 < (number := int(text)) < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 65535")
    return number


def _seconds(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
