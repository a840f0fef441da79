"""Run a command on GPUs of its own, on a machine without a scheduler.

    python -m lvis_rcnn.system.gpus --gpus 2 -- python -m lvis_rcnn train …

A GPU is held by a lock on a file of its name, which the system releases with the last process that holds it, however
it ends. The command replaces this process and sees its own GPUs only (CUDA_VISIBLE_DEVICES); what it starts shares them
and waits for none. Inside a SLURM job, which has its GPUs from SLURM, it is run as it is. Other programs and other
users are not kept off. (The locks of filelock do not survive exec.)
"""

import argparse
import fcntl
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from lvis_rcnn.system.cli import InputError, add_number, log, run_step, step_parser

POLL_S = 2.0

HELD = "LVIS_RCNN_GPUS_HELD"
"""Environment variable of the processes beneath one that holds GPUs, whose locks are not theirs but keep others off."""


def gpus_of_this_machine() -> list[str]:
    """Names of the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or the numbers of all GPUs.

    As CUDA reads it, an invalid name, -1 or SLURM's NoDevFiles, ends the list.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names = filter(None, map(str.strip, named.split(",")))
        return list(itertools.takewhile(lambda name: name not in ("-1", "NoDevFiles"), names))
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def lock_folder() -> Path:
    """Folder of this user's locks on this machine."""
    folder = Path(tempfile.gettempdir()) / f"lvis_rcnn_gpus_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def lock(gpu: str, folder: Path) -> int | None:
    """An open file that holds a GPU and survives exec; None if another process holds it."""
    handle = os.open(folder / gpu.replace("/", "_"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    os.set_inheritable(handle, True)
    return handle


def lease(wanted: int, folder: Path) -> list[str]:
    """Hold this many GPUs until this process ends; waits while others hold them.

    All or none: a waiting process holds no GPU that another one waits for. Where a process above holds those that are
    visible, they are taken from them at once.

    Raises:
        InputError: the machine has fewer.
    """
    present = gpus_of_this_machine()
    if wanted > len(present):
        raise InputError(
            "resources.gpus",
            f"asks for {wanted}, this machine has {len(present)}",
            allowed="the GPUs of this machine (CUDA_VISIBLE_DEVICES, nvidia-smi -L)",
            fix="lower resources.gpus, or run on a machine that has them",
        )
    if HELD in os.environ:
        return present[:wanted]
    waits = False
    while True:
        held: dict[str, int] = {}
        for gpu in present:
            if len(held) < wanted and (handle := lock(gpu, folder)) is not None:
                held[gpu] = handle
        if len(held) == wanted:
            os.environ[HELD] = ",".join(held)
            return list(held)
        for handle in held.values():
            os.close(handle)
        if not waits:
            log.info("waiting for %d of the GPUs %s", wanted, ", ".join(present))
        waits = True
        time.sleep(POLL_S)


def hold_one_gpu() -> None:
    """Let this process see one GPU that no other run of this user holds; to be called before torch looks for GPUs.

    Does nothing inside a SLURM job or a process of torchrun, which have their GPUs already, and without a GPU.
    """
    if {"SLURM_JOB_ID", "WORLD_SIZE"}.isdisjoint(os.environ) and gpus_of_this_machine():
        os.environ["CUDA_VISIBLE_DEVICES"] = lease(1, lock_folder())[0]


def step(args: argparse.Namespace) -> None:
    """Replace this process by the command, with GPUs of its own."""
    if shutil.which(args.command[0]) is None:
        raise InputError(args.command[0], "no such command", fix="write it after -- as on a command line of its own")
    if "SLURM_JOB_ID" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(lease(args.gpus, lock_folder()))
    os.execvp(args.command[0], args.command)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    add_number(parser, "--gpus", "GPUs that the command gets", 1, required=True, metavar="N")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    run_step(parser, step)


if __name__ == "__main__":
    main()
