"""Trains under Slurm, on one node or many, and goes on after a preemption or a time limit.

    python -m tools.slurm --nodes=2 --gpus-per-node=8 -- --cfg recipes/vit_h_800ep.yaml --speed.parallel=fsdp

Everything after -- is for train_imagenet.py. Slurm starts one process for each GPU, from this folder, which the nodes
must share. Before it takes the nodes away it sends a signal: the run then saves after the step that is under
way and submits itself again. Needs submitit (the extra `slurm`).
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from config import train_command
from config.parser import Parser
from ffcv_ops.errors import UserError, exits_cleanly

try:
    import submitit
except ModuleNotFoundError:
    print("error: tools.slurm needs submitit; install it with ./setup.sh slurm", file=sys.stderr)
    raise SystemExit(2) from None

ROOT = Path(__file__).resolve().parents[1]


class Training(submitit.helpers.Checkpointable):
    """One process of the job. Called again after it was requeued, it goes on from the run folder's checkpoint."""

    def __init__(self, arguments: list[str]):
        self.arguments = arguments

    def __call__(self) -> str:
        place = submitit.helpers.TorchDistributedEnvironment()
        place.export(set_cuda_visible_devices=False, overwrite=True)
        warning = submitit.JobEnvironment()._usr_sig()  # USR2, unless the cluster's settings say another
        requeue = signal.getsignal(warning)  # submitit's handler: in the first process it submits the job again
        command = [sys.executable, str(ROOT / "train_imagenet.py"), *self.arguments]
        training = []

        def forward(number, frame):
            if training:
                training[0].send_signal(signal.SIGUSR1)
            else:
                requeue(number, frame)

        signal.signal(warning, forward)  # before the start, so that no warning is lost
        training.append(subprocess.Popen(command, cwd=ROOT))
        status = training[0].wait()
        # The run saved and stopped, or was not yet far enough to know the signal. Not so for SIGTERM: what Slurm
        # preempts it requeues itself, and scancel means it.
        if status in (128 + signal.SIGUSR1, -signal.SIGUSR1):
            requeue(warning, None)
        if status in (0, 128 + signal.SIGUSR1, -signal.SIGUSR1, 128 + signal.SIGTERM):
            return "stopped" if status else "done"
        raise RuntimeError(f"train_imagenet.py ended with status {status}")


def executor(options) -> submitit.Executor:
    """Slurm, or with --local this machine, where a job is a process and gets the same signals."""
    made = submitit.AutoExecutor(folder=options.logs, cluster="local" if options.local else "slurm")
    tasks = options.processes_per_node or options.gpus_per_node or 1
    made.update_parameters(
        name=options.name, nodes=options.nodes, tasks_per_node=tasks, gpus_per_node=options.gpus_per_node,
        cpus_per_task=options.cpus_per_process, timeout_min=60 * options.hours,
    )  # fmt: skip
    if not options.local:
        given = {"partition": options.partition, "account": options.account, "qos": options.qos}
        made.update_parameters(
            slurm_signal_delay_s=options.notice, **{f"slurm_{key}": value for key, value in given.items() if value}
        )
    return made


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's options, and what follows --."""
    parser = Parser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8, help="0: on the CPU")
    parser.add_argument("--processes-per-node", type=int, help="one for each GPU, if not said otherwise")
    parser.add_argument("--cpus-per-process", type=int, default=12, help="cores, for the loader")
    parser.add_argument("--hours", type=int, default=24, help="the time limit, after which the job is requeued")
    parser.add_argument("--notice", type=int, default=120, help="seconds from the signal to the end")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--name", default="deit3", help="the job's name")
    parser.add_argument("--logs", type=Path, default=ROOT / "runs" / "slurm", help="what the processes print")
    parser.add_argument("--local", action="store_true", help="on this machine, without Slurm")
    cut = argv.index("--") if "--" in argv else len(argv)
    own, rest = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    if not any(word == "--cfg" or word.startswith("--cfg=") for word in rest):
        raise UserError("tools.slurm: nothing to train; end with -- --cfg recipes/NAME.yaml")
    return own, rest


@exits_cleanly
def main(argv=None) -> None:
    options, arguments = parse(sys.argv[1:] if argv is None else argv)
    train_command.parse(__doc__, arguments)  # a mistake in it is said here, not after hours in a queue
    try:
        job = executor(options).submit(Training(arguments))
    except RuntimeError as error:  # submitit finds no Slurm
        raise UserError(f"tools.slurm: {error} (--local starts it on this machine)") from error
    print(f"job {job.job_id}; its output: {job.paths.stdout}")


if __name__ == "__main__":
    main()
