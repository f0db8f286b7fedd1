"""Packages that pixtok does without until something asks for them."""

import importlib
from typing import Any

from pixtok.errors import InputError


def extra(module: str, name: str) -> Any:
    """A module of a package that `pip install 'pixtok[NAME]'` brings.  Raises InputError where it is not installed."""
    package = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] != package:  # it is there, and what it needs is not
            raise
    raise InputError(f"this needs the package {package}: pip install 'pixtok[{name}]'")
