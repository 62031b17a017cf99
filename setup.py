"""All metadata of the package; `pyproject.toml` holds the build system and the tools' settings."""

from pathlib import Path

from setuptools import find_packages, setup

test = ["pytest>=8", "setuptools>=77", "wheel", "open_clip_torch>=2.24", "transformers>=4.40", "hypothesis", "peft"]
train = ["filelock", "pycocotools", "webdataset"]
evaluation = ["matplotlib", "jinja2", "pycocotools"]
onnx = ["onnxruntime", "onnx"]
pipeline = ["ray[data]>=2.60", "filelock", "transformers>=5", "webdataset", "pycocotools", "pyarrow", "scipy"]
diffusion = ["diffusers>=0.42", "transformers>=5", "accelerate"]
bench = ["open_clip_torch>=2.24", "transformers>=5", "openai-clip", "onnxruntime", "onnx", "onnxscript"]

demo = ["gradio>=6"]
search = ["faiss-cpu"]  # without it the search is exact
docs = ["mkdocs", "mkdocs-material", "mkdocstrings[python]"]

setup(
    name="alpha-clip",
    version="0.1.0",
    description="CLIP that looks wherever you point it: OpenAI's API with a mask as fourth input channel",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["alpha_clip", "alpha_clip.*"]),
    package_data={"alpha_clip": ["py.typed", "assets/*", "evaluation/assets/*"]},
    install_requires=[
        "torch>=2.10",  # before it, weights_only loading could run code (CVE-2026-24747)
        "torchvision",
        "ftfy",
        "regex",
        "tqdm",
        "huggingface_hub>=0.26",
        "safetensors",
        "pillow",
        "numpy",
    ],
    entry_points={"console_scripts": ["alpha-clip = alpha_clip.cli:main"]},
    extras_require={
        "train": train,
        "eval": evaluation,
        "onnx": onnx,
        "pipeline": pipeline,
        "test": test,
        "diffusion": diffusion,
        "bench": bench,
        "docs": docs,
        "search": search,
        "demo": demo,
        "dev": [
            *test,
            *train,
            *evaluation,
            *pipeline,
            *bench,
            *diffusion,
            *docs,
            *search,
            *demo,
            "playwright",  # drives the Chromium of the system, which shows the report and the demo
            "scikit-learn",
            "tensorboard",
            "ruff",
            "mypy",
            "pre-commit",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
