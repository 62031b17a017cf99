"""The catalogue, one state dict out of two files, the model built from it, and the command."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import checkpoints
import pytest
import torch
from safetensors.torch import load_file
from shelf import assert_equal
from torch import Tensor

import alpha_clip
from alpha_clip import catalogue, vocabulary, weights
from alpha_clip.checkpoints import write
from alpha_clip.errors import AlphaWeightsNotFound, HashMismatch, IncompatibleCheckpoint, WeightsError
from alpha_clip.sources import KnownFile

ALPHA_KEY = "visual.conv1_alpha.weight"
UNCONFIRMED = "nothing confirms that .* has attention heads 64 wide and QuickGELU"


@pytest.fixture
def base(tmp_path) -> str:
    """The path of a plain CLIP."""
    return str(written(checkpoints.plain_clip(), tmp_path / "base.safetensors"))


def written(state: dict[str, Tensor], path: Path) -> Path:
    """As one of our own files, which says what its shapes leave open."""
    write(state, path)
    return path


# --- the catalogue ---

# Copied from the research behind the project, which could not download the files: the code must check.
AUTHORS_FILES = {
    ("ViT-B/16", "grit1m"): (
        "clip_b16_grit1m_fultune_8xe.pth",
        "9f6ffac9044f641b09975f9c782a34a02a2b52ffd8de4a3d3394404b38794c16",
    ),
    ("ViT-B/16", "grit20m"): (
        "clip_b16_grit20m_fultune_2xe.pth",
        "6ff9e3c5735aa34bcbd386ba4d1b99e5efc5deffab077d3d2f2911d1f1c43a57",
    ),
    ("ViT-B/16", "grit1m+mim"): (
        "clip_b16_grit+mim_fultune_4xe.pth",
        "a00f7bfd80944dacbb77e238eb2c0f055ec3274201023b2e781d9f0d180d9630",
    ),
    ("ViT-L/14", "grit1m"): (
        "clip_l14_grit1m_fultune_8xe.pth",
        "05254743d5fc12e24f947fb92ba3737e3bc86a9c190dc6608fc9926a0eb64b91",
    ),
    ("ViT-L/14", "grit20m"): (
        "clip_l14_grit20m_fultune_2xe.pth",
        "42c621bb5bac89a511ab625a878f026c11de4de8cf7abf52db5dfd11862bdb8e",
    ),
    ("ViT-L/14", "grit1m+mim"): (
        "clip_l14_grit+mim_fultune_6xe.pth",
        "a5f3f2e24459e9764d9f4b4c053fb354dc9d508bd8f647b952402d6860bc9c3d",
    ),
    ("ViT-L/14@336px", "grit1m"): (
        "clip_l14_336_grit1m_fultune_8xe.pth",
        "fa701cf18a3e19a1e5e81668885b15bf75337e59b0788405999e889b7aa775d0",
    ),
    ("ViT-L/14@336px", "grit20m"): (
        "clip_l14_336_grit_20m_4xe.pth",
        "b0e9c4d5d33bfa2724a0864f8e4b2b92f99aba3a4daf43084114c8caecfbadd9",
    ),
}
BASE_FILES = {
    "ViT-B/32": (
        "timm/vit_base_patch32_clip_224.openai",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    ),
    "ViT-B/16": (
        "timm/vit_base_patch16_clip_224.openai",
        "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
    ),
    "ViT-L/14": (
        "timm/vit_large_patch14_clip_224.openai",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    ),
    "ViT-L/14@336px": (
        "timm/vit_large_patch14_clip_336.openai",
        "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
        None,
    ),
}
HUB_COPIES = {
    ("ViT-L/14", "grit1m+mim"): ("space", "bedead/CLIPAway", None),
    ("ViT-L/14@336px", "grit1m"): ("model", "omeregev/click2mask-alphaclip-weights", None),
    ("ViT-L/14@336px", "grit20m"): (
        "model",
        "YaTharThShaRma999/PromptTest",
        "8fbe1684f2bcd0e2bf227f41a69e28f68f851fab",
    ),
}
SPELLINGS = {
    ("ViT-B/16", "grit1m+mim"): {"clip_b16_grit1m+mim_fultune_4xe.pth"},
    ("ViT-L/14", "grit1m+mim"): {"clip_l14_grit1m+mim_fultune_6xe.pth"},
    ("ViT-L/14@336px", "grit1m"): {"clip_l14@336_grit1m_fultune_8xe.pth"},
    ("ViT-L/14@336px", "grit20m"): {
        "clip_l14_336_grit20m_fultune_4xe.pth",
        "clip_l14@336_grit20m_fultune_4xe.pth",
        "clip_l14@336_grit_20m_4xe.pth",
    },
}
DRIVE = {  # the order of AUTHORS_FILES
    ("ViT-B/16", "grit1m"): "16fHEXZ-7bgzcSBHzEz1wXRIZTjQIXm_2",
    ("ViT-B/16", "grit20m"): "1cj3cYwrzBivx0h0NzSjlCg9HAd5aTkDW",
    ("ViT-B/16", "grit1m+mim"): "11iDlSAYI_BAi1A_Qz6LTWYHNgPe-UY7I",
    ("ViT-L/14", "grit1m"): "1PIhplBnsmSWiJN--TXCCSsiaV6bY9koq",
    ("ViT-L/14", "grit20m"): "1WykuBYWePriCVeW5lOwBsgxgeBMzb1nd",
    ("ViT-L/14", "grit1m+mim"): "1JfzOTvjf0tqBtKWwpBJtjYxdHi-06dbk",
    ("ViT-L/14@336px", "grit1m"): "1DeNbUv0lraDxJZItb7shTlvGW6z_Z9Si",
    ("ViT-L/14@336px", "grit20m"): "1dUq1deeLcou26RuxZbBG57m2ALPWev6-",
}
ORIGINALS = {
    "ViT-B/32": ("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "ViT-B/16": ("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "ViT-L/14": ("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "ViT-L/14@336px": ("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
}
FIGURES = {
    "ViT-B/16": {"grit1m+mim": 69.40, "grit20m": 68.89, "grit1m": 68.31},
    "ViT-L/14": {"grit1m+mim": 77.80, "grit20m": 77.41, "grit1m": 77.22},
    "ViT-L/14@336px": {"grit20m": 79.61, "grit1m": 78.15},
}


def authors_entries() -> dict[tuple[str, str], KnownFile]:
    tables = {name: table for name, table in catalogue.ALPHA.items() if name != catalogue.BUNDLED}
    return {(name, tag): entry for name, table in tables.items() for tag, entry in table.items()}


def test_the_authors_files_have_their_hashes():
    assert {k: (entry.file, entry.sha256) for k, entry in authors_entries().items()} == AUTHORS_FILES


def test_the_authors_files_have_their_google_drive_links():
    assert {k: entry.drive for k, entry in authors_entries().items()} == DRIVE


def test_openais_archives_have_the_hashes_of_their_addresses():
    assert {name: entry.original for name, entry in catalogue.BASES.items() if entry.original} == ORIGINALS
    assert {digest: file for file, digest in ORIGINALS.values()}.items() <= catalogue.known_files().items()


def test_the_hub_copies_and_other_spellings_are_listed():
    entries = authors_entries()
    copies = {k: (e.repo_type, e.repo, e.revision) for k, e in entries.items() if e.repo}
    assert copies == HUB_COPIES
    assert {k: set(e.other_names) for k, e in entries.items() if e.other_names} == SPELLINGS


def test_the_bases_have_their_repositories_revisions_and_hashes():
    entries = {k: entry for k, entry in catalogue.BASES.items() if k != catalogue.BUNDLED}
    assert {k: (e.repo, e.revision, e.sha256) for k, e in entries.items()} == BASE_FILES


def test_hashes_are_sha256():
    entries = [*catalogue.BASES.values(), *authors_entries().values()]
    hashes = [e.sha256 for e in entries if e.sha256]
    assert len(set(hashes)) == len(hashes) == 11
    assert all(len(h) == 64 and set(h) <= set("0123456789abcdef") for h in hashes)


def test_every_base_has_a_table_of_alpha_weights_best_first():
    """By the figures of the paper's model zoo on ImageNet-S."""
    assert {name: list(table) for name, table in catalogue.ALPHA.items()} == {
        "tiny": ["scenes"],
        "ViT-B/32": [],
        "ViT-B/16": ["grit1m+mim", "grit20m", "grit1m"],  # 69.40, 68.89, 68.31
        "ViT-L/14": ["grit1m+mim", "grit20m", "grit1m"],  # 77.80, 77.41, 77.22
        "ViT-L/14@336px": ["grit20m", "grit1m"],  # 79.61, 78.15
    }
    assert catalogue.ALPHA.keys() == catalogue.BASES.keys()


def test_the_bundled_files_are_there_in_half_precision():
    for entry in (catalogue.BASES["tiny"], catalogue.ALPHA["tiny"]["scenes"]):
        tensors = load_file(weights.ASSETS / entry.file)
        assert {t.dtype for k, t in tensors.items() if k != "token_ids"} == {torch.float16}


def test_the_bundled_alpha_file_is_an_image_tower_as_the_authors_save_it():
    tower = load_file(weights.ASSETS / catalogue.ALPHA["tiny"]["scenes"].file)
    assert "conv1_alpha.weight" in tower
    assert not any(k.startswith("visual.") for k in tower)


def test_available_alpha_weights_are_best_first_with_the_papers_figures():
    for name, figures in FIGURES.items():
        notes = alpha_clip.available_alpha_weights(name)
        assert {tag: float(note.partition("%")[0]) for tag, note in notes.items()} == figures
        assert list(notes) == sorted(figures, key=figures.__getitem__, reverse=True)
        assert all("top-1 on ImageNet-S" in note for note in notes.values())
        assert [tag for tag, note in notes.items() if "seen ImageNet's labels" in note] == [
            tag for tag in figures if "mim" in tag
        ]
    assert alpha_clip.available_alpha_weights("ViT-B/32") == {}
    assert list(alpha_clip.available_alpha_weights("tiny")) == ["scenes"]


def test_available_alpha_weights_of_an_unknown_name():
    with pytest.raises(ValueError, match=r"name is 'ViT-H/14', expected one of \['tiny', 'ViT-B/32', "):
        alpha_clip.available_alpha_weights("ViT-H/14")


def test_the_errors_are_runtime_errors():
    for error in (AlphaWeightsNotFound, HashMismatch, IncompatibleCheckpoint):
        assert issubclass(error, WeightsError) and issubclass(error, RuntimeError)
    assert alpha_clip.WeightsError is WeightsError


# --- one state dict ---


def test_the_authors_tower_replaces_the_bases(base, tmp_path):
    alpha = written(checkpoints.authors_tower(), tmp_path / "alpha.safetensors")
    expected = {f"visual.{k}": v for k, v in checkpoints.image_tower().items()}
    assert_equal(weights.assemble(base, alpha).tensors, checkpoints.plain_clip() | expected)


def with_the_bases_text() -> dict[str, Tensor]:
    image = {k: v for k, v in checkpoints.clip(1).items() if k.startswith("visual.")}
    return checkpoints.plain_clip() | image


def test_alpha_weights_of_another_text_tower_are_told_of(base, tmp_path):
    tuned = checkpoints.plain_clip()
    tuned["text_projection"] = tuned["text_projection"] + 0.01
    alpha = written(tuned | with_the_bases_text(), tmp_path / "kept.safetensors")
    weights.assemble(base, alpha)  # no other text tower, no warning
    alpha = written(
        with_the_bases_text() | {"text_projection": tuned["text_projection"]}, tmp_path / "tuned.safetensors"
    )
    with pytest.warns(
        UserWarning, match=r"(?s)tuned\.safetensors holds a text tower too.*load\('.*tuned\.safetensors'\)"
    ):
        found = weights.assemble(base, alpha)
    assert torch.equal(found.tensors["text_projection"], checkpoints.plain_clip()["text_projection"])


@pytest.mark.filterwarnings("ignore:nothing confirms")
@pytest.mark.parametrize("half", [False, True])
def test_a_model_does_not_stay_in_the_file_that_training_saves_to_again(tmp_path, half):
    path, state = tmp_path / "best.pt", {k: v.half() if half else v for k, v in checkpoints.clip().items()}
    torch.save(state, path)
    model, _ = alpha_clip.load(path, "cpu", dtype=torch.float16 if half else None)
    with path.open("r+b") as file:  # as torch.save does, which would end the process where the file becomes shorter
        file.write(bytes(path.stat().st_size))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype)), name


@pytest.mark.parametrize("make", [checkpoints.image_tower, with_the_bases_text])
def test_alpha_weights_may_be_a_tower_in_our_names_or_a_whole_model(base, tmp_path, make):
    ours = weights.assemble(base, written(make(), tmp_path / "alpha.safetensors")).tensors
    assert_equal(
        ours, weights.assemble(base, written(checkpoints.authors_tower(), tmp_path / "theirs.safetensors")).tensors
    )


def test_the_bases_own_image_tower_is_not_read_where_another_replaces_it(base, tmp_path, monkeypatch):
    """Its bytes in the file are NaN, and nobody notices."""
    tower = written(checkpoints.image_tower(), tmp_path / "alpha.safetensors")
    ruined = {k: v * torch.nan if k.startswith("visual.") else v for k, v in checkpoints.plain_clip().items()}
    written(ruined, Path(base))
    model, _ = alpha_clip.load(base, "cpu", alpha_vision_ckpt_pth=tower)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("tower", [checkpoints.image_tower, checkpoints.authors_tower])
def test_an_image_tower_given_as_the_model_is_refused(tmp_path, tower):
    path = str(written(tower(), tmp_path / "alpha.safetensors"))
    message = r"holds an image tower alone: load its base by name and pass this file as alpha_vision_ckpt_pth="
    with pytest.raises(IncompatibleCheckpoint, match=rf"alpha\.safetensors {message}"):
        weights.assemble(path, "auto")


def test_an_alpha_file_without_alpha_weights_is_refused(base, tmp_path):
    path = written(checkpoints.plain_clip(1), tmp_path / "plain.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match=r"holds no alpha weights \(conv1_alpha\.weight\)"):
        weights.assemble(base, path)


def test_an_alpha_file_of_another_width_lists_the_sizes(base, tmp_path):
    path = written(checkpoints.authors_tower(vision_width=128), tmp_path / "alpha.safetensors")
    message = (
        r"alpha\.safetensors is not an image tower for this base: visual\.class_embedding: \(128,\) there, \(64,\) "
        r"needed; .*; and \d+ more\. Load the base it was trained on"
    )
    with pytest.raises(IncompatibleCheckpoint, match=message):
        weights.assemble(base, path)


@pytest.mark.parametrize(
    ("layers", "sizes"), [(1, r"nothing there, \(64,\) needed"), (3, r"\(64,\) there, nothing needed")]
)
def test_an_alpha_file_of_another_depth_lists_the_blocks(base, tmp_path, layers, sizes):
    path = written(checkpoints.authors_tower(vision_layers=layers), tmp_path / "alpha.safetensors")
    block = min(layers, 2)
    with pytest.raises(IncompatibleCheckpoint, match=rf"resblocks\.{block}\.ln_1\.bias: {sizes}"):
        weights.assemble(base, path)


@pytest.mark.parametrize("alpha", ["grit40m", "file.pth", "GRIT20M"])
def test_a_wrong_tag_lists_the_tags(alpha):
    message = rf"alpha weights '{alpha}' are neither a file nor a tag for ViT-L/14@336px \(tags: 'grit20m', 'grit1m'\)"
    with pytest.raises(WeightsError, match=message):
        weights.assemble("ViT-L/14@336px", alpha)


def test_a_path_of_alpha_weights_where_nothing_is(base):
    with pytest.raises(WeightsError, match=r"there is no file no/such/file\.pth"):
        weights.assemble(base, "no/such/file.pth")


@pytest.mark.parametrize("name", ["ViT-B/32", "base.pt"])
def test_where_there_are_no_tags_the_error_says_so(name):
    with pytest.raises(WeightsError, match=r"neither a file nor a tag for .* \(tags: none\)"):
        weights.assemble(name, "grit20m")


# --- what shapes leave open ---


def test_an_unconfirmed_file_loads_with_one_warning_that_names_both_assumptions(tmp_path):
    torch.save(checkpoints.clip(), tmp_path / "model.pt")
    with pytest.warns(UserWarning, match=rf"{UNCONFIRMED}.*convert .*model\.pt OUT\.safetensors --confirm") as caught:
        alpha_clip.load(str(tmp_path / "model.pt"), "cpu")
    assert len(caught) == 1 and caught[0].filename == __file__


def test_so_does_an_unconfirmed_file_of_alpha_weights(base, tmp_path):
    torch.save(checkpoints.authors_tower(), tmp_path / "alpha.pth")
    with pytest.warns(UserWarning, match=UNCONFIRMED) as caught:
        alpha_clip.load(base, "cpu", alpha_vision_ckpt_pth=tmp_path / "alpha.pth")
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_known_hash_confirms(tmp_path, monkeypatch):
    torch.save(checkpoints.clip(), tmp_path / "model.pt")
    digest = weights.hashes.sha256(tmp_path / "model.pt")
    monkeypatch.setitem(catalogue.ALPHA["ViT-B/32"], "new", KnownFile("new.pth", digest))
    alpha_clip.load(str(tmp_path / "model.pt"), "cpu")  # a warning would be an error here


def test_a_contradiction_is_refused_by_load_too(tmp_path):
    folder = checkpoints.transformers_folder(tmp_path, hidden_act="gelu")
    with pytest.raises(IncompatibleCheckpoint, match=r"vision hidden_act gelu, needed quick_gelu"):
        alpha_clip.load(str(folder), "cpu")


# --- the model built from it ---


def test_build_holds_the_tensors_themselves():
    state = checkpoints.clip()
    model = weights.build("it", state)
    assert not model.training
    assert all(v.data_ptr() == state[k].data_ptr() for k, v in model.state_dict().items())


def test_build_reports_all_that_is_wrong_sorted():
    state = checkpoints.clip() | {"a.stranger": torch.zeros(2)}
    del state["ln_final.bias"]
    state["visual.ln_pre.weight"] = torch.zeros(3)
    message = (
        r"it does not hold the weights of a CLIP, no more and no less: a\.stranger: \(2,\) there, nothing needed; "
        r"ln_final\.bias: nothing there, \(64,\) needed; visual\.ln_pre\.weight: \(3,\) there, \(64,\) needed$"
    )
    with pytest.raises(IncompatibleCheckpoint, match=message):
        weights.build("it", state)


def test_build_refuses_what_has_no_sizes_to_read():
    state = checkpoints.clip()
    del state["text_projection"]
    with pytest.raises(IncompatibleCheckpoint, match=r"it: not the state dict of a CLIP .*: text_projection missing"):
        weights.build("it", state)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_build_refuses_weights_that_are_not_finite(value):
    state = checkpoints.clip()
    state["ln_final.bias"][3] = value
    with pytest.raises(IncompatibleCheckpoint, match=r"it has weights that are not finite \(ln_final\.bias\)"):
        weights.build("it", state)


def test_expand_vocabulary_gives_each_id_its_row_or_the_unknown_one():
    packed = checkpoints.packed_clip()
    rows, ids = packed["token_embedding.weight"], packed["token_ids"].tolist()
    full = vocabulary.expand(packed)
    assert full["token_embedding.weight"].shape == (49408, rows.shape[1])
    for i, row in enumerate(full["token_embedding.weight"]):
        assert torch.equal(row, rows[1 + ids.index(i)] if i in ids else rows[0])


def test_expand_vocabulary_keeps_the_rest_and_its_argument():
    packed = checkpoints.packed_clip()
    full = vocabulary.expand(packed)
    assert full.keys() == packed.keys() - {"token_ids"}
    assert all(full[k] is packed[k] for k in full if k != "token_embedding.weight")
    assert len(packed["token_embedding.weight"]) == 1 + len(packed["token_ids"])


def test_the_folder_of_a_training_run_names_its_file(tmp_path):
    written(checkpoints.clip(), tmp_path / "best.safetensors")
    (tmp_path / "last.pt").touch()
    remedy = rf"training run, expected a file: pass alpha_vision_ckpt_pth={tmp_path}/best\.safetensors, and its base as"
    with pytest.raises(alpha_clip.WeightsError, match=remedy):
        alpha_clip.load(tmp_path, "cpu")
    with pytest.raises(alpha_clip.WeightsError, match=remedy):
        alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=tmp_path)


# --- python -m alpha_clip.weights ---


def command(*arguments: object, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What the command prints, by its first words."""
    weights.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().out.splitlines()
    return {line[:20].strip(): line[21:] for line in lines}


def test_verify_says_what_a_file_is(tmp_path, capsys):
    path = written(checkpoints.clip(), tmp_path / "model.safetensors")
    facts = command("verify", path, capsys=capsys)
    assert facts.pop("sha256") == f"{weights.hashes.sha256(path)} (not in the catalogue)"
    assert facts.pop("weights") == f"{sum(v.numel() for v in checkpoints.clip().values()):,}, all finite"
    assert facts == {
        "format": "safetensors",
        "holds": "both towers",
        "image tower": "width 64, 8-pixel patches, 32 x 32 pixels",
        "alpha weights": "yes",
        "precision": "float32",
        "heads and QuickGELU": "confirmed by its metadata",
    }


def test_verify_names_a_known_file_and_a_tower_alone(tmp_path, capsys, monkeypatch):
    torch.save(checkpoints.authors_tower(), tmp_path / "alpha.pth")
    digest = weights.hashes.sha256(tmp_path / "alpha.pth")
    monkeypatch.setitem(catalogue.ALPHA["ViT-B/32"], "new", KnownFile("new.pth", digest))
    facts = command("verify", tmp_path / "alpha.pth", capsys=capsys)
    assert facts["format"] == "torch.save"
    assert facts["sha256"] == f"{digest} (new.pth)"
    assert facts["holds"] == "an image tower alone"
    assert facts["heads and QuickGELU"] == "confirmed by its SHA-256, which is that of new.pth"


@pytest.mark.parametrize(
    ("make", "expected"), [(checkpoints.plain_clip, "none"), (checkpoints.blind_clip, "all zero: masks are ignored")]
)
def test_verify_says_when_masks_are_ignored(tmp_path, capsys, make, expected):
    facts = command("verify", written(make(), tmp_path / "model.safetensors"), capsys=capsys)
    assert facts["alpha weights"] == expected


def test_verify_of_the_bundled_files(capsys):
    for entry in (catalogue.BASES["tiny"], catalogue.ALPHA["tiny"]["scenes"]):
        assert command("verify", weights.ASSETS / entry.file, capsys=capsys)["heads and QuickGELU"].startswith(
            "confirmed"
        )
    assert not [path.name for path in weights.ASSETS.iterdir() if path.name.startswith(".")]


def test_verify_takes_the_names_that_load_takes(tmp_path, capsys, monkeypatch):
    weights.main(["verify", "tiny"])
    base, alpha = capsys.readouterr().out.split("\n\n")
    assert "both towers" in base and "alpha weights        none" in base
    assert "an image tower alone" in alpha and "alpha weights        yes" in alpha
    found = written(checkpoints.plain_clip(), tmp_path / "found.safetensors")
    monkeypatch.setattr(weights, "locate", lambda entry, root: found if entry is catalogue.BASES["ViT-B/32"] else None)
    assert command("verify", "ViT-B/32", capsys=capsys)["holds"] == "both towers"


def test_verify_reads_every_weight(tmp_path):
    state = checkpoints.clip()
    state["visual.proj"][3, 4] = torch.nan  # `load` would not notice
    path = written(state, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match=r"error: .* has weights that are not finite: visual\.proj"):
        weights.main(["verify", str(path)])


@pytest.mark.parametrize("arguments", [["verify", "none.pt"], ["convert", "none.pt", "out.safetensors"]])
def test_a_file_that_cannot_be_read_ends_the_command(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"error: there is no file none\.pt"):
        weights.main(arguments)


def test_convert_writes_canonical_safetensors(tmp_path, capsys):
    folder = checkpoints.transformers_folder(tmp_path / "theirs")
    facts = command("convert", folder, tmp_path / "out.safetensors", capsys=capsys)
    assert facts["heads and QuickGELU"] == "confirmed by its metadata"
    assert_equal(load_file(tmp_path / "out.safetensors"), alpha_clip.checkpoints.read(folder).tensors)


def test_convert_confirms_only_on_the_users_word(tmp_path, capsys):
    torch.save(checkpoints.clip(), tmp_path / "model.pt")
    target = tmp_path / "out.safetensors"
    assert command("convert", tmp_path / "model.pt", target, capsys=capsys)["heads and QuickGELU"] == "not confirmed"
    with pytest.warns(UserWarning, match=UNCONFIRMED):
        alpha_clip.load(str(target), "cpu")
    facts = command("convert", tmp_path / "model.pt", target, "--confirm", "--force", capsys=capsys)
    assert facts["heads and QuickGELU"] == "confirmed by its metadata"
    alpha_clip.load(str(target), "cpu")


def test_convert_writes_over_nothing_unless_told_to(tmp_path, capsys):
    source = written(checkpoints.clip(), tmp_path / "model.safetensors")
    target = written(checkpoints.clip(1), tmp_path / "out.safetensors")
    for path in (source, target):
        with pytest.raises(SystemExit, match=r"error: .*safetensors already exists: choose .*, or .* --force"):
            weights.main(["convert", str(source), str(path)])
    assert_equal(load_file(target), checkpoints.clip(1))
    command("convert", source, target, "--force", capsys=capsys)
    assert_equal(load_file(target), checkpoints.clip())


def test_convert_runs_an_archives_code_only_if_told_to(tmp_path, capsys):
    archive = checkpoints.torchscript(checkpoints.clip(), tmp_path / "model.pt")
    target = tmp_path / "out.safetensors"
    with pytest.raises(SystemExit, match="is a TorchScript archive, which can only be read by running code"):
        weights.main(["convert", str(archive), str(target)])
    assert not target.exists()
    command("convert", archive, target, "--trust", capsys=capsys)
    assert_equal(load_file(target), checkpoints.clip())


def test_convert_refuses_another_ending(tmp_path):
    torch.save(checkpoints.clip(), tmp_path / "model.pt")
    with pytest.raises(SystemExit, match=r"target is .*out\.pt, expected a name that ends in \.safetensors"):
        weights.main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "out.pt")])


def test_a_target_that_cannot_be_written_ends_the_command(tmp_path):
    written(checkpoints.clip(), tmp_path / "model.safetensors")
    (tmp_path / "out.safetensors").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*Is a directory"):
        weights.main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "out.safetensors"), "--force"])


def test_the_module_is_a_command(monkeypatch, capsys, tmp_path):
    path = written(checkpoints.clip(), tmp_path / "model.safetensors")
    monkeypatch.setattr(sys, "argv", ["weights", "verify", str(path)])
    monkeypatch.delitem(sys.modules, "alpha_clip.weights")
    runpy.run_module("alpha_clip.weights", run_name="__main__")
    assert "both towers" in capsys.readouterr().out
