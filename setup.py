"""Package description of fastfgssl.

The operators live in the top-level folder `kernels/` and are imported as `fastfgssl.kernels`; a top-level package named
`kernels` would clash with the one on PyPI.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "(.+)"', Path("fastfgssl/__init__.py").read_text())[1]
PACKAGES = ["fastfgssl", *(f"fastfgssl.{name}" for name in find_packages("fastfgssl"))]
KERNELS = ["fastfgssl.kernels", *(f"fastfgssl.kernels.{name}" for name in find_packages("kernels"))]

REQUIREMENTS = [
    "torch>=2.11",
    "torchvision>=0.26",
    "nvidia-dali-cuda130>=2.4",
    "nvidia-cuda-crt>=13.0,<14",  # headers that DALI's own include; 0.2 MB
    "blake3>=1.0",
    "imagecodecs>=2026.1; python_version >= '3.11'",
    "imagecodecs>=2025.3; python_version < '3.11'",
    "numpy>=2.0",
    "pillow>=11.0",
    "pyarrow>=18.0",
    "pydicom>=3.0",
    "pyyaml>=6.0",
    "rich>=13.7",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "simplejpeg>=1.8",  # its decoder tells a damaged JPEG, which Pillow's does not
    "tensorboard>=2.17",
]

EXTRAS = {
    "baselines": ["lightly>=1.6"],  # its losses, which tests hold ours against
    "dicomweb": ["requests>=2.32.4"],  # from which on netrc's passwords go to no other host
    "excel": ["openpyxl>=3.1"],
    "heic": ["pi-heif>=1.0"],  # its wheels hold libheif and libde265 (LGPL-3.0), and no encoder
    "mlflow": ["mlflow>=2.18"],
    "notebook": ["ipykernel>=6.29", "matplotlib>=3.8"],
    "onnx": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],
    "plot": ["matplotlib>=3.8"],
    "ray": ["ray>=2.40"],
    "s3": ["s3fs>=2024.6"],
    "timm": ["timm>=1.0.16"],
    "test": [
        "hypothesis>=6.100",
        "ipykernel>=6.29",
        "matplotlib>=3.8",
        "moto[server]>=5.0",
        "mypy>=1.14",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "onnx>=1.18",
        "onnxruntime>=1.22",
        "onnxscript>=0.5",
        "openslide-bin>=4.0",
        "openslide-python>=1.4",
        "openpyxl>=3.1",
        "pi-heif>=1.0",
        "pytest>=8.0",
        "pytest-xdist>=3.6",
        "python-gdcm>=3.0",  # the decoder that ours are held against
        "ray>=2.40",
        "requests>=2.32.4",
        "ruff>=0.9",
        "s3fs>=2024.6",
        "safetensors>=0.5",
        "setuptools>=70",
        "tifffile>=2025.1",  # writes the slides of the tests
        "timm>=1.0.31",
        "types-PyYAML>=6.0",
        "webdataset>=1.0",  # a reader of shards that is not ours
        "wheel",
        "zstandard>=0.22",
    ],
    "wandb": ["wandb>=0.18"],
    "wsi": ["openslide-bin>=4.0", "openslide-python>=1.4"],
    "zstd": ["zstandard>=0.22"],
}

setup(
    name="fastfgssl",
    version=VERSION,
    description="High-throughput fine-grained self-supervised learning on medical images",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*PACKAGES, *KERNELS, "fastfgssl.configs"],
    package_dir={"fastfgssl": "fastfgssl", "fastfgssl.kernels": "kernels", "fastfgssl.configs": "configs"},
    package_data={
        "fastfgssl": ["py.typed"],
        "fastfgssl.kernels": ["*.h", "*/*.h", "*/*.cuh", "*/*.cc", "*/*.cu", "*/README.md"],
        "fastfgssl.configs": ["*.yaml"],
    },
    entry_points={"console_scripts": ["fastfgssl = fastfgssl.commands:run"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
