"""The batch script, run by bash with stand-ins for Slurm's programs."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.job import Job, job_of
from launch.slurm_options import Options, container_of, parse_time, secret_files
from launch.slurm_script import script_of
from vitscale.errors import UserError

TRAIN = ("train", "--config", "configs/clothing.py", "--workdir", "/runs/c")
GPUS = Options(nodes=2, gpus_per_node="h100:8", gpu_type="h100", cpus_per_process=12, time="1-00")


def script(options=GPUS, command=TRAIN, folder=Path("/runs/c/launch/id"), **environment):
    job = replace(job_of(command, "slurm"), environment=environment)
    return script_of(job, options, folder, Path("/code"))


@pytest.fixture
def cluster(tmp_path):
    """`run(script, codes)`: the script under bash, where the runs end with `codes` one after the other.

    Gives its exit code, what it calls, and what it prints.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    calls = tmp_path / "calls"
    stand_ins = {
        "srun": 'printf "%s\\0" srun "$@" >>"$CALLS"; env -0 >"$CALLS.env"; eval "$DURING"; '
        'read -r code rest <<<"$(cat "$CALLS.codes")"; echo "$rest" >"$CALLS.codes"; exit "$code"',
        "scontrol": 'printf "%s\\0" scontrol "$@" >>"$CALLS"; exit "${REQUEUE:-0}"',
        "sleep": 'printf "%s\\0" sleep "$@" >>"$CALLS"',
    }
    for name, text in stand_ins.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)

    def run(text, codes=(0,), **variables):
        calls.write_bytes(b"")
        Path(f"{calls}.codes").write_text(" ".join(map(str, codes)))
        given = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "HOME": str(tmp_path),
            "DURING": "",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
        }
        done = subprocess.run(
            ["bash", "-c", text], env=given | variables, capture_output=True, text=True, timeout=60
        )
        assert not done.stderr, done.stderr
        return done.returncode, calls.read_bytes().decode().split("\0")[:-1], done.stdout

    return run


def programs_of(calls):
    """`srun sleep 1 srun scontrol requeue 7`, without srun's words."""
    text = " ".join(calls)
    return [
        part
        for word in text.split(" ")
        for part in [word]
        if word in ("srun", "sleep", "scontrol", "requeue") or word.isdigit()
    ]


def test_what_is_asked_of_slurm():
    headers = [line for line in script().splitlines() if line.startswith("#SBATCH")]
    assert headers == [
        "#SBATCH --job-name=c",
        "#SBATCH --comment=vitscale-launch=id",
        "#SBATCH --time=1-00",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=12",
        "#SBATCH --gpus-per-node=h100:8",
        "#SBATCH --chdir=/code",
        "#SBATCH --output=/runs/c/launch/id/batch.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --export=NONE",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
    ]


def test_options_reach_their_lines():
    options = replace(
        GPUS,
        processes_per_node=None,
        cpus_per_process=None,
        partition="spot",
        account="a",
        qos="low",
        constraint="a100&nvme",
        extra=("--mem=0",),
        requeues=0,
        grace=0,
    )
    text = script(options)
    for line in ("ntasks-per-node=8", "partition=spot", "account=a", "qos=low", "exclusive"):
        assert f"#SBATCH --{line}\n" in text
    assert '#SBATCH --constraint="a100&nvme"\n#SBATCH' in text
    assert "#SBATCH --no-requeue\n#SBATCH --mem=0\n" in text
    assert "--signal" not in text
    assert "--ntasks=16" in text
    assert "--cpu-bind=none" in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(
    "options",
    [
        GPUS,
        replace(GPUS, secrets={"HF_TOKEN": "hf"}, setup=("module load cuda",), restarts=3),
        replace(GPUS, container=container_of("nvcr.io#nvidia/jax:25.10", None, ["/data:/data"])),
        replace(GPUS, container=container_of("/images/my jax.sif", None, []), requeues=0),
    ],
)
def test_shellcheck_finds_nothing(options, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(script(options, folder=Path("/runs/it's 100% %j"), FLAGS="a 'b'"))
    done = subprocess.run(
        ["shellcheck", "--severity=style", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


WORDS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4)


def test_every_word_and_variable_arrives_as_it_is(cluster, tmp_path):
    folder = tmp_path / "it's 100% $HOME"
    folder.mkdir()

    @settings(max_examples=15, deadline=None)
    @given(words=WORDS, value=st.text(st.characters(exclude_characters="\0", codec="utf-8")))
    def check(words, value):
        job = Job("n", ("doctor", *words), environment={"MINE": value})
        text = script_of(job, Options(python="/py thon"), folder, Path("/co de"))
        code, calls, _ = cluster(text)
        assert code == 0
        assert calls[calls.index("/py thon") :] == ["/py thon", "-m", "vitscale.cli", *job.command]
        seen = Path(tmp_path / "calls.env").read_bytes().decode().split("\0")
        assert f"MINE={value}" in seen
        assert f"--output={folder}/task-%t.log".replace("100%", "100%%") in calls

    check()


@pytest.mark.parametrize(
    ("codes", "restarts", "expected", "ends"),
    [
        ([0], 0, ["srun"], 0),
        # The user's mistake is not tried again, and not queued again.
        ([2], 5, ["srun"], 2),
        ([130], 5, ["srun"], 130),
        ([76], 0, ["srun"], 76),
        ([76, 137, 0], 2, ["srun", "sleep", "1", "srun", "sleep", "2", "srun"], 0),
        ([1, 1, 1], 2, ["srun", "sleep", "1", "srun", "sleep", "2", "srun"], 1),
        # Stopped and saved, or stopped before it could listen: queued again, without a code since it is not over.
        ([75], 0, ["srun", "scontrol", "requeue", "7", "sleep", "60"], None),
        ([143], 0, ["srun", "scontrol", "requeue", "7", "sleep", "60"], None),
        ([1, 75], 1, ["srun", "sleep", "1", "srun", "scontrol", "requeue", "7", "sleep", "60"], None),
    ],
)  # fmt: skip
def test_what_follows_an_exit_code(cluster, tmp_path, codes, restarts, expected, ends):
    text = script(Options(restarts=restarts), folder=tmp_path)
    code, calls, said = cluster(text, codes)
    assert programs_of(calls) == expected, said
    assert code == (75 if ends is None else ends)
    written = tmp_path / "exit-code"
    assert (int(written.read_text()) if written.exists() else None) == ends


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_RESTART_COUNT": "3"},  # often enough
        {"DURING": 'touch "$HOME/stop"'},  # somebody asked for its end
        {"DURING": "kill -TERM $PPID; command sleep 0.2"},  # Slurm ends the job: scancel
        {"REQUEUE": "1"},  # Slurm refuses
    ],
)
def test_a_stopped_run_is_not_queued_again(cluster, tmp_path, variables):
    text = script(Options(requeues=3), folder=tmp_path)
    code, calls, said = cluster(text, [75], **variables)
    assert code == 75, said
    assert (tmp_path / "exit-code").read_text() == "75\n"
    assert ("scontrol" in calls) == ("REQUEUE" in variables)


def test_a_run_that_was_stopped_in_the_queue_does_not_start(cluster, tmp_path):
    (tmp_path / "stop").touch()
    code, calls, _ = cluster(script(Options(), folder=tmp_path))
    assert (code, calls) == (75, [])


def test_a_secret_is_read_on_the_node_and_not_in_the_script(cluster, tmp_path):
    options = Options(secrets={"HF_TOKEN": "hf", "WANDB_API_KEY": "team/wandb"})
    text = script(options, folder=tmp_path)
    code, calls, said = cluster(f"exec 2>/dev/null\n{text}")
    assert (code, calls) == (2, []), said  # no such file
    folder = tmp_path / ".vitscale" / "secrets" / "team"
    folder.mkdir(parents=True)
    (folder / "wandb").write_text("o p'en\n")
    (folder.parent / "hf").write_text("sesame\n")
    code, _, said = cluster(text)
    assert code == 0
    seen = (tmp_path / "calls.env").read_bytes().split(b"\0")
    assert {b"HF_TOKEN=sesame", b"WANDB_API_KEY=o p'en"} <= set(seen)
    assert "sesame" not in text + said


def test_secret_files_are_there_and_private(tmp_path):
    folder = tmp_path / ".vitscale" / "secrets"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="there is no file"):
        secret_files({"HF_TOKEN": "hf"}, tmp_path)
    (folder / "hf").write_text("sesame")
    (folder / "hf").chmod(0o640)
    with pytest.raises(UserError, match=f"chmod 600 {folder}/hf"):
        secret_files({"HF_TOKEN": "hf"}, tmp_path)
    (folder / "hf").chmod(0o600)
    assert secret_files({"HF_TOKEN": "hf"}, tmp_path) == {"HF_TOKEN": folder / "hf"}
    with pytest.raises(UserError, match="is outside of"):
        secret_files({"HF_TOKEN": "a/../../../x"}, tmp_path)


def test_secrets_in_the_command_are_refused(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "sesame-open")
    for job, options in (
        (Job("n", ("train", "--config.a=sesame-open")), Options()),
        (Job("n", ("train",), environment={"A": "sesame-open"}), Options()),
        (Job("n", ("train",), environment={"HF_TOKEN": "x"}), Options()),
        (Job("n", ("train",)), Options(setup=("export A=sesame-open",))),
        (Job("n", ("train",)), Options(setup=("export WANDB_API_KEY=abc",))),
    ):
        with pytest.raises(UserError, match="secret") as refused:
            options.check(job)
        assert "sesame-open" not in str(refused.value)


def test_containers_run_the_same_command(cluster, tmp_path):
    folder = tmp_path / "runs" / "launch" / "id"
    folder.mkdir(parents=True)
    train = (*TRAIN[:3], "--workdir", str(tmp_path / "runs"))
    pyxis = container_of("nvcr.io#nvidia/jax:25.10", None, ["/data:/data:ro"])
    _, calls, _ = cluster(
        script(replace(GPUS, container=pyxis, python="python"), train, folder), [0, 0]
    )
    words = calls[len(calls) - calls[::-1].index("srun") - 1 :]
    mounts = f"/code:/code,{folder}:{folder},{tmp_path}/runs:{tmp_path}/runs,/data:/data:ro"
    assert {
        "--container-image=nvcr.io#nvidia/jax:25.10",
        f"--container-mounts={mounts}",
        "--container-workdir=/code",
    } <= set(words)
    assert words[-len(train) - 3 :] == ["python", "-m", "vitscale.cli", *train]
    apptainer = container_of("/images/jax.sif", None, [])
    _, calls, _ = cluster(script(replace(GPUS, container=apptainer), train, folder), [0, 0])
    start = calls.index("apptainer", calls.index("--ntasks=2"))
    assert calls[start : start + 3] == ["apptainer", "exec", "--nv"]
    assert (folder / "packages.txt").exists()


def test_flags_of_the_gpus_and_yours():
    text = script(GPUS, XLA_FLAGS="--xla_gpu_autotune_level=2")
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in text
    assert "--xla_gpu_autotune_level=2'" in text
    assert "export NCCL_IB_TIMEOUT=22\n" in text  # two hosts
    assert "JAX_PLATFORMS" not in text
    text = script(Options(devices=4))
    assert "export JAX_PLATFORMS=cpu\n" in text
    assert "export XLA_FLAGS=--xla_force_host_platform_device_count=4\n" in text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("1-12", 129_600),
        ("0-1:30", 5400),
        ("7-0:0:1", 604_801),
    ],
)
def test_times_of_slurm(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time": "a day"}, "no time of Slurm"),
        ({"time": "1"}, "no longer than --grace"),
        ({"nodes": 0}, "at least 1"),
        ({"restarts": -1}, "at least 0"),
        ({"gpus_per_node": "many"}, "like h100:8"),
        ({"gpus_per_node": "8", "processes_per_node": 3}, "do not divide"),
        ({"processes_per_node": None}, "needs --gpus-per-node"),
        ({"gpu_type": "h100"}, "needs --gpus-per-node"),
        ({"gpu_type": "v5e", "gpus_per_node": "8"}, "h100, h200"),
        ({"devices": 4, "gpus_per_node": "8"}, "fake ones"),
        ({"extra": ("mem=1",)}, "no option of sbatch"),
        ({"extra": ("--mem=1\n#SBATCH --wrap=x",)}, "no option of sbatch"),
        ({"extra": ("--output=x",)}, "itself"),
        ({"extra": ("-N2",)}, "itself"),
        # Not the first of a line, the beginning of a name, behind a short option without a value, in quotes.
        ({"extra": ("--mem=64G --comment=other",)}, "--comment is set by"),
        ({"extra": ("--comm=x",)}, "--comment is set by"),
        ({"extra": ("--expor=ALL",)}, "--export is set by"),
        ({"extra": ("-HJname",)}, "-J is set by"),
        ({"extra": ("--mem=1 '--expor't=ALL",)}, "--export is set by"),
        ({"extra": ("--mem=1 -- x",)}, "itself"),
        ({"extra": ("--mem=1 '",)}, "no option of sbatch"),
        ({"extra": ("--mem=1\\ --comment=x",)}, "no option of sbatch"),
        ({"gpus_per_node": "h100:8", "gpu_type": "h200"}, "are different GPUs"),
        ({"setup": ("a\nb",)}, "one line"),
    ],
)
def test_nonsense_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        Options(**changes)


def test_other_options_of_sbatch_pass():
    extra = ("--mem=64G", "-w node1 --nice=-5", "--mail-type=END", "--time-min=10", "-Hx node2")
    assert Options(extra=extra).extra == extra


@pytest.mark.parametrize("value", ['a"b', "a\nb", "a\\b", ""])
def test_what_sbatch_cannot_read_is_refused(value):
    with pytest.raises(UserError, match="cannot be written for sbatch"):
        script(replace(GPUS, partition=value))


@pytest.mark.parametrize(
    ("image", "runtime", "mounts"),
    [(None, None, ["/a:/b"]), (None, "pyxis", []), ("i.sqsh", None, ["/a"]), ("i", None, ["/a:/b,/c:/d"])],
)  # fmt: skip
def test_wrong_containers_are_refused(image, runtime, mounts):
    with pytest.raises(UserError, match="--container"):
        container_of(image, runtime, mounts)


def test_what_does_not_fit_is_refused_before_anything_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr("launch.slurm_options.check_plan", lambda *a, **k: asked.append((a, k)))
    GPUS.plan(job_of(TRAIN, "slurm"), skip=False)
    assert asked == [((TRAIN, "h100:2x8"), {"skip": False})]
    # The type that Slurm is asked for is stated as well.
    for stated, chip in (
        ("h100:8", "h100"),
        ("nvidia_H200_141GB:8", "h200"),
        ("nvidia_a100-sxm4-80gb:8", "a100-80gb"),
        ("a100_40gb:8", "a100-40gb"),
    ):
        replace(GPUS, gpu_type=None, gpus_per_node=stated).plan(job_of(TRAIN, "slurm"), skip=False)
        assert asked[-1] == ((TRAIN, f"{chip}:2x8"), {"skip": False})
    for stated in ("8", "a100:8"):
        unknown = replace(GPUS, gpu_type=None, gpus_per_node=stated)
        assert "--gpu-type" in unknown.plan(job_of(TRAIN, "slurm"), skip=False)
    assert len(asked) == 5
