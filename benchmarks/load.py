"""How fast and how lightly does `alpha_clip.load` load a ViT-L/14? Prints a table, peers beside it. Linux only.

python benchmarks/load.py
python benchmarks/load.py --runs 9 --folder /tmp/bench    # keeps its files there, 7.7 GB, for the next time

The weights are random, of the real size, and exact in float16, so that all files hold the same values; every way is
checked to end with them, in float32 on the CPU. Ways take turns, and each run is a process of its own. Just before the
call the whole file is read, so that it is in the page cache (the last line says in how many runs the disk was read
nevertheless), and Python's garbage is collected: a full collection after `import torch` takes longer than our call, and
would otherwise happen in some runs only.
The seconds are those of the load call and of reading from every page of its weights, since a memory map is not free.
All modules that the call needs are imported before; a first run, which is not counted, finds out which these are.
Memory is the highest resident size meanwhile (VmHWM) above that after the imports (VmRSS), the maximum over the runs,
divided by the size of the float32 weights. Pages of a mapped file count, so the least is 1.0.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from alpha_clip import checkpoints, hashes, load
from alpha_clip.model import CLIP

VIT_L_14 = (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12)  # OpenAI's sizes, in the order of CLIP's arguments
ALPHA = "conv1_alpha"  # the one weight that the peers do not have, 0.05% of all
FOLDER = "transformers"  # it only takes folders
PACKAGES = {"open_clip": "open_clip_torch", "transformers": "transformers"}  # module: package for pip

Load = Callable[[], nn.Module]


# --- ways to load: each imports what it needs, and returns the call to time ---


def ours(path: Path) -> Load:
    return lambda: load(path, "cpu")[0]


def ours_first(path: Path) -> Load:
    hashes.forget(path)
    return ours(path)


def naive(path: Path) -> Load:
    """Load a state dict as OpenAI's clip does: fill a model with random weights, then overwrite them."""

    def call() -> nn.Module:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        model = CLIP(*VIT_L_14)
        model.load_state_dict(tensors)
        return model.float().eval()

    return call


def with_open_clip(path: Path) -> Load:
    import open_clip
    import safetensors.torch  # noqa: F401 else imported by the call

    return lambda: open_clip.create_model("ViT-L-14-quickgelu", pretrained=str(path))


def with_transformers(path: Path) -> Load:
    from transformers import CLIPModel

    return lambda: CLIPModel.from_pretrained(path.parent)


@dataclass(frozen=True)
class Way:
    label: str
    file: str
    prepare: Callable[[Path], Load]
    against: str = ""  # which of our ways it is compared with


WAYS = {
    "ours": Way("alpha_clip, float32 safetensors", "ours.safetensors", ours),
    "naive": Way("torch.load, random model, copy; float32", "float32.pt", naive, "ours"),
    "open_clip": Way("open_clip, float32 safetensors", "open_clip.safetensors", with_open_clip, "ours"),
    "transformers": Way("transformers, float32 safetensors", f"{FOLDER}/model.safetensors", with_transformers, "ours"),
    "first16": Way("alpha_clip, float16 torch.save, first load, which hashes", "float16.pt", ours_first),
    "ours16": Way("alpha_clip, float16 torch.save", "float16.pt", ours),
    "naive16": Way("torch.load, random model, copy; float16", "float16.pt", naive, "ours16"),
}


def installed(way: str) -> bool:
    return way not in PACKAGES or find_spec(way) is not None


# --- the files ---


def random_weights() -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in CLIP(*VIT_L_14).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(shape, generator=generator).mul_(0.02).half() for k, shape in shapes.items()}


def make_files(folder: Path) -> None:
    """Write the files that are missing, each under another name first, so that none stays half written."""

    def make(name: str, write: Callable[[Path], Any]) -> None:
        if not (folder / name).exists():
            write(folder / f"part-{name}")
            os.replace(folder / f"part-{name}", folder / name)

    if all((folder / way.file).exists() for name, way in WAYS.items() if installed(name)):
        return
    half = random_weights()
    make("float16.pt", lambda path: torch.save(half, path))
    full = {k: v.float() for k, v in half.items()}
    make("float32.pt", lambda path: torch.save(full, path))
    make("ours.safetensors", lambda path: checkpoints.write(full, path))
    without_alpha = {k: v for k, v in full.items() if ALPHA not in k}
    make("open_clip.safetensors", lambda path: checkpoints.write(without_alpha, path))
    if installed("transformers"):
        make(FOLDER, lambda path: save_for_transformers(without_alpha, path))


def save_for_transformers(tensors: dict[str, Tensor], folder: Path) -> None:
    model = transformers_clip(VIT_L_14)
    model.load_state_dict(in_transformers_names(tensors))
    model.save_pretrained(folder)


def transformers_clip(sizes: tuple[int, ...], attention: str = "sdpa") -> Any:
    """A CLIPModel with random weights; `sizes` are in the order of CLIP's arguments."""
    from transformers import CLIPConfig, CLIPModel

    features, resolution, layers, width, patch, _, tokens, text_width, text_heads, text_layers = sizes

    def tower(width: int, layers: int, heads: int, **others: int) -> dict[str, Any]:
        shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        return {**shape, "intermediate_size": 4 * width, "hidden_act": "quick_gelu", **others}

    vision = tower(width, layers, width // 64, patch_size=patch, image_size=resolution)
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1}
    text = tower(text_width, text_layers, text_heads, vocab_size=tokens, **ends)
    config = CLIPConfig(projection_dim=features, vision_config=vision, text_config=text)
    config._attn_implementation = attention
    return CLIPModel(config).eval()


def in_transformers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of CLIP for transformers, the inverse of `checkpoints._from_transformers`."""
    tensors = dict(tensors)
    renamed = {"logit_scale": tensors.pop("logit_scale")}
    renamed["visual_projection.weight"] = tensors.pop("visual.proj").T
    renamed["text_projection.weight"] = tensors.pop("text_projection").T
    for our_name, tensor in tensors.items():
        name = our_name.removeprefix("visual.")
        for their_part, our_part in checkpoints.TRANSFORMERS_NAMES.items():
            name = name.replace(our_part, their_part)
        name = ("vision_model." if our_name.startswith("visual.") else "text_model.") + name
        if "attn.in_proj_" in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = third
        else:
            renamed[name] = tensor
    return renamed


# --- one run, in a process of its own ---


@dataclass(frozen=True)
class Result:
    seconds: float
    bytes: int  # peak memory
    weights: tuple[int, float, float]  # their number, sum and sum of squares, without the alpha weights
    modules: list[str]  # imported by the call
    disk: bool  # whether the disk was read


def measure(way: Way, folder: Path, modules: list[str]) -> Result:
    path = folder / way.file
    call = way.prepare(path)
    for module in modules:
        with suppress(Exception):  # some can only be imported under conditions
            import_module(module)
    with path.open("rb") as file:  # into the page cache
        while file.read(1 << 20):
            pass
    imported = set(sys.modules)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before, blocks = memory("VmRSS"), blocks_read()
    start = time.perf_counter()
    model = call()
    for p in model.parameters():
        p.detach().flatten()[::1024].sum().item()  # 4096 bytes, a page
    seconds = time.perf_counter() - start
    peak, disk = memory("VmHWM") - before, blocks_read() > blocks

    weights = [p.detach() for name, p in model.named_parameters() if ALPHA not in name]
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in weights)
    count = sum(p.numel() for p in weights)
    total = sum(p.sum(dtype=torch.float64).item() for p in weights)
    squares = sum(p.double().square_().sum().item() for p in weights)
    return Result(seconds, peak, (count, total, squares), [m for m in sys.modules if m not in imported], disk)


def memory(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def blocks_read() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


def in_new_process(way: str, folder: Path, modules: list[str]) -> Result:
    command = [sys.executable, __file__, "--folder", str(folder), "--way", way]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    run = subprocess.run(command, input=json.dumps(modules), stdout=subprocess.PIPE, text=True, check=True, env=env)
    return Result(**json.loads(run.stdout.splitlines()[-1]))


# --- all of them ---


def compare(folder: Path, runs: int) -> dict[str, list[Result]]:
    """Run every way that is installed `runs` times, in turn."""
    ways = [way for way in WAYS if installed(way)]
    modules = {way: in_new_process(way, folder, []).modules for way in ways}
    results: dict[str, list[Result]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in ways:
            results[way].append(in_new_process(way, folder, modules[way]))
    expected = results["ours"][0].weights
    for way, runs_of_way in results.items():
        for result in runs_of_way:
            same = all(map(math.isclose, result.weights, expected))  # to 1e-9
            assert same, f"{way} holds other weights: {result.weights}, expected {expected}"
    return results


def table(results: dict[str, list[Result]]) -> str:
    lines = ["| way | seconds (median, min-max) | ours is x times as fast | peak memory / weights |"]
    lines.append("|---|---|---|---|")
    size = 4 * results["ours"][0].weights[0]
    times = {way: sorted(result.seconds for result in runs_of_way) for way, runs_of_way in results.items()}
    for name, way in WAYS.items():
        if name not in results:
            lines.append(f"| {way.label} | not installed: pip install {PACKAGES[name]} | | |")
            continue
        t = times[name]
        faster = f"{median(t) / median(times[way.against]):.1f}" if way.against else ""
        peak = max(result.bytes for result in results[name]) / size
        lines.append(f"| {way.label} | {median(t):.3f}, {t[0]:.3f}-{t[-1]:.3f} | {faster} | {peak:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the files there; default: a temporary one, deleted")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # one run, by `in_new_process`
    args = parser.parse_args()
    if args.way:
        warnings.filterwarnings("ignore", "nothing confirms", UserWarning)  # a plain state dict does not say its heads
        print(json.dumps(asdict(measure(WAYS[args.way], args.folder, json.load(sys.stdin)))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_files(folder)
        os.sync()  # else the first runs share the disk with what is still being written
        results = compare(folder, args.runs)
        print(table(results))
    disk = sum(result.disk for runs_of_way in results.values() for result in runs_of_way)
    peers = [f"{name} {version(package)}" for name, package in PACKAGES.items() if installed(name)]
    print(f"\n{', '.join([f'torch {torch.__version__}', *peers])}; {torch.get_num_threads()} threads; {args.runs} runs")
    print(f"runs in which the disk was read: {disk}")


if __name__ == "__main__":
    main()
