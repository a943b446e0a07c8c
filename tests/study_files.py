"""The functions of a study: its folder is no package, so that it cannot be imported."""

import functools
import runpy
from types import SimpleNamespace

from scripts import ROOT


@functools.cache
def study_file(name: str) -> SimpleNamespace:
    """What studies/NAME/study.py defines."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "studies" / name / "study.py")))
