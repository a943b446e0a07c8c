"""The prepared text that a run was trained on, where it is still there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from minigpt.config import DataConfig
from minigpt.data.shards import Manifest
from minigpt.data.sources.names import MANIFEST
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, newest_checkpoint


def prepared_of(run: RunFolder, config: DataConfig) -> Iterator[tuple[Path, Manifest]]:
    """Folders and manifests with the text that a run was trained on, by the fingerprint in its checkpoint.

    Folders of other tokenizers are among them: the fingerprint is the text's. They are looked for in `data.dir` from
    the working directory, and from the folder in which the run was started, if that has the run as runs/NAME.
    """
    with contextlib.suppress(UserError, KeyError, OSError):
        _, content = newest_checkpoint(run, quiet=True)
        fingerprint = content[CHECKPOINT_KEY]["text_fingerprint"]
        homes = dict.fromkeys([Path(config.dir), run.path.absolute().parents[1] / config.dir])
        for folder in (*map(Path, config.sources), *(folder for home in homes for folder in home.glob("*/"))):
            with contextlib.suppress(UserError):
                if (folder / MANIFEST).is_file() and (found := Manifest.read(folder)).text_fingerprint == fingerprint:
                    yield folder, found
