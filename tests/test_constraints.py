"""constraints.txt: everything that is installed has one version there, and no release that does harm has a way in."""

import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from scripts import ROOT
from test_architecture import imported

from minigpt.training.machine import WITHDRAWN

LINES = [line.strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
PINS = {
    canonicalize_name(line.split("==")[0]): Version(line.split("==")[1]) for line in LINES if not line.startswith("#")
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLACES = [
    {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": name, "platform_system": system}
    for version in ("3.11", "3.12", "3.13")
    for name, system in (("linux", "Linux"), ("darwin", "Darwin"), ("win32", "Windows"))
]


def needed() -> set[tuple[str, str]]:
    """(package, who needs it) of all that the project and its extras need, on any Python and system it runs on."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    # minigpt's own names are those of this checkout, whatever was installed.
    texts = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    waiting = [("minigpt", Requirement(text), ("",)) for text in [*texts, *PROJECT["build-system"]["requires"]]]
    found: set[tuple[str, str]] = set()
    while waiting:
        by, requirement, extras_of = waiting.pop()
        environments = [{**default_environment(), **place, "extra": extra} for place in PLACES for extra in extras_of]
        name = canonicalize_name(requirement.name)
        if requirement.marker and not any(requirement.marker.evaluate(each) for each in environments):
            continue
        if name == "minigpt" or (name, by) in found:
            continue
        found.add((name, by))
        try:
            more = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system
        waiting += [(name, Requirement(text), ("", *requirement.extras)) for text in more]
    return found


def test_everything_that_is_needed_on_any_system_is_pinned() -> None:
    packages = needed()
    assert len(packages) > 80
    # The packages of CUDA belong to one build of torch, which pins them itself.
    assert {each for each in packages if each[0] not in PINS and not re.match("nvidia|cuda|triton", each[0])} == set()


def test_every_package_that_is_imported_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    optional = (text for name in ("tensorboard", "pandas", "lora", "check") for text in extras[name])
    requirements = (*PROJECT["project"]["dependencies"], *optional)
    declared = {canonicalize_name(Requirement(text).name) for text in requirements}
    packages = importlib.metadata.packages_distributions()
    paths = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]
    imports = {name.split(".")[0] for path in paths for name in imported(path)}
    others = imports - sys.stdlib_module_names - {"minigpt"}
    assert {"torch", "yaml"} <= others
    # A name may be of several packages, as that of a namespace: one of them is enough.
    assert {name for name in others if declared.isdisjoint(map(canonicalize_name, packages[name]))} == set()


@pytest.mark.parametrize("name", sorted(PINS))
def test_a_pin_is_one_exact_version_and_the_installed_one(name: str) -> None:
    try:
        installed = Version(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        assert name in {"appnope", "colorama"}  # of macOS and of Windows
        return
    assert installed.public == PINS[name].public  # torch's builds differ in what follows the "+"


def test_releases_that_do_harm_are_excluded_by_the_bounds_and_are_no_pins() -> None:
    bounds = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["project"]["dependencies"]}
    for name, versions in WITHDRAWN.items():
        assert not any(bounds[name].contains(version) for version in versions)
        assert str(PINS[name]) not in versions
    assert bounds["lightning"].contains(PINS["lightning"])
