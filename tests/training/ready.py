"""Lines of JSON -> Python scripts in processes that have imported the project's libraries already.

Ten seconds less for each. Everything else is as for a user: a process of its own, and Python's way out of it. TMPDIR
must be a folder of its own.
"""

import gc
import json
import os
import runpy
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import datasets  # noqa: F401
import wandb.cli.cli
import wandb.sdk.launch  # noqa: F401

import minigpt.cli
import minigpt.training.run  # noqa: F401

temporary = list(Path(tempfile.gettempdir()).iterdir())  # W&B's, among others; each process removes them when it ends
gc.freeze()  # or each process looks at all objects again when it ends
for line in sys.stdin:
    job = json.loads(line)
    for folder in temporary:
        folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

os.environ.clear()
os.environ.update(job["env"])
output = os.open(job["output"], os.O_WRONLY | os.O_CREAT)
if job["at_terminal"]:
    outside, inside = os.openpty()
    copy = (os.fdopen(outside, "rb", buffering=0), os.fdopen(output, "wb", buffering=0))
    threading.Thread(target=shutil.copyfileobj, args=copy, daemon=True).start()
else:
    inside = os.open(os.devnull, os.O_RDONLY)
os.dup2(inside, 0)
for number in (1, 2):
    os.dup2(inside if job["at_terminal"] else output, number)
sys.argv = job["arguments"]
runpy.run_path(sys.argv[0], run_name="__main__")
