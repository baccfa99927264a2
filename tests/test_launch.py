"""The scripts of launch/, with stand-ins for a cluster's commands."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.fixture
def cluster(tmp_path):
    """Makes commands that note how they were called; returns (make, run)."""
    noted = tmp_path / "noted"

    def make(name, lines):
        path = tmp_path / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {noted}\n{lines}\n')
        path.chmod(0o755)

    def run(script, *arguments, **settings):
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | settings
        done = subprocess.run(
            [ROOT / "launch" / script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, noted.read_text().splitlines() if noted.exists() else [], done

    return make, run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    beside = str(Path(sys.executable).parent)
    command = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    done = subprocess.run([command, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_without_arguments_says_how_it_is_used(cluster, script):
    status, noted, done = cluster[1](script.name, TPU="t", ZONE="z")
    assert status != 0 and not noted
    assert "usage: " in done.stderr and "CONFIG WORKDIR" in done.stderr


def test_one_process_gets_the_command_as_it_is(cluster):
    make, run = cluster
    make("python", "exit 7")
    status, noted, _ = run("local.sh", "demo", "runs/a b", "--config.seed=1", PYTHON="python")
    assert status == 7
    assert noted == ["python -m lmseg_jax.main --config demo --workdir runs/a b --config.seed=1"]


def test_of_several_processes_the_worst_status_counts(cluster):
    make, run = cluster
    make("python", '[[ "$*" == *"--process 1"* ]] && exit 3 || exit 0')
    status, noted, _ = run("local.sh", "demo", "w", PYTHON="python", PROCESSES="3", PORT="5")
    assert status == 3
    common = "python -m lmseg_jax.main --config demo --workdir w --coordinator localhost:5"
    assert sorted(noted) == [
        f"{common} --processes 3 --process {process} --heartbeat 40" for process in range(3)
    ]


def until(condition):
    """Waits for it, half a minute at most."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("signals", [1, 3])
def test_sigterm_reaches_all_processes_and_all_are_waited_for(cluster, tmp_path, signals):
    noted = tmp_path / "noted"
    saves = f'trap "sleep 0.5; echo saved >> {noted}; exit 130" TERM'
    cluster[0]("python", f"{saves}\necho ready >> {noted}\nwhile :; do sleep 0.05; done")
    script = subprocess.Popen(
        [ROOT / "launch" / "local.sh", "demo", "w"],
        env=os.environ | {"PYTHON": str(tmp_path / "python"), "PROCESSES": "3"},
    )
    until(lambda: noted.exists() and noted.read_text().count("ready") == 3)
    for _ in range(signals):
        script.terminate()
        time.sleep(0.1)
    assert script.wait(30) == 130
    assert noted.read_text().splitlines()[6:] == ["saved"] * 3


def test_no_process_starts_after_a_signal(cluster):
    make, run = cluster
    make("python", '[[ "$*" == *"--process 0 "* ]] && kill -TERM $PPID; sleep 0.2; exit 130')
    status, noted, _ = run("local.sh", "demo", "w", PYTHON="python", PROCESSES="300")
    assert status in (130, 143) and len(noted) < 150  # a few start before it comes


def test_a_process_that_fails_is_named(cluster):
    make, run = cluster
    make("python", '[[ "$*" == *"--process 1"* ]] && kill -KILL $$ || exit 130')
    status, _, done = run("local.sh", "demo", "w", PYTHON="python", PROCESSES="3")
    assert status == 137
    ends = [line for line in done.stderr.splitlines() if "ended" in line]
    assert ends == ["process 1 ended with status 137"]


@pytest.fixture
def submit(cluster):
    """Runs slurm.sh as Slurm does; returns its status and the calls of Slurm's commands."""
    make, run = cluster
    make("scontrol", "exit 0")
    make("scancel", "exit 0")
    make("sleep", 'exec "$(PATH=${PATH#*:} command -v sleep)" 0.05')

    def submitted(srun, **settings):
        make("srun", srun)
        settings = {"SLURM_JOB_ID": "12", "PYTHON": "python"} | settings
        status, noted, _ = run("slurm.sh", "demo", "w", **settings)
        return status, [line for line in noted if line.startswith("s") and "sleep" not in line]

    return submitted


# 130 and 143 untold: at a preemption with a grace time Slurm sends SIGTERM to the tasks alone
@pytest.mark.parametrize(
    ("ended", "queues"),
    [(0, False), (1, False), (2, False), (137, False), (130, True), (143, True)],
)
def test_a_slurm_job_queues_again_if_its_tasks_were_asked_to_stop(submit, ended, queues):
    status, noted = submit(f"exit {ended}")
    assert status == ended
    asked = "srun --kill-on-bad-exit=0 python -m lmseg_jax.main --distributed --heartbeat 40"
    assert noted == [f"{asked} --config demo --workdir w", *["scontrol requeue 12"] * queues]


@pytest.mark.parametrize(("ended", "queues"), [(130, True), (143, True), (1, True), (0, False)])
def test_a_slurm_job_whose_time_is_up_queues_again_unless_it_is_done(submit, ended, queues):
    status, noted = submit(f"kill -USR1 $PPID; sleep 1; exit {ended}")
    assert status == ended
    told = ["scancel --signal=TERM 12"]  # srun itself is told nothing: it would kill its tasks
    assert noted[1:] == told + ["scontrol requeue 12"] * queues


def test_a_slurm_job_queues_again_though_its_evaluation_does_not_end(cluster, submit, tmp_path):
    step = tmp_path / "step"
    cluster[0]("scontrol", f"kill $(<{step})")  # a requeue ends what the job runs
    evaluates = f"echo $$ > {step}; kill -USR1 $PPID; while :; do sleep 1; done"
    status, noted = submit(evaluates, GRACE="1")
    assert status == 130
    assert noted[1:] == ["scancel --signal=TERM 12", "scontrol requeue 12"]


@pytest.mark.parametrize("late", ["", "kill -USR1 $PPID; sleep 1;"])
def test_a_slurm_job_that_was_cancelled_does_not_queue_again(submit, late):
    status, noted = submit(f"{late} kill -TERM $PPID; sleep 1; exit 130")
    assert status == 130
    assert noted[1:] == ["scancel --signal=TERM 12"] * (2 if late else 1)


# A stand-in for gcloud; n is how often it was called so, this time included.
GCLOUD = """n=$(grep -c " $4 " {noted})
if [[ $4 == ssh ]]; then
  {ssh}
fi
{describe}"""


@pytest.fixture
def pod(cluster, tmp_path):
    """Runs tpu_pod.sh; returns its status, the calls of gcloud in short, and all that was noted."""
    make, run = cluster

    def ran(ssh, describe="echo READY", **settings):
        make("gcloud", GCLOUD.format(noted=tmp_path / "noted", ssh=ssh, describe=describe))
        settings = {"TPU": "t", "ZONE": "z", "PAUSE": "0", "PYTHON": "python"} | settings
        status, noted, done = run("tpu_pod.sh", "demo", "/w", **settings)
        short = [line.split()[4] for line in noted if line.startswith("gcloud")]
        return status, short, noted, done

    return ran


def test_a_tpu_slice_that_was_taken_away_is_waited_for(pod):
    away = "((n == 2 || n == 3)) && echo PREEMPTED || echo READY"
    status, short, noted, _ = pod("((n < 2)) && exit 255; exit 0", away)
    assert status == 0
    assert short == ["describe", "ssh", "describe", "describe", "describe", "ssh"]
    train = "python -m lmseg_jax.main --distributed --heartbeat 40 --config demo --workdir /w "
    asked = "gcloud compute tpus tpu-vm ssh t --zone z --worker all --command cd lmseg_jax && "
    assert noted[1] == noted[-1] == asked + train


def test_a_wrong_name_of_a_tpu_slice_ends_with_what_gcloud_says(pod):
    status, short, _, done = pod("exit 0", "echo NOT_FOUND >&2; exit 1")
    assert status == 1 and short == ["describe"]
    assert done.stderr == "NOT_FOUND\n"


def test_an_error_of_the_user_ends_the_work_on_a_tpu_slice(pod):
    status, short, _, _ = pod("exit 2")
    assert status == 2 and short == ["describe", "ssh"]


def test_a_run_that_fails_on_a_tpu_slice_is_tried_again_but_not_for_ever(cluster, pod):
    cluster[0]("sleep", "exit 0")
    status, short, noted, _ = pod("exit 127", TRIES="3", PAUSE="7")
    assert status == 127
    assert short == ["describe", *["ssh", "describe"] * 3]
    assert noted[1:3] == [noted[1], "sleep 7"]  # before the slice is looked at


def test_failures_on_a_tpu_slice_count_anew_when_it_had_been_away(pod):
    # describe: before the run, after each failure; the slice is away after the second
    away = "((n == 3)) && echo PREEMPTED || echo READY"
    status, short, _, _ = pod("exit 127", away, TRIES="3")
    assert status == 127 and short.count("ssh") == 2 + 3


def test_a_run_that_was_asked_to_stop_goes_on_though_its_slice_is_well(pod):
    status, short, _, _ = pod("((n < 4)) && exit 130; exit 0", TRIES="2")
    assert status == 0
    assert short == ["describe", *["ssh", "describe"] * 3, "ssh"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_work_on_a_tpu_slice_and_all_of_gcloud(cluster, tmp_path, number):
    started = tmp_path / "started"
    child = f"bash -c 'echo $$ > {started}.part; mv {started}.part {started}; exec sleep 60'"
    gcloud = GCLOUD.format(noted=tmp_path / "noted", ssh=f"{child}; exit 0", describe="echo READY")
    cluster[0]("gcloud", gcloud)
    script = subprocess.Popen(
        [ROOT / "launch" / "tpu_pod.sh", "demo", "/w"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU": "t", "ZONE": "z"},
    )
    until(started.exists)
    script.send_signal(number)
    assert script.wait(30) == 130
    until(lambda: not Path("/proc", started.read_text().strip()).exists())
