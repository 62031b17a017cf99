"""A catalogue of the known weights: their names, tags, hashes and sources."""

from __future__ import annotations

from .sources import KnownFile

BUNDLED = "tiny"


def _base(name: str, revision: str, sha256: str | None, original: tuple[str, str], *other_names: str) -> KnownFile:
    return KnownFile("open_clip_model.safetensors", sha256, name, revision, other_names=other_names, original=original)


# OpenAI's weights in OpenAI's names. Their own archives count too, where clip has left them on this disk; their hashes
# stand in the addresses that OpenAI's clip downloads them from.
BASES: dict[str, KnownFile] = {
    BUNDLED: KnownFile("tiny.safetensors"),
    "ViT-B/32": _base(
        "timm/vit_base_patch32_clip_224.openai",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        ("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    ),
    "ViT-B/16": _base(
        "timm/vit_base_patch16_clip_224.openai",
        "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
        ("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    ),
    "ViT-L/14": _base(
        "timm/vit_large_patch14_clip_224.openai",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        ("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    ),
    "ViT-L/14@336px": _base(
        "timm/vit_large_patch14_clip_336.openai",
        "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
        None,  # not known
        ("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
        "open_clip_pytorch_model.bin",
    ),
}

_MIM = "has seen ImageNet's labels, so it is not zero-shot there"


def _figure(imagenet_s: float, note: str = "") -> str:
    """Word the top-1 accuracy with ground-truth masks, from the paper's table 1 and the authors' model zoo."""
    return f"{imagenet_s:.2f}% top-1 on ImageNet-S" + (f"; {note}" if note else "")


# The authors' image towers, each base's best first by its figure on ImageNet-S.
ALPHA: dict[str, dict[str, KnownFile]] = {
    BUNDLED: {"scenes": KnownFile("tiny_alpha.safetensors", note="for drawn scenes alone; see the model card")},
    "ViT-B/32": {},
    "ViT-B/16": {
        "grit1m+mim": KnownFile(
            "clip_b16_grit+mim_fultune_4xe.pth",
            "a00f7bfd80944dacbb77e238eb2c0f055ec3274201023b2e781d9f0d180d9630",
            other_names=("clip_b16_grit1m+mim_fultune_4xe.pth",),
            drive="11iDlSAYI_BAi1A_Qz6LTWYHNgPe-UY7I",
            note=_figure(69.40, _MIM),
        ),
        "grit20m": KnownFile(
            "clip_b16_grit20m_fultune_2xe.pth",
            "6ff9e3c5735aa34bcbd386ba4d1b99e5efc5deffab077d3d2f2911d1f1c43a57",
            drive="1cj3cYwrzBivx0h0NzSjlCg9HAd5aTkDW",
            note=_figure(68.89),
        ),
        "grit1m": KnownFile(
            "clip_b16_grit1m_fultune_8xe.pth",
            "9f6ffac9044f641b09975f9c782a34a02a2b52ffd8de4a3d3394404b38794c16",
            drive="16fHEXZ-7bgzcSBHzEz1wXRIZTjQIXm_2",
            note=_figure(68.31),
        ),
    },
    "ViT-L/14": {
        "grit1m+mim": KnownFile(
            "clip_l14_grit+mim_fultune_6xe.pth",
            "a5f3f2e24459e9764d9f4b4c053fb354dc9d508bd8f647b952402d6860bc9c3d",
            repo="bedead/CLIPAway",
            repo_type="space",
            other_names=("clip_l14_grit1m+mim_fultune_6xe.pth",),
            drive="1JfzOTvjf0tqBtKWwpBJtjYxdHi-06dbk",
            note=_figure(77.80, _MIM),
        ),
        "grit20m": KnownFile(
            "clip_l14_grit20m_fultune_2xe.pth",
            "42c621bb5bac89a511ab625a878f026c11de4de8cf7abf52db5dfd11862bdb8e",
            drive="1WykuBYWePriCVeW5lOwBsgxgeBMzb1nd",
            note=_figure(77.41),
        ),
        "grit1m": KnownFile(
            "clip_l14_grit1m_fultune_8xe.pth",
            "05254743d5fc12e24f947fb92ba3737e3bc86a9c190dc6608fc9926a0eb64b91",
            drive="1PIhplBnsmSWiJN--TXCCSsiaV6bY9koq",
            note=_figure(77.22),
        ),
    },
    "ViT-L/14@336px": {
        "grit20m": KnownFile(
            "clip_l14_336_grit_20m_4xe.pth",
            "b0e9c4d5d33bfa2724a0864f8e4b2b92f99aba3a4daf43084114c8caecfbadd9",
            repo="YaTharThShaRma999/PromptTest",
            revision="8fbe1684f2bcd0e2bf227f41a69e28f68f851fab",
            other_names=(
                "clip_l14_336_grit20m_fultune_4xe.pth",
                "clip_l14@336_grit20m_fultune_4xe.pth",
                "clip_l14@336_grit_20m_4xe.pth",
            ),
            drive="1dUq1deeLcou26RuxZbBG57m2ALPWev6-",
            note=_figure(79.61),
        ),
        "grit1m": KnownFile(
            "clip_l14_336_grit1m_fultune_8xe.pth",
            "fa701cf18a3e19a1e5e81668885b15bf75337e59b0788405999e889b7aa775d0",
            repo="omeregev/click2mask-alphaclip-weights",
            other_names=("clip_l14@336_grit1m_fultune_8xe.pth",),
            drive="1DeNbUv0lraDxJZItb7shTlvGW6z_Z9Si",
            note=_figure(78.15),
        ),
    },
}


def available_alpha_weights(name: str) -> dict[str, str]:
    """Map the tags of the alpha weights that `load` knows for a base, best first, to a note on each.

    >>> available_alpha_weights("ViT-L/14@336px")["grit20m"]
    '79.61% top-1 on ImageNet-S'

    Raises:
        ValueError: `name` is none of `available_models()`.
    """
    if name not in ALPHA:
        raise ValueError(f"name is {name!r}, expected one of {list(ALPHA)}")
    return {tag: entry.note for tag, entry in ALPHA[name].items()}


def known_files() -> dict[str, str]:
    """Map the SHA-256 of every file in the catalogue to its name. All have 64-wide heads and QuickGELU."""
    files = [*BASES.values(), *(entry for tags in ALPHA.values() for entry in tags.values())]
    hashed = {entry.sha256: entry.file for entry in files if entry.sha256}
    return hashed | openais_files()


def openais_files() -> dict[str, str]:
    """Map the SHA-256 of OpenAI's own archives to their names."""
    return {entry.original[1]: entry.original[0] for entry in BASES.values() if entry.original}
