"""The training loop, top to bottom."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from .config import TrainConfig
from .data import Batch, Dataset, batches, check_readable, reading
from .foreign import trainable
from .objective import Objective
from .optim import lr_at, make_optimizers
from .processes import gather_objects, process_group, rank_and_world, total
from .records import BadSample
from .state import BAD_BATCH, Log, Progress, load_state, save_bad_batch, save_best, save_state
from .trainable import Tokenize, Trainable
from .validation import evaluate

Model = TypeVar("Model", bound=nn.Module)
MANY_EPOCHS = 100  # more than this is pointed out; the presets mean 8 and 20
MAX_SCALE = 100.0  # largest inverse temperature, as in CLIP (arXiv 2103.00020, section 2.5)


def finetune(
    model: Model,
    dataset: Dataset,
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    validation: Dataset | None = None,
    tokenize: Tokenize | None = None,
    description: str = "training",
    tensorboard: bool = False,
) -> Model:
    """Train `model` in place, with a progress bar. Returns it in ``eval()`` mode and in its original precision.

    Afterwards no parameter has a gradient, and each has its original ``requires_grad``.

    Under ``torchrun`` every process calls it with the same arguments; batch and loss are the same as with one process.

    Args:
        model: on the device to train on; its weights are trained in float32. It is from `load`, or a CLIP or SigLIP of
            open_clip or transformers with an alpha channel (`alpha_clip.integrations.open_tower`, `add_alpha`). A model
            with a ``logit_bias`` is trained with SigLIP's sigmoid loss.
        dataset: map-style; an item is a `Picture`, a `Sample`, or the samples of one picture.
        config: all settings.
        out: folder for three results; None: nothing is written. ``last.pt`` is the state of the run: a call with the
            same arguments resumes it, and ends bit for bit as an uninterrupted run would (on the CPU, with the same
            number of processes and parts; with dropout in one process only, since only the first one's random state
            is saved). ``best.safetensors`` is for `load`; transformers' models become the folder ``best``, for
            `open_tower`. ``metrics.jsonl`` has a line a step.
        validation: data to evaluate on during training; without it, the last weights count as the best.
        tokenize: turns texts, in lower case, into token ids (U, L). Default: CLIP's, which cuts long texts; models of
            other libraries need their own.
        description: text before the progress bar.
        tensorboard: also write the metrics to `out` for TensorBoard (``pip install tensorboard``).

    Raises:
        ValueError: the data set is empty; the run in `out` is damaged, or has other settings, other data or began with
            another model; the model has no alpha channel, or not the blocks that a setting needs, or needs `tokenize`;
            the batch cannot be cut evenly; `tensorboard` without `out`; under torchrun on CUDA, the model is not on
            the device of this process.
        TypeError: the model is of another kind.
        ImportError: `tensorboard` is set and TensorBoard is not installed.
        UnreadableData: more than 1% of the pictures cannot be read. It is a RuntimeError.
        FloatingPointError: the loss or a gradient is not finite. The last checkpoint stays, and ``bad_batch.json``
            lists the pictures.
        SystemExit: after SIGTERM or Ctrl-C, once the state is saved. A second Ctrl-C does not wait for that.
    """
    if tensorboard and out is None:
        raise ValueError("tensorboard is True and out is None: name a folder to write to")
    adapter = trainable(model)
    tokenize = tokenize or adapter.tokenizer()
    folder = None if out is None else Path(out)
    with (
        process_group(adapter.device),
        _in_float32(model),
        _checkpointing(adapter, config),
        _freezing(model),
        _signals() as stop,
        ExitStack() as readers,
    ):
        rank, world = rank_and_world()
        optimizers = make_optimizers(model, config)
        peaks = [group["lr"] for group in _groups(optimizers)]
        objective = Objective(model, config, tokenize)  # before a resume: its base is what training began with
        progress = load_state(folder, model, optimizers, config, dataset) if folder else Progress()
        objective.distribute()
        parts = readers.enter_context(reading(batches(dataset, config, adapter.preprocess, progress.step, rank, world)))
        log = Log(folder, progress.step, tensorboard) if folder and rank == 0 else None
        last_bad: deque[BadSample] = deque(maxlen=3)
        scores: dict[str, float] = {}  # of the last evaluation

        model.train()
        done = progress.step >= config.steps
        if rank == 0:
            finished_before = f"{folder} holds a finished run of {progress.step} steps: there was nothing left to do"
            tqdm.write(finished_before if done else _plan(dataset, validation, config), sys.stderr)
        bar = tqdm(desc=description, initial=progress.step, total=config.steps, unit="step", disable=done or rank > 0)
        while progress.step < config.steps:
            start = time.perf_counter()
            batch = list(islice(parts, config.accumulate))
            factor = lr_at(progress.step, config)
            for group, peak in zip(_groups(optimizers), peaks, strict=True):
                group["lr"] = peak * factor
            terms = _step(adapter, objective, optimizers, config, batch, folder, progress.step)
            samples, stopping = _count(progress, batch, config, last_bad, stop.is_set(), adapter.device)
            terms |= {
                "lr_factor": factor,
                "samples_per_second": samples / (time.perf_counter() - start),
                "unreadable": float(progress.unreadable),
                "too_small": float(progress.too_small),
            }

            finished = progress.step == config.steps
            saving = finished or stopping or progress.step % config.save_every == 0
            if validation is not None and (finished or progress.step % config.evaluate_every == 0):
                scores = evaluate(model, objective.base, validation, tokenize, config)
                terms |= scores
            score = _score(terms, progress.step, saving, config)
            better, progress.best = score > progress.best, max(score, progress.best)
            if folder and log:
                log.write(progress.step, terms)
                if better:
                    save_best(folder, model, config, {"step": progress.step} | terms, tokenize)
                if saving:
                    save_state(folder, model, optimizers, config, progress)
            bar.set_postfix_str(_summary(terms | scores), refresh=False)
            bar.update()
            if stopping and not finished:
                bar.close()
                saved = f"saved in {folder}: the same command goes on" if folder else "nothing was to be saved"
                sys.exit(f"stopped by a signal after step {progress.step}, {saved}")
        bar.close()
    return model.eval()


def _plan(dataset: Dataset, validation: Dataset | None, config: TrainConfig) -> str:
    """One line on how much training this will be, with advice if it is much."""
    epochs = config.steps * config.batch_size / max(1, len(dataset))
    pictures = f"{len(dataset)} pictures, {0 if validation is None else len(validation)} to evaluate on"
    plan = f"{pictures}; {config.steps} steps of {config.batch_size}: {epochs:.3g} epochs"
    if epochs > MANY_EPOCHS:
        plan += f", which are many: lower steps, {config.steps}, or batch_size, {config.batch_size}"
    return plan


def _step(
    adapter: Trainable,
    objective: Objective,
    optimizers: list[Optimizer],
    config: TrainConfig,
    batch: Sequence[Batch],
    folder: Path | None,
    step: int,
) -> dict[str, float]:
    """Take one optimizer step. Returns the loss and its terms.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; then the weights stay as they are.
    """
    model = adapter.model
    model.zero_grad()
    terms = objective.backward(batch)
    if not math.isfinite(terms["loss"]):
        raise _not_finite("loss", folder, step, terms, batch)
    if not torch.isfinite(torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)):
        raise _not_finite("gradient", folder, step, terms, batch)
    for optimizer in optimizers:
        optimizer.step()
    if model.logit_scale.requires_grad and not adapter.is_sigmoid:  # SigLIP's is not clipped
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_SCALE))
    return terms


def _count(
    progress: Progress,
    batch: Sequence[Batch],
    config: TrainConfig,
    last_bad: deque[BadSample],
    stop: bool,
    device: torch.device,
) -> tuple[float, bool]:
    """Add a step to `progress`. Returns its samples and whether any process is to stop, over all processes.

    Raises:
        UnreadableData: too many pictures could not be read.
    """
    bad = [error for part in batch for error in part.bad]
    last_bad.extend(bad)
    small = sum(part.too_small for part in batch)
    samples, unreadable, too_small, stopping = total(sum(map(len, batch)), len(bad), small, stop, device=device)
    progress.step += 1
    progress.unreadable += int(unreadable)
    progress.too_small += int(too_small)
    check_readable(progress.step * config.batch_size, progress.unreadable, last_bad)
    return samples, bool(stopping)


def _score(terms: dict[str, float], step: int, saving: bool, config: TrainConfig) -> float:
    """What the best weights have the most of: region accuracy, at least 0, if it was measured.

    Without it, -1 to 0, more the later the step, so that of steps without a score the last that is saved is best.
    """
    unscored = step / config.steps - 1 if saving else -math.inf
    return terms.get("region_accuracy", unscored)


def _groups(optimizers: list[Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def _not_finite(
    what: str, folder: Path | None, step: int, terms: dict[str, float], batch: Sequence[Batch]
) -> FloatingPointError:
    """Save which pictures it was. All processes call this, since all have the same loss and gradient."""
    keys = sorted({*gather_objects([key for part in batch for key in part.keys])})
    texts = sorted({*gather_objects([text for part in batch for text in part.texts])})
    where = ""
    if folder:
        where = f"; its pictures are in {folder / BAD_BATCH}"
        if rank_and_world()[0] == 0:
            save_bad_batch(folder, step, terms, keys, texts)
    return FloatingPointError(
        f"the {what} is not finite at step {step}{where}: lower the learning rate, or check the data"
    )


def _summary(terms: dict[str, float]) -> str:
    shown = [f"loss={terms['loss']:.3f}", f"{terms['samples_per_second']:.0f} samples/s"]
    if terms["unreadable"] > 0:
        shown.append(f"{terms['unreadable']:.0f} unreadable")
    if terms["too_small"] > 0:
        shown.append(f"{terms['too_small']:.0f} regions too small")
    shown += [f"{name.replace('_', ' ')}={terms[name]:.3f}" for name in ("region_accuracy", "drift") if name in terms]
    return ", ".join(shown)


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Keep the weights in float32 meanwhile, and in their original precision afterwards."""
    tensors = [*model.parameters(), *model.buffers()]
    halves = [(x, x.dtype) for x in tensors if x.dtype in (torch.float16, torch.bfloat16)]
    for tensor, _ in halves:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def _freezing(model: nn.Module) -> Iterator[None]:
    """Restore each parameter's ``requires_grad`` afterwards, and drop the gradients."""
    before = [(x, x.requires_grad) for x in model.parameters()]
    try:
        yield
    finally:
        model.zero_grad()
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


@contextmanager
def _checkpointing(adapter: Trainable, config: TrainConfig) -> Iterator[None]:
    if config.checkpoint_activations:
        adapter.checkpoint_blocks(True)
    try:
        yield
    finally:
        if config.checkpoint_activations:
            adapter.checkpoint_blocks(False)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and the first Ctrl-C set, instead of ending the process in the middle of a step."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # handlers can only be set in the main thread
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(number: int, _: object) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # ignored in a shell's background job: leave it so
            signal.signal(number, on_signal)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
