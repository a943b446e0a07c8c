"""Load a study's module by its path, as its folder is not a package."""

import functools
import runpy
from types import SimpleNamespace

from scripts import ROOT


@functools.cache
def study_file(name: str) -> SimpleNamespace:
    """What studies/NAME/study.py defines."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "studies" / name / "study.py")))
