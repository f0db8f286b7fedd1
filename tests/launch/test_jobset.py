"""The JobSets are valid, unknown fields included, and hold what they were asked for."""

import copy
import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMMON = "--name tiny --image there/pixtok:1 --bucket 12".split()
OPTIONS = {
    "tpu": [*COMMON, *"--accelerator tpu-v6e-slice --topology 4x4 --hosts 4".split()],
    "gpu": [*COMMON, *"--accelerator nvidia-h100-80gb --hosts 2".split()],
}
ARGS = ["experiments/demo.py", "--data.path", '/data/it\'s "mine"', "--run_dir", r"gs://b/$(HOME)/\n: #{a} & ${NAME}"]
MORE = ["--slices", "2", "--service_account", "me"]


def jobset(variant: str, *args: str, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    command = [ROOT / "launch" / "jobset.sh", *args, variant, *OPTIONS[variant], *MORE, *ARGS]
    return subprocess.run(command, capture_output=True, text=True, check=check, **kwargs)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(params=OPTIONS)
def rendered(request) -> dict:
    return yaml.safe_load(jobset(request.param, "--dry-run").stdout)


def container(rendered: dict) -> dict:
    (job,) = rendered["spec"]["replicatedJobs"]
    (only,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return only


def test_a_jobset_is_valid(rendered, validator):
    validator.validate(rendered)


@pytest.mark.parametrize("where", ["JobSet", "policy", "job", "pod", "container"])
def test_the_schema_refuses_what_it_does_not_know(where, validator):
    rendered = yaml.safe_load(jobset("tpu", "--dry-run").stdout)
    job = rendered["spec"]["replicatedJobs"][0]["template"]["spec"]
    places = {
        "JobSet": rendered["spec"],
        "policy": rendered["spec"]["failurePolicy"],
        "job": job,
        "pod": job["template"]["spec"],
        "container": container(rendered),
    }
    places[where]["restarts"] = 1
    with pytest.raises(jsonschema.ValidationError, match="restarts"):
        validator.validate(rendered)


def test_arguments_survive(rendered):
    """What Kubernetes makes of them: $$( is a plain $(."""
    assert [word.replace("$$(", "$(") for word in container(rendered)["args"]] == ARGS
    assert "$$(HOME)" in container(rendered)["args"][-1]
    assert container(rendered)["command"] == ["pixtok", "train"]


def test_nothing_is_left_to_fill_in(rendered):
    without_args = copy.deepcopy(rendered)
    container(without_args)["args"] = []
    assert "${" not in json.dumps(without_args)


def test_a_job_knows_its_processes(rendered):
    env = {entry["name"]: entry for entry in container(rendered)["env"]}
    (job,) = rendered["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    limits = container(rendered)["resources"]["limits"]
    assert spec["completionMode"] == "Indexed"
    if "google.com/tpu" in limits:
        assert env["PIXTOK_DISTRIBUTED"]["value"] == "1"
        assert (job["replicas"], spec["completions"], spec["parallelism"], limits["google.com/tpu"]) == (2, 4, 4, 4)
    else:
        # JobSet's names of pods: SET-JOB-INDEX-COMPLETION.SET.
        assert env["JAX_COORDINATOR_ADDRESS"]["value"] == f"tiny-{job['name']}-0-0.tiny:12345"
        assert env["JAX_NUM_PROCESSES"]["value"] == "2"
        assert (job["replicas"], spec["completions"], spec["parallelism"], limits["nvidia.com/gpu"]) == (1, 2, 2, 8)


def test_exit_codes_are_answered_as_the_runbook_says(rendered):
    (job,) = rendered["spec"]["replicatedJobs"]
    spec, policy = job["template"]["spec"], rendered["spec"]["failurePolicy"]
    rules = {rule["action"]: rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"]}
    assert rules["Ignore"]["values"] == [75]
    assert rules["FailJob"]["values"] == [1, 2, 3, 5, 130]
    assert {rule["containerName"] for rule in rules.values()} == {container(rendered)["name"]}
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert (spec["backoffLimit"], policy["maxRestarts"]) == (0, 3)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy asks for it


def test_kubectl_gets_what_a_dry_run_prints(programs):
    jobset("gpu", env=programs.env)
    (call,) = programs.calls("kubectl")
    assert call["args"] == ["apply", "-f", "-"]
    assert call["stdin"] == jobset("gpu", "--dry-run", env=programs.env).stdout
    command = [ROOT / "launch" / "jobset.sh", "gpu", *OPTIONS["gpu"], *MORE, *ARGS, "--dry-run"]
    last = subprocess.run(command, capture_output=True, text=True, check=True, env=programs.env).stdout
    assert last == call["stdin"], "wherever it stands"
    assert len(programs.calls("kubectl")) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--name", "Not-A-Name"], "--name must be small letters"),
        (["--hosts", "four"], "--hosts wants a number"),
        (["--image", 'a"b'], "--image cannot be"),
        (["--colour", "red"], "unknown option --colour"),
    ],
)
def test_bad_options_are_one_line(wrong, message):
    command = [ROOT / "launch" / "jobset.sh", "--dry-run", "gpu", *OPTIONS["gpu"], *wrong, *ARGS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        (["--hosts", "3"], ARGS, "4x4 is 16 chips, and --hosts times --chips 12"),
        (["--topology", "large"], ARGS, "--topology must be like 4x4"),
        ([], ARGS[:-2], "--run_dir gs://BUCKET/DIR is missing"),
    ],
)
def test_what_cannot_run_is_not_applied(options, args, message, programs):
    command = [ROOT / "launch" / "jobset.sh", "tpu", *OPTIONS["tpu"], *options, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=programs.env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert programs.calls() == []
