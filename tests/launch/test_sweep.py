"""A sweep's decisions, at a place without processes."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch.sweep import LOG_WORDS, Status, Sweep, table_of
from launch.sweep_plan import add_runs, check_variants, load_sweep, plan_runs, select, where_of
from launch.sweep_state import load_state, sweep_lock
from launch.trained import config_differences, last_step, why_unfinished
from vitscale.config_loading import to_json, to_plain
from vitscale.errors import UserError
from vitscale.models.weights import find_step


@dataclass
class Place:
    """Jobs end at the next look, with the next of their codes; a training that ends well leaves its files."""

    codes: dict[str, list]
    config: dict
    outlives: bool = True
    sees_workdirs: bool = True
    name_suffix: str = ""
    poll_seconds: float = 0.0
    log_words: str = LOG_WORDS
    started: list[str] = field(default_factory=list)
    most: int = 0
    going: dict[str, Path] = field(default_factory=dict)

    def check(self, job):
        if job.name.endswith("too-big"):
            raise UserError("does not fit.")

    def start(self, job, folder, known):
        self.started.append(job.name.removeprefix("root-"))
        handle = str(len(self.started))
        self.going[handle] = job
        self.most = max(self.most, len(self.going))
        return handle

    def poll(self, handle, folder):
        job = self.going.pop(handle, None)
        if job is None:
            return Status(running=False)
        left = self.codes.get(job.name.removeprefix("root-"), [])
        code = left.pop(0) if left else 0
        if code == 0 and job.command[0] == "train":
            leave(Path(job.workdir), self.config)
        return Status(running=False, code=code, words="said so" if code else "")

    def cancel(self, handle, folder): ...


def leave(workdir, config, step=12):
    (workdir / "checkpoints" / str(step) / "meta").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config))


@pytest.fixture
def config(make_config, tmp_path):
    """(tree, a command that trains it)"""
    tree = json.loads(to_json(make_config()))
    file = tmp_path / "config.py"
    file.write_text(
        f"import json\ndef get_config():\n    return json.loads({json.dumps(tree)!r})\n"
    )
    return tree, ["train", "--config", str(file), "--workdir", str(tmp_path / "root")]


def sweep(config, pairs, codes=None, place=None, redo=False, then="", **options):
    tree, command = config
    planned = plan(pairs, command, then=then)
    root = Path(command[-1])
    with sweep_lock(root):
        state = load_state(root, command)
        add_runs(state, planned, redo=redo)
        place = place or Place(codes or {}, tree)
        sweep = Sweep(state, planned, place, **options)
        sweep.run()
    states = {name: run["state"] for name, run in read(root)["runs"].items()}
    return place, states


def plan(pairs, command, **options):
    return plan_runs(check_variants(pairs, "x.py"), command, where_of(command, "local"), **options)


def read(root):
    return json.loads((root / "sweep.json").read_text())


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("launch.sweep.BACK_OFF", 0.0)


PAIRS = [(name, {"data.root": f"/data/{name}"}) for name in ("a", "b", "c")]


def test_every_run_once_and_so_many_at_a_time(config):
    pairs = [(name, {"log.every_steps": 1}) for name, _ in PAIRS]
    place, states = sweep(config, pairs, concurrency=2)
    assert (place.started, place.most) == (["a", "b", "c"], 2)
    assert set(states.values()) == {"finished"}
    place, states = sweep(config, pairs)
    assert place.started == []
    assert set(states.values()) == {"finished"}
    # Without the state, by what the runs have left.
    (Path(config[1][-1]) / "sweep.json").unlink()
    place, states = sweep(config, pairs)
    assert place.started == []


def test_the_failed_are_tried_again_and_the_mistaken_not(config):
    codes = {"a": [1, 0], "b": [2, 0], "c": [1, 76, None, 0]}
    pairs = [(name, {}) for name in codes]
    place, states = sweep(config, pairs, codes, retries=2)
    assert states == {"a": "finished", "b": "failed", "c": "failed"}
    assert sorted(place.started) == ["a", "a", "b", "c", "c", "c"]
    runs = read(Path(config[1][-1]))["runs"]
    assert runs["b"]["complaint"] == "ended with code 2 (said so): it has not started"
    assert runs["c"]["complaint"].startswith("ended, nobody knows how")
    # Another start tries them again, and leaves the finished one alone.
    place, states = sweep(config, pairs)
    assert sorted(place.started) == ["b", "c"]
    assert set(states.values()) == {"finished"}


class Saving(Place):
    """A job that ends with 75 has saved a step more, but for the steps in `stuck`."""

    stuck = ()

    def poll(self, handle, folder):
        workdir = folder.parents[1]
        status = super().poll(handle, folder)
        if status.code == 75 and len(self.started) not in self.stuck:
            leave(workdir, self.config, step=len(self.started))
        return status


def test_stopped_and_saved_is_no_failure(config):
    place = Saving({"a": [75, 75, 75, 0]}, config[0])
    place, states = sweep(config, [("a", {})], place=place, retries=0)
    assert place.started == ["a"] * 4
    assert states == {"a": "finished"}


def test_stopped_again_and_again_without_a_step_is_a_failure(config):
    place = Saving({"a": [75] * 9}, config[0])
    place.stuck = (2, 4, 5, 6, 7, 8, 9)
    place, states = sweep(config, [("a", {})], place=place, retries=1)
    assert place.started == ["a"] * 4  # of which the first and the third got nearer
    assert states == {"a": "failed"}
    # What leaves no steps cannot show that it gets nearer.
    command = ["doctor", "--workdir", str(Path(config[1][-1]).with_name("other"))]
    place, states = sweep((config[0], command), [("a", {})], {"other-a": [75] * 3}, retries=1)
    assert (place.started, states) == (["other-a"] * 2, {"a": "failed"})


def test_pauses_stay_finite(config):
    state = load_state(Path(config[1][-1]), config[1])
    state.path.parent.mkdir()
    planned = plan([("a", {})], config[1])
    add_runs(state, planned, redo=False)
    state.runs["a"].attempts = 5000
    Sweep(state, planned, Place({}, config[0]), retries=1)._settle("a", state.runs["a"], "no")
    assert state.runs["a"].state == "waiting"


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
@pytest.mark.parametrize("then", ["", "eval"])
def test_a_start_that_was_interrupted_is_made_again(config, error, then):
    class Interrupted(Place):
        def start(self, job, folder, known):
            if job.name.endswith("-then") == bool(then):
                raise error("no")
            return super().start(job, folder, known)

    place = Interrupted({}, config[0])
    with pytest.raises(error):
        sweep(config, [("a", {})], place=place, then=then)
    place, states = sweep(config, [("a", {})], then=then)
    assert place.started == ["a-then" if then else "a"]
    assert states == {"a": "finished"}


def test_a_state_from_before_a_kill_without_a_job_is_started(config):
    root = Path(config[1][-1])
    sweep(config, [("a", {})], {"a": [2]})
    tree = read(root)
    tree["runs"]["a"]["state"] = "running"
    (root / "sweep.json").write_text(json.dumps(tree))
    place, states = sweep(config, [("a", {})])
    assert (place.started, states) == (["a"], {"a": "finished"})


def test_ending_well_is_not_enough(config):
    class Short(Place):
        def poll(self, handle, folder):
            status = super().poll(handle, folder)
            done = folder.parents[1] / "checkpoints" / "12"
            done.rename(done.with_name("8"))
            return status

    _, states = sweep(config, [("a", {})], place=Short({}, config[0]), retries=0)
    assert states == {"a": "failed"}
    run = read(Path(config[1][-1]))["runs"]["a"]
    assert run["complaint"] == "ended with code 0: its last checkpoint is of step 8 of 12"


def test_a_job_that_outlived_the_sweep_is_taken_over(config):
    tree, command = config
    root = Path(command[-1])
    place = Place({}, tree)
    planned = plan_runs(check_variants([("a", {})], "x.py"), command, where_of(command, "local"))
    state = load_state(root, command)
    root.mkdir()
    add_runs(state, planned, redo=False)
    first = Sweep(state, planned, place)
    first._begin()
    first._advance()  # and here the sweep is killed
    assert read(root)["runs"]["a"]["handle"] == "1"
    place, states = sweep(config, [("a", {})], place=place)
    assert place.started == ["a"]
    assert states == {"a": "finished"}


def test_then_follows_and_is_tried_by_itself(config):
    codes = {"a-then": [1, 0]}
    then = "eval --checkpoint {workdir} --output {workdir}/eval/{name}"
    place, states = sweep(config, [("a", {})], codes, then=then)
    assert place.started == ["a", "a-then", "a-then"]
    root = config[1][-1]
    done = read(Path(root))["runs"]["a"]["then"]
    assert done == f"eval --checkpoint {root}/a --output {root}/a/eval/a"
    place, _ = sweep(config, [("a", {})], then=then)
    assert place.started == []
    place, states = sweep(config, [("a", {})], then="eval --other")
    assert place.started == ["a-then"]
    assert states == {"a": "finished"}


def test_changed_overrides_are_an_error_unless_redone(config):
    tree, command = config
    sweep(config, [("a", {}), ("b", {"optim.lr": 0.003})])
    changed = [("a", {}), ("b", {"optim.lr": 0.1})]
    with pytest.raises(UserError, match=r"1 runs .*b: overrides of optim.lr.*--redo"):
        sweep(config, changed)
    tree["optim"]["lr"] = 0.1
    place, states = sweep(config, changed, redo=True, place=Place({}, tree))
    assert place.started == ["b"]
    assert states == {"a": "finished", "b": "finished"}
    assert (Path(command[-1]) / "b.old-1" / "checkpoints" / "12").is_dir()
    # The same by the folder alone, and when the command changes for all of them.
    (Path(command[-1]) / "sweep.json").unlink()
    with pytest.raises(UserError, match=r"b: a config with other optim.lr"):
        sweep(config, [("b", {"optim.lr": 0.2})])
    sweep(config, changed, place=Place({}, tree))
    with pytest.raises(UserError, match=r"2 runs .*the command's own overrides"):
        sweep((tree, [*command[:3], "--config.seed=5", *command[3:]]), changed)


def test_what_has_not_trained_may_change(config):
    sweep(config, [("a", {"optim.lr": 0.2})], {"a": [2]})
    _, states = sweep(config, [("a", {})])
    assert states == {"a": "finished"}
    assert read(Path(config[1][-1]))["runs"]["a"]["overrides"] == {}


def test_a_run_that_left_the_file_keeps_its_state(config):
    sweep(config, [("a", {}), ("b", {})])
    place, states = sweep(config, [("b", {}), ("c", {})])
    assert place.started == ["c"]
    assert list(states) == ["a", "b", "c"]


def test_words_of_a_run(config):
    _, command = config
    pairs = [
        (
            "a",
            {
                "--config": command[2],
                "optim.lr": 1e-3,
                "only_tasks": ("shade",),
                "data.root": "x y",
            },
        )
    ]
    command = [*command, "--config.init.checkpoint=../{name}"]
    (run,) = plan_runs(
        check_variants(pairs, "x.py"), command, where_of(command, "slurm", name="s")
    ).values()
    assert run.job.name == "s-a"
    assert list(run.job.command) == [
        *("train", "--config.init.checkpoint=../a", "--workdir", str(run.workdir)),
        *("--config", command[2], "--config.optim.lr=0.001"),
        *("--config.only_tasks=['shade']", "--config.data.root=x y"),
    ]
    assert run.config["only_tasks"] == ["shade"]
    assert run.changed_keys == ["optim.lr", "only_tasks", "data.root"]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "gave no runs"),
        (["ab"], "must give"),
        ([("a", None)], "must give"),
        ([("../a", {})], "is no name for local"),
        ([("a", {}), ("A", {})], "two runs are called"),
        ([("a", {"--workdir": "x"})], "not --workdir"),
        ([("a", {"x": object()})], "no plain values"),
    ],
)
def test_what_is_no_sweep(pairs, words):
    with pytest.raises(UserError, match=words):
        check_variants(pairs, "x.py")


def test_mistakes_are_found_before_anything_starts(config, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"run b: unknown config key 'depht'.*did you mean 'depth'"):
        sweep(config, [("a", {}), ("b", {"model.depht": 1})])
    with pytest.raises(UserError, match=r"run too-big: does not fit"):
        sweep(config, [("a", {}), ("too-big", {})])
    with pytest.raises(UserError, match="needs --workdir"):
        sweep((config[0], config[1][:3]), PAIRS)
    with pytest.raises(UserError, match="must be a folder here"):
        where_of(["train", "--workdir", "gs://b/x"], "local")
    monkeypatch.setenv("MY_TOKEN", "hush-hush")
    with pytest.raises(UserError, match="has the value of your MY_TOKEN"):
        sweep((config[0], [*config[1][:1], "--x=hush-hush", *config[1][1:]]), PAIRS)
    for text, words in [
        ("def get_sweep():\n    1 / 0", "ZeroDivisionError"),
        ("x = 1", r"has no get_sweep\(\)"),
    ]:
        (tmp_path / "x.py").write_text(text)
        with pytest.raises(UserError, match=words):
            load_sweep(str(tmp_path / "x.py"))
    with pytest.raises(UserError, match="does not exist"):
        load_sweep("nowhere.py")
    with (
        sweep_lock(tmp_path),
        pytest.raises(UserError, match="another sweep"),
        sweep_lock(tmp_path),
    ):
        pass
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="is no sweep's state"):
        load_state(tmp_path, [])


def test_which_differences_count(make_config):
    asked = to_plain(make_config(duration="3 epochs"))
    found = json.loads(to_json(make_config(data__root="/elsewhere", mesh__layout="fsdp")))
    assert config_differences(found, asked) == []
    assert config_differences(found, asked, ["data.root"]) == ["data.root"]
    asked["optim"]["lr"] = 1.0
    assert config_differences(found, asked) == ["optim.lr"]


@pytest.mark.parametrize(
    ("study", "base", "runs"),
    [
        ("data_size.py:/preps", "pretrain_vit", 15),
        ("data_size.py:from=/runs", "multitask", 15),
        ("label_space.py:/preps", "pretrain_both", 12),
        ("label_space.py:from=/runs", "multitask", 12),
        ("model_size.py", "multitask", 15),
        ("model_size.py:lr", "multitask", 15),
    ],
)
def test_the_studies_fit_their_configs(study, base, runs):
    variants = load_sweep(f"configs/study/{study}")
    command = ["train", "--config", f"configs/small/{base}.py", "--workdir", "/nowhere"]
    planned = plan_runs(variants, command, where_of(command, "slurm"))
    assert len({run.digest for run in planned.values()}) == runs
    (first,) = (run for name, run in planned.items() if name == variants[0].name)
    for key, value in first.overrides.items():
        node = first.config
        for part in key.split("."):
            node = node[part]
        assert node == value


def test_a_part_of_a_sweep():
    variants = load_sweep("configs/study/data_size.py")
    assert [each.name for each in select(variants, "1of[48]-seed-1")] == [
        "1of4-seed-1",
        "1of8-seed-1",
    ]
    with pytest.raises(UserError, match=r"fits none of the 15 runs, such as 1of1-seed-0"):
        select(variants, "x*")


def test_a_torn_run_is_unfinished(tmp_path, make_config):
    tree = to_plain(make_config())
    assert why_unfinished(tmp_path, tree, []) == "it has not started"
    leave(tmp_path, tree)
    assert why_unfinished(tmp_path, tree, []) == ""
    (tmp_path / "checkpoints" / "12").rename(tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp")
    assert why_unfinished(tmp_path, tree, []) == "it has no checkpoint"
    (tmp_path / "config.json").write_text("{")
    assert why_unfinished(tmp_path, tree, []) == "it has not started"


def test_what_is_here_without_jax_is_as_the_trainer_has_it(tmp_path):
    assert last_step(tmp_path / "nowhere") is None
    for step in (4, 12):
        leave(tmp_path, {}, step)
    (tmp_path / "checkpoints" / "16").mkdir()
    assert last_step(tmp_path) == int(find_step(tmp_path).name) == 12


def test_the_table(config):
    sweep(config, [("a", {}), ("b", {})], {"b": [2]})
    columns, rows = table_of(load_state(Path(config[1][-1]), []), ["a", "b"])
    assert [len(row) for row in rows] == [len(columns)] * 2
    assert [row[:3] for row in rows] == [["a", "finished", "1"], ["b", "failed", "1"]]
