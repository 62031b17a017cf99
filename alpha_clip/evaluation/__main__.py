"""Evaluate a model: python -m alpha_clip.evaluation scenes

python -m alpha_clip.evaluation scenes --quick
python -m alpha_clip.evaluation scenes --model ViT-B/16 --methods alpha crop crop:context=2 alpha+crop
python -m alpha_clip.evaluation scenes --quick --probes all
python -m alpha_clip.evaluation --compare runs/a/results.json runs/b/results.json
python -m alpha_clip.evaluation doctor tiny
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import regions
from ..catalogue import BUNDLED
from . import builtin, coco, compare, doctor, imagenet_s, refcoco, results, retrieval, tune
from .probes import PROBES, probe
from .run import Run, run
from .subjects import find
from .ways import parse

TASKS = {"scenes": builtin, "imagenet-s": imagenet_s, "coco": coco, "refcoco": refcoco, "retrieval": retrieval}
# `maskinversion` is for models of open_clip only.
METHODS = (*(name for name in regions.METHODS if name not in ("ensemble", "maskinversion")), "alpha+crop")
_NEEDS = 'no HTML ({}): pip install "alpha-clip[eval]"'


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(arguments)
    command = ["python", "-m", "alpha_clip.evaluation", *(sys.argv[1:] if arguments is None else arguments)]
    if (args.compare is None) == (args.task is None):
        parser.error(f"expected either --compare or one of {', '.join(TASKS)}, doctor")
    if args.page and args.task:
        parser.error("--out goes behind the task")
    try:
        if args.task == "doctor":
            parser.exit(doctor.main(args))
        if args.compare:
            one, other = args.compare
            compare_runs(one, other, args.page)
        else:
            evaluate(args, command)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if args.debug:
            raise
        parser.exit(2, f"error: {error}\n")


def evaluate(args: argparse.Namespace, command: Sequence[str]) -> None:
    ways = [parse(method) for method in args.methods]
    task = TASKS[args.task].from_arguments(args)
    asked = [find(model, args.device, args.base) for model in args.model]
    of_asked = (
        {} if args.no_base else {s.base.name: s.base for s in asked if s.base is not None}
    )  # once each, as all models share --base
    bases = list(of_asked.values())
    out = args.out or Path("runs") / f"evaluate-{args.task}"
    findings = []
    if args.tune:
        validation = TASKS[args.task].from_arguments(args, validation=True)
        chosen, finding = tune.choose(args.tune, validation, task, asked + bases, out / "tuning", args.chunk)
        ways += [way for way in chosen if way not in ways]
        findings.append(finding)
    answers = run(task, asked + bases, ways, out, args.chunk, args.together)
    answers = replace(answers, findings=findings)
    results.write(answers, out, command)  # before the probes, which may fail
    if args.probes:
        answers = replace(answers, findings=[*findings, *probe(args.probes, asked, task, ways, answers.unusable)])
        results.write(answers, out, command)
    print(answers.table().markdown())  # noqa: T201
    for finding in answers.findings:
        print(f"\n{finding.title}\n{finding.verdict}")  # noqa: T201
    print(f"\n{out / 'results.md'}")  # noqa: T201
    print(_report(answers, out, command))  # noqa: T201


def _report(answers: Run, out: Path, command: Sequence[str]) -> str:
    """Write the HTML report and return its path, or, if a package is missing, say how to get it.

    A missing package is no error here: the answers before it may have taken hours.
    """
    try:
        from . import report
    except ImportError as error:
        return f"{_NEEDS.format(error)}; the same command then goes on from here and asks nothing twice"
    return str(report.write(answers, out, command))


def compare_runs(one: Path, other: Path, out: Path | None) -> None:
    found = compare.read(one, other)
    print(found.table().markdown())  # noqa: T201
    try:
        from . import report
    except ImportError as error:
        print(f"\n{_NEEDS.format(error)}")  # noqa: T201
        return
    path = out or other.with_name("compare.html")
    report.write_comparison(found, path)
    print(f"\n{path}")  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpha_clip.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--compare", nargs=2, type=Path, metavar="JSON", help="results.json of two runs of one task")
    parser.add_argument(
        "--out",
        dest="page",
        type=Path,
        metavar="HTML",
        help="page of --compare; default: compare.html beside the second",
    )
    parser.set_defaults(debug=False)
    names = parser.add_subparsers(dest="task")
    for name, module in TASKS.items():
        chosen = names.add_parser(name, description=module.__doc__)
        add_arguments(chosen)
        module.add_arguments(chosen)
        chosen.set_defaults(methods=getattr(module, "METHODS", METHODS))
    doctor.add_arguments(names.add_parser("doctor", description=doctor.__doc__))
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        nargs="+",
        default=[BUNDLED],
        help="names for alpha_clip.load, NAME+TAG, open_clip:NAME[:PRETRAINED] or hf:FOLDER",
    )
    parser.add_argument("--base", help="plain CLIP to compare with; default: the same name without alpha weights")
    parser.add_argument("--no-base", action="store_true", help="do not evaluate the plain CLIP beside the model")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        metavar="METHOD",
        help="ways of looking, such as alpha, crop:context=2, alpha+0.5*crop",
    )
    parser.add_argument(
        "--tune",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="ways with alternatives, such as 'crop:context=1|1.5|2'; the best on validation pictures is added",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="also sum the scores of the models named, in the ways that fit all of them",
    )
    parser.add_argument(
        "--probes", nargs="+", default=(), choices=["all", *PROBES], help="single questions about each model"
    )
    parser.add_argument("--out", type=Path, help="folder for the results; an unfinished run in it is resumed")
    parser.add_argument("--device", help="default: CUDA if there is one, else MPS, else the CPU")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument("--chunk", type=int, default=32, help="masks encoded at a time")


if __name__ == "__main__":
    main()
