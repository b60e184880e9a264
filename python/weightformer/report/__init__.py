"""What a comparison leaves behind: a table in the terminal, a JSON file, and a page with pictures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightformer.report.files import About, read_json, write_json
    from weightformer.report.page import render, write_html
    from weightformer.report.terminal import console, show

__all__ = ["About", "console", "read_json", "render", "show", "write_html", "write_json"]

_HOMES = {
    "About": "files",
    "console": "terminal",
    "read_json": "files",
    "render": "page",
    "show": "terminal",
    "write_html": "page",
    "write_json": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weightformer.report' has no attribute {name!r}")
    return getattr(import_module(f"weightformer.report.{_HOMES[name]}"), name)
