"""CLIP on a CPU: torch in float32 and bfloat16, ONNX Runtime in float32 and int8, and the peers. Prints tables.

    python benchmarks/onnx_cpu.py

All have the same random ViT-B/16, and are first shown to give the same features. They take turns, and a figure is the
median over the rounds. ONNX Runtime running plain CLIP is open_clip's model through `torch.onnx.export`. Last comes
what 8-bit weights cost in accuracy, on drawn scenes that `tiny` has never seen.

Needs pip install "alpha-clip[onnx,test]" onnxscript openai-clip.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from load import in_transformers_names  # type: ignore[import-not-found]
from torch import Tensor, nn
from tqdm import tqdm

import alpha_clip
from alpha_clip.model import CLIP, convert_weights
from alpha_clip.scenes import NOUNS, draw_scene

VIT_B_16 = (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
ALPHA = "visual.conv1_alpha.weight"
FIRST_SEED = 9_000_000_000  # as in examples/tiny/evaluate.py: training draws below 4e9
PAUSE = 0.02  # seconds between calls, for the threads of the one before to stop spinning


@dataclass(frozen=True)
class Way:
    """One library running the model."""

    label: str
    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    tolerance: float  # of the features, relative to their length
    peer: bool = False  # another library, on torch


# --- the ways ---


def ways(folder: Path, threads: int) -> dict[str, Way]:
    torch.manual_seed(0)
    ours = CLIP(*VIT_B_16).eval()  # alpha weights of zero, for the peers have none; they cost the same
    plain = {k: v for k, v in ours.state_dict().items() if k != ALPHA}
    theirs = with_open_clip(plain)
    made = {
        "open_clip": Way("open_clip", theirs.encode_image, theirs.encode_text, 1e-4, peer=True),
        "transformers": with_transformers(plain),
        "openai": with_openai_clip(plain),
        "plain": exported_plainly(theirs, folder, threads),
        "torch": Way("alpha_clip, torch, float32", masked(ours.encode_image), ours.encode_text, 1e-4),
    }
    half = CLIP(*VIT_B_16).eval()
    half.load_state_dict(ours.state_dict())
    convert_weights(half, torch.bfloat16)
    made["bfloat16"] = Way("alpha_clip, torch, bfloat16", masked(half.encode_image), half.encode_text, 0.05)
    for weights in ("float32", "int8"):
        alpha_clip.onnx.export(ours, folder / weights, int8=weights == "int8")
        served = alpha_clip.onnx.load(folder / weights, threads)
        tolerance = 1e-4 if weights == "float32" else 0.2
        made[weights] = Way(f"alpha_clip, ONNX, {weights}", masked(served.encode_image), served.encode_text, tolerance)
    return made


def masked(encode: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[50:150, 60:120] = True
    return lambda image: encode(image, mask)


def with_open_clip(weights: dict[str, Tensor]) -> Any:
    from open_clip.model import CLIP as OpenCLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=12, width=768, patch_size=16, image_size=224)
    model = OpenCLIP(512, vision, CLIPTextCfg(width=512, heads=8, layers=12), quick_gelu=True)
    model.load_state_dict(weights)
    return model.eval()


def with_transformers(weights: dict[str, Tensor]) -> Way:
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    text = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
    vision |= {"patch_size": 16, "image_size": 224}
    model = CLIPModel(CLIPConfig(projection_dim=512, vision_config=vision, text_config=text)).eval()
    model.load_state_dict(in_transformers_names(weights))
    return Way(
        "transformers",
        lambda image: model.visual_projection(model.vision_model(pixel_values=image).pooler_output),
        lambda text: model.text_projection(model.text_model(input_ids=text).pooler_output),
        1e-4,
        peer=True,
    )


def with_openai_clip(weights: dict[str, Tensor]) -> Way:
    import packaging.version

    shim = ModuleType("pkg_resources")  # which today's setuptools no longer has
    shim.packaging = packaging  # type: ignore[attr-defined]
    sys.modules.setdefault("pkg_resources", shim)
    from clip.model import build_model

    model = build_model(dict(weights)).float()
    model.load_state_dict(weights)  # again: build_model rounds them to float16
    return Way("openai-clip", model.encode_image, model.encode_text, 1e-4, peer=True)


class Encode(nn.Module):
    def __init__(self, model: nn.Module, tower: str) -> None:
        super().__init__()
        self.model = model
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.model, f"encode_{self.tower}")(x)


def exported_plainly(model: Any, folder: Path, threads: int) -> Way:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def session(tower: str, example: Tensor) -> Callable[[Tensor], Tensor]:
        file = folder / f"plain_{tower}.onnx"
        batch = {"x": {0: torch.export.Dim("batch")}}
        torch.onnx.export(
            Encode(model, tower).eval(),
            (example,),
            file,
            input_names=["x"],
            dynamic_shapes=batch,
            dynamo=True,
            verbose=False,
        )
        runner = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(runner.run(None, {"x": x.numpy()})[0])

    image = session("image", torch.randn(2, 3, 224, 224))
    text = session("text", tokens(2).long())
    return Way("ONNX Runtime, plain CLIP", image, lambda x: text(x.long()), 1e-4)


# --- the measurement ---


def tokens(count: int) -> Tensor:
    return alpha_clip.tokenize([f"a photo of {noun}" for noun in (NOUNS * 2)[:count]])


def measure(made: dict[str, Way], rounds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Milliseconds of wall and of CPU time, by task and way."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 224, 224, generator=generator)
    tasks = {"1 image": images[:1], "8 images": images, "1 prompt": tokens(1), "80 prompts": tokens(80)}
    results = {}
    for task, x in tasks.items():
        calls = {name: way.image if "image" in task else way.text for name, way in made.items()}
        check_equal(made, {name: call(x) for name, call in calls.items()}, task)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in tqdm(range(rounds), task):
            for name, call in calls.items():
                time.sleep(PAUSE)
                wall, cpu = time.perf_counter(), time.process_time()
                call(x)
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        results[task] = {n: (1e3 * median(w for w, _ in t), 1e3 * median(c for _, c in t)) for n, t in taken.items()}
    return results


def check_equal(made: dict[str, Way], features: dict[str, Tensor], task: str) -> None:
    expected = features["open_clip"]
    for name, way in made.items():
        off = float(((features[name].float() - expected).norm(dim=1) / expected.norm(dim=1)).max())
        assert off < way.tolerance, f"{way.label} is off by {off:.2g} on {task}, expected {way.tolerance:g} at most"


def table(made: dict[str, Way], results: dict[str, dict[str, tuple[float, float]]]) -> str:
    lines = ["| ms, wall / CPU | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]
    for name, way in made.items():
        cells = [f"{wall:.1f} / {cpu:.1f}" for wall, cpu in (times[name] for times in results.values())]
        lines.append(f"| {way.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(made: dict[str, Way], results: dict[str, dict[str, tuple[float, float]]]) -> str:
    peers = [name for name, way in made.items() if way.peer]
    lines = ["| how many times as fast, by wall / CPU time | " + " | ".join(results) + " |"]
    lines.append("|---" * (1 + len(results)) + "|")
    for name in ("float32", "int8"):
        for against, others in (("the fastest peer on torch", peers), (made["plain"].label, ["plain"])):
            cells = []
            for times in results.values():
                wall, cpu = (min(times[other][i] for other in others) / times[name][i] for i in (0, 1))
                cells.append(f"{wall:.2f} / {cpu:.2f}")
            lines.append(f"| {made[name].label}, against {against} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- the accuracy ---


def accuracy(folder: Path, count: int) -> str:
    """Of naming the masked object as one of 58 nouns, as in examples/tiny/evaluate.py."""
    tiny, preprocess = alpha_clip.load("tiny", "cpu")
    models = {"torch, float32": tiny}
    for weights in ("float32", "int8"):
        alpha_clip.onnx.export(tiny, folder / f"tiny-{weights}", name="tiny", int8=weights == "int8")
        models[f"ONNX, {weights}"] = alpha_clip.onnx.load(folder / f"tiny-{weights}")
    scenes = [draw_scene(FIRST_SEED + i, preprocess.n, objects=(2, 4)) for i in range(count)]
    nouns = alpha_clip.tokenize([f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in NOUNS])
    expected = np.array([NOUNS.index(r.noun) for scene in scenes for r in scene.regions])
    shown = [preprocess(scene.image, [r.mask for r in scene.regions]) for scene in scenes]
    lines = [
        f"| `tiny`: {len(expected)} objects in {count} scenes | named right | as in torch |",
        "|---|---|---|",
    ]
    reference = None
    for label, model in models.items():
        texts = F.normalize(model.encode_text(nouns), dim=-1).T
        named = torch.cat([(model.encode_image(rgb, alpha) @ texts).argmax(dim=1) for rgb, alpha in shown]).numpy()
        reference = named if reference is None else reference
        lines.append(f"| {label} | {np.mean(named == expected):.1%} | {np.mean(named == reference):.1%} |")
    return "\n".join(lines)


def processor() -> str:
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--scenes", type=int, default=1000, help="for the accuracy")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*the alpha weights of this model are all zero")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        made = ways(Path(temporary), args.threads)
        results = measure(made, args.rounds)
        print(table(made, results), ratios(made, results), accuracy(Path(temporary), args.scenes), sep="\n\n")
    packages = ("torch", "onnxruntime", "open_clip_torch", "transformers", "openai-clip")
    print(f"\n{date.today()}, {processor()}, {args.threads} threads, {args.rounds} rounds, "
          + ", ".join(f"{package} {version(package)}" for package in packages))  # fmt: skip


if __name__ == "__main__":
    main()
