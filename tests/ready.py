"""A Python that has imported the project's libraries already, and forks for each program that a test starts.

Three to eight seconds of a processor less for each. Everything else is as for a user: a process of its own, with the
caller's arguments, environment, folder and streams, and Python's way out of it but for the half second in which it
takes its modules apart. It leaves executables `python` and `minigpt` in its folder, which hand over their arguments;
when its standard input ends, it removes the folder and ends too.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

import datasets  # noqa: F401
import lightning.pytorch.strategies.launchers.subprocess_script as launcher
import wandb.cli.cli
import wandb.sdk.launch  # noqa: F401

import minigpt.cli.parsing
import minigpt.training.run

PYTHON = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys
ready = socket.socket(socket.AF_UNIX)
ready.connect(os.path.join(os.path.dirname(__file__), "socket"))
job = {{"arguments": sys.argv[1:], "env": dict(os.environ), "folder": os.getcwd()}}
socket.send_fds(ready, [json.dumps(job).encode() + b"\\n"], [0, 1, 2])
answers = ready.makefile()
child = int(answers.readline())
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
for number in numbers:
    signal.signal(number, lambda number, _: os.kill(child, number))
code = int(answers.readline())
for number in numbers:
    signal.signal(number, signal.SIG_DFL)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def serve(folder: Path) -> tuple[dict[str, Any], list[int]]:
    """Fork for each job; returns the job and its streams in the process that is to run it."""
    temporary = list(Path(tempfile.gettempdir()).iterdir())  # W&B's, among others; each process removes them at its end
    gc.freeze()  # or each process looks at all objects again when it ends
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        server.listen()
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)
        (folder / "minigpt").write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -m minigpt "$@"\n')
        (folder / "minigpt").chmod(0o755)
        print("ready", flush=True)
        while 0 not in select.select([0, server], [], [])[0]:
            caller = server.accept()[0]
            message, streams, *_ = socket.recv_fds(caller, 1 << 20, 3)
            while not message.endswith(b"\n"):
                message += caller.recv(1 << 20)
            for path in temporary:
                path.mkdir(exist_ok=True)
            if os.fork() == 0:
                child = os.fork()
                if child == 0:
                    caller.close()
                    return json.loads(message), streams
                watch(caller, child, streams)
            for descriptor in (*streams, caller.detach()):
                os.close(descriptor)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit()


def watch(caller: socket.socket, child: int, streams: list[int]) -> NoReturn:
    """Tell the caller its program's number and how it ended; a caller that is killed takes its program along."""
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(OSError):
        caller.sendall(b"%d\n" % child)
        if caller in select.select([caller, os.pidfd_open(child)], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        caller.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


minigpt.cli.parsing.parse_training([])  # which keeps the parser
job, streams = serve(folder := Path(sys.argv[1]))
# The other ranks that Lightning starts need not import everything anew either.
rank_command = launcher._basic_subprocess_cmd
launcher._basic_subprocess_cmd = lambda: [str(folder / "python"), *rank_command()[1:]]
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
os.environ.clear()
os.environ.update(job["env"])
os.chdir(job["folder"])
sys.path[1:1] = filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep))
code = 1
try:
    match job["arguments"]:
        case ["-c", program, *rest]:
            sys.path[0], sys.argv = "", ["-c", *rest]
            exec(program, {"__name__": "__main__"})
        case ["-m", module, *rest]:
            sys.path[0], sys.argv = job["folder"], [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *rest]:
            sys.path[0], sys.argv = str(Path(script).parent), [script, *rest]
            runpy.run_path(script, run_name="__main__")
    code = 0
except SystemExit as end:
    code = end.code or 0  # type: ignore[assignment]
except BaseException:
    traceback.print_exc()
threading._shutdown()  # type: ignore[attr-defined]
atexit._run_exitfuncs()
sys.stdout.flush()
os._exit(code)
