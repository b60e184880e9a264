"""WeightFormer: one network predicted from the weights of several (arXiv 2210.01973), and what it is compared with."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightformer.config import Config, preset
    from weightformer.model import WeightFormer
    from weightformer.predictor import Predictor

_NEEDED = (
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "mlxtend",
    "numpy",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "timm",
    "torchmetrics",
    "torchvision",
    "typer",
    "yaml",
)

if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    raise ImportError(
        f"weightformer needs {', '.join(_missing)}; install what belongs to it with: pip install 'wfkernels[models]'"
    )

__all__ = ["Config", "Predictor", "WeightFormer", "preset"]

_HOMES = {
    "Config": "weightformer.config",
    "Predictor": "weightformer.predictor",
    "WeightFormer": "weightformer.model",
    "preset": "weightformer.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weightformer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
