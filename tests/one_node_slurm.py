"""A real Slurm of one node with two CPUs: `with cluster() as env:` sets `SLURM_CONF` for sbatch and its kin.

All of its files lie in a temporary folder, and its three daemons are stopped at the end.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import debian

CONF = """
ClusterName=pixtok
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=300
MinJobAge=600
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=300 State=UP
PartitionName=high Nodes=localhost PriorityTier=2 PreemptMode=OFF State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here, after trying to install what it needs; None if there can be one."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch")
    if os.geteuid() != 0:
        return "Slurm's daemons run as root here, and this is another user"
    return debian.lacks(programs, "slurm-wlm", "munge")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which sbatch, squeue, scontrol … reach the cluster."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir(mode=0o755)
        folder.chmod(0o755)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        conf = folder / "slurm.conf"
        conf.write_text(CONF.format(folder=folder, host=socket.gethostname(), ports=_free_ports(2)))
        env = os.environ | {"SLURM_CONF": str(conf)}

        def start(*command: str) -> None:
            log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
            stack.callback(stop, process)

        munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "log", "pid", "seed")]
        start("munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *munge)
        start("slurmctld", "-D", "-f", str(conf))
        start("slurmd", "-D", "-f", str(conf), "-N", "localhost")
        deadline = time.monotonic() + 60
        while (state := _output(["sinfo", "-h", "-p", "low", "-o", "%t"], env)) != "idle":
            if time.monotonic() > deadline:
                logs = "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in folder.glob("*.log"))
                raise RuntimeError(f"the node is {state!r} after 60 s\n{logs}")
            time.sleep(0.2)
        try:
            yield env
        finally:
            _output(["scancel", "--user=root"], env)
            _output(["scancel", "--user=root", "--signal=KILL", "--full"], env)
            _kill_all_with(f"SLURM_CONF={conf}")


def stop(process: subprocess.Popen) -> None:
    """Ask a daemon to end, and make it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill_all_with(setting: str) -> None:
    """Jobs, and the daemons that watch over them and would wait for the controller: their environment tells them."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (folder / "comm").read_text().strip()
            ours = setting.encode() in (folder / "environ").read_bytes().split(b"\0")
            if ours and name not in ("munged", "slurmctld", "slurmd", "slurmscriptd"):
                os.kill(int(folder.name), signal.SIGKILL)


def _output(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.strip()
