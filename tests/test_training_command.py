"""`python -m alpha_clip.training`, as it is typed."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import alpha_clip
import alpha_clip.training.__main__ as command
from alpha_clip.scenes import NOUNS, draw_scene
from alpha_clip.training import TrainConfig, loop, open_data
from alpha_clip.training.__main__ import main


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """60 drawn scenes as a folder with regions.jsonl, masks as files and boxes."""
    folder = tmp_path_factory.mktemp("my_regions")
    lines = []
    for i in range(60):
        scene = draw_scene(i, 64, objects=(1, 3), nouns=NOUNS[:6])
        Image.fromarray(scene.image).save(folder / f"{i}.png")
        for k, region in enumerate(scene.regions):
            line = {"image": f"{i}.png", "text": f"a {region.noun}", "caption": scene.caption}
            if k:
                line["mask"] = list(map(int, region.box))
            else:
                Image.fromarray((region.mask * 255).astype(np.uint8)).save(folder / f"{i}_mask.png")
                line["mask"] = f"{i}_mask.png"
            lines.append(json.dumps(line))
    (folder / "regions.jsonl").write_text("\n".join(lines))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


SMOKE = ["--preset", "smoke", "--workers", "0", "--device", "cpu"]


def test_it_trains_shows_progress_evaluates_goes_on_and_its_result_loads(data, tmp_path):
    typed = ["-m", "alpha_clip.training", "--model", "tiny", "--data", data, "--out", tmp_path, *SMOKE]
    done = run(*typed)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("54 pictures, 6 to evaluate on; 20 steps of 16: 5.93 epochs\n")
    assert "20/20" in done.stderr and "samples/s" in done.stderr and "loss=" in done.stderr
    assert f"load it with alpha_clip.load('tiny', alpha_vision_ckpt_pth='{tmp_path}/best.safetensors')" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["step"] for line in lines if "region_accuracy" in line] == [10, 20]
    model, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=tmp_path / "best.safetensors")
    assert model.visual.conv1_alpha.weight.any()
    again = run(*typed)
    assert again.returncode == 0, again.stderr
    assert again.stderr == f"{tmp_path} holds a finished run of 20 steps: there was nothing left to do\n"
    assert again.stdout == done.stdout  # where the weights are
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 20


@pytest.mark.slow
def test_the_same_command_under_torchrun(data, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "alpha_clip.training"]
    done = run(*launch, "--model", "tiny", "--data", data, "--out", tmp_path, *SMOKE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("load it with") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 20


def test_help_says_what_each_setting_is(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--alpha-lr ALPHA_LR peak learning rate of the alpha convolution [0.0002]" in text
    assert "--steps STEPS optimizer steps in all, those before a resume included [needed]" in text
    assert text.count("[") > 25
    letters = text.replace(" ", "")  # lines may break at a hyphen
    assert all(field.metadata["help"].replace(" ", "") in letters for field in fields(TrainConfig))


def test_settings_take_the_place_of_the_presets(data, tmp_path, capsys):
    arguments = ["--model", "tiny", "--data", str(data), "--out", str(tmp_path), *SMOKE]
    changes = ["--steps", "2", "--lr", "1e-4", "--unlock-blocks", "1", "--precision", "bfloat16", "--distill", "1"]
    main([*arguments, *changes, "--no-train-text", "--hold-out", "0"])
    assert "60 pictures, 0 to evaluate on; 2 steps of 16: 0.533 epochs\n" in capsys.readouterr().err
    config = torch.load(tmp_path / "last.pt", weights_only=True)["config"]
    assert (config["steps"], config["lr"], config["unlock_blocks"]) == (2, 1e-4, 1)
    assert (config["precision"], config["distill"], config["train_text"]) == ("bfloat16", 1.0, False)
    assert config["batch_size"] == 16  # the preset's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--hold-out", "40"], "60 pictures are too few to hold 40 out for validation"),
        (["--hold-out", "-5"], "--hold-out is -5, expected at least 0"),
        (["--hold-out", "5", "--validation", "x"], "not allowed with argument"),
        (["--batch-size", "0"], "TrainConfig.batch_size is 0, expected at least 1"),
        (["--model", "ViT-Z/1"], "Model ViT-Z/1 not found"),
        (["--optimizer", "sgd"], "invalid choice: 'sgd'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(data, tmp_path, capsys, arguments, message):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main(["--model", "tiny", "--data", str(data), "--out", str(out), *SMOKE, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unlock-blocks", "9"], "error: TrainConfig.unlock_blocks is 9, expected 0 to 4"),
        (["--batch-size", "15", "--accumulate", "1", "--seed", "1"], "error: .* holds a run with other settings"),
        (
            ["--steps", "2"],
            r"steps: 1 there, 2 here\): name another folder\. .* at step 1, .* begin with the .*best",
        ),
        (["--hold-out", "10"], "error: .* holds a run that began with other weights or data"),
    ],
)
@pytest.mark.filterwarnings("ignore:this model has never read")  # some of the drawings' words
def test_what_the_run_finds_wrong_is_one_line(data, tmp_path, arguments, message):
    finished = ["--model", "tiny", "--data", str(data), "--out", str(tmp_path), *SMOKE, "--steps", "1"]
    main(finished)
    with pytest.raises(SystemExit, match=message):
        main([*finished, *arguments])


def test_too_little_memory_is_one_line_with_the_remedy(data, tmp_path, monkeypatch):
    def finetune(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. See PYTORCH_ALLOC_CONF")

    monkeypatch.setattr(command, "finetune", finetune)
    remedy = "raise --accumulate, 1, to cut the batch into smaller parts, or lower --batch-size, 16$"
    with pytest.raises(SystemExit, match=f"^error: CUDA out of memory: {remedy}"):
        main(["--model", "tiny", "--data", str(data), "--out", str(tmp_path), *SMOKE])


@pytest.mark.filterwarnings("ignore:this model has never read")  # some of the drawings' words
def test_both_towers_come_back_from_the_line_that_is_printed(data, tmp_path, capsys):
    main(["--model", "tiny", "--data", str(data), "--out", str(tmp_path), *SMOKE, "--steps", "2", "--train-text"])
    line = capsys.readouterr().out.strip().removeprefix("load it with ")
    assert line == f"alpha_clip.load('{tmp_path}/best.safetensors')"
    model, _ = eval(line)
    trained = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    found = model.cpu().state_dict()
    assert all(torch.equal(found[k].float(), v) for k, v in trained.items() if k in found)
    assert "text_projection" in trained and "text_projection" in found


def test_a_run_that_sees_few_pictures_hundreds_of_times_says_so(data):
    config = TrainConfig(steps=640, batch_size=512)
    few = loop._plan(open_data(data), None, config)
    assert few.endswith("5.46e+03 epochs, which are many: lower steps, 640, or batch_size, 512")
    assert "many" not in loop._plan(open_data(data), None, TrainConfig(steps=10, batch_size=512))
