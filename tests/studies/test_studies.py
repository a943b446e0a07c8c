"""Every study bears out what it claims, and its folder and the gallery say so."""

import sys
from pathlib import Path

import pytest

from minigpt.config import StudyConfig
from minigpt.errors import UserError
from minigpt.lab.study import described, find_study, run_study, spread, studies, study_page, write_study

ROOT = Path(__file__).parents[2] / "studies"
NAMES = sorted(path.parent.name for path in ROOT.glob("*/study.py"))
MOST_LINES = 150
SHORT = {"communication", "hopfield", "kernel-regression", "linear"}
"""Quick here, 14 seconds of CPU together, as is soft-lookup in test_commands.py; the others take 3 to 20 each."""


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_quick_study_finds_what_it_claims(name: str) -> None:
    study, _ = run_study(ROOT / name, 1, quick=True)
    assert study.findings
    assert [finding.sentence for finding in study.findings if not finding.holds] == []
    page = study_page(study, 1.0)
    assert "<img" in page
    assert "<table>" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_study_finds_what_it_claims(name: str) -> None:
    study, _ = run_study(ROOT / name)
    assert [finding.sentence for finding in study.findings if not finding.holds] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_short_and_says_what_it_does_not_show(name: str) -> None:
    folder = ROOT / name
    assert len((folder / "study.py").read_text().splitlines()) <= MOST_LINES
    text = (folder / "README.md").read_text()
    for heading in ("Claim", "Experiment", "What came out", "What it does not show", "Two questions"):
        assert f"\n## {heading}\n" in text
    assert described(folder).verdict.lower().startswith(("holds", "does not hold"))
    assert "![" in text.split("## Claim")[0]
    assert (folder / "picture.png").is_file()


def gallery() -> str:
    """The table of studies/README.md."""
    cells = []
    for name, folder in ((name, ROOT / name) for name in NAMES):
        about = described(folder)
        cells.append(
            f"### [{name}]({name}/README.md)\n\n{about.claim}. **{about.verdict}.** {about.said}\n\n"
            f'<img src="{name}/picture.png" alt="{about.claim}" width="640">\n'
        )
    return "\n".join(cells)


def test_the_gallery_shows_every_study() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.split("<!-- gallery -->\n")[1] == gallery(), "renew it: python tests/studies/test_studies.py"


def test_a_study_without_a_name_lists_all_and_a_wrong_one_is_refused_with_a_hint() -> None:
    assert all(name in write_study(StudyConfig()) for name in NAMES)
    with pytest.raises(UserError, match="did you mean soft-lookup"):
        find_study("soft-lokup")
    assert set(NAMES) <= set(studies())


def test_a_folder_without_a_claim_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text("")
    with pytest.raises(UserError, match="must begin with"):
        run_study(tmp_path)


def test_a_spread_has_as_many_digits_as_its_deviation() -> None:
    assert spread([1.0, 1.02, 1.04]) == "1.02 ± 0.02"
    assert spread([0.5, 0.5]) == "0.5 ± 0"
    assert spread([0.12, 0.12, 0.12]) == "0.12 ± 0"
    assert spread([1234.0, 1250.0]) == "1242 ± 11"
    assert spread([2e-9, 4e-9]) == "3.0e-09 ± 1.4e-09"
    assert spread([0.25]) == "0.25"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(path.read_text().split("<!-- gallery -->\n")[0] + "<!-- gallery -->\n" + gallery())
    sys.exit(0)
