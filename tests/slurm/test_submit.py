"""slurm/submit: which jobs it makes of a recipe, which waits for which, and what a fault does to the others."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import runs
from jobs import REPOSITORY, Jobs
from recipes import end

from lightning_modules.steps import Stage

on_the_cluster = pytest.mark.xdist_group("slurm")  # one for all

PACE = [{"class_path": "pace.Pace", "init_args": {"seconds": 0.2}}]


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Path:
    """A folder with the three stages; simcse and supervised both start from mntp."""
    runs.write_data(tmp_path, rows=30)
    folder = tmp_path / "recipe"
    folder.mkdir()
    for name, stage, start, settings in (
        ("mntp", "MNTP", tiny_llama, {"trainer.callbacks": PACE}),
        ("simcse", "SimCSE", "runs/mntp/encoder", {}),
        ("supervised", "Supervised", "runs/mntp/encoder", {}),
    ):
        file = runs.write_stage(tmp_path, stage, start, root=f"runs/{name}", steps=20, **settings)
        file.rename(folder / f"{name}.yaml")
    return folder


@pytest.fixture
def mines(recipe: Path) -> Path:
    """Two of them; supervised reads what mntp has mined."""
    (recipe / "simcse.yaml").unlink()
    (recipe / "negatives.yaml").write_text(
        "mine: {encoder: runs/mntp/encoder, pairs: pairs.jsonl, out: runs/mined.jsonl, dtype: float32}\n"
    )
    file = recipe / "supervised.yaml"
    file.write_text(file.read_text().replace(str(recipe.parent / "pairs.jsonl"), "runs/mined.jsonl"))
    return recipe


def submit(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """As the command would end, in a process that has imported everything; `Jobs.submit` runs it as users do."""
    script, ended = REPOSITORY / "slurm" / "submit", subprocess.CompletedProcess(arguments, 0)
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as printed,
        redirect_stderr(StringIO()) as said,
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.setattr(sys, "path", list(sys.path))
        for name, value in more.items():
            patch.setenv(name, value)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            ended.returncode = 1
            print(end, file=sys.stderr)
    ended.stdout, ended.stderr = printed.getvalue(), said.getvalue()
    return ended


def commands(printed: str) -> list[list[str]]:
    return [shlex.split(line) for line in printed.splitlines() if line.startswith("  sbatch ")]


def test_data_that_are_not_there_are_told_at_once(recipe: Path) -> None:
    (recipe.parent / "pairs.jsonl").unlink()
    said = submit("recipe", "--dry-run", cwd=recipe.parent)
    [line] = said.stderr.splitlines()
    assert len(commands(said.stdout)) == 3
    assert line.startswith("note: recipe/supervised.yaml: path ") and "pairs.jsonl' must name a file" in line
    assert not submit("recipe", "--dry-run", "--", "--data.sources", '[{"path": "a/b"}]', cwd=recipe.parent).stderr


def test_dry_run_shows_the_tree(recipe: Path) -> None:
    options = ("--nodes=2", "-p", "gpu", "-d", "after:5", "--", "--trainer.max_steps", "3")
    printed = submit("recipe", "--dry-run", *options, cwd=recipe.parent)
    mntp, simcse, supervised = commands(printed.stdout)
    for command, waits in ((mntp, ""), (simcse, "afterok:JOB1,"), (supervised, "afterok:JOB1,")):
        assert [o for o in command if o.startswith(("-d", "--dep"))] == [f"--dependency=after:5,{waits}singleton"]
    for command, name in ((mntp, "mntp"), (simcse, "simcse"), (supervised, "supervised")):
        assert {"--kill-on-invalid-dep=yes", "--nodes=2", "-p", "gpu", f"--output=runs/{name}/slurm-%j.log"} <= {
            *command
        }
        assert command[-4:] == [
            str(REPOSITORY / "slurm/stage.sbatch"),
            f"recipe/{name}.yaml",
            "--trainer.max_steps",
            "3",
        ]
    assert not (recipe.parent / "runs").exists()


def test_mining_is_a_job_between_two_stages(mines: Path) -> None:
    said = submit("recipe", "--dry-run", "--", "--trainer.max_steps", "3", cwd=mines.parent)
    _, mining, supervised = commands(said.stdout)
    assert "--dependency=afterok:JOB1,singleton" in mining
    script = str(REPOSITORY / "slurm/stage.sbatch")
    assert mining[-3:] == ["--output=runs/mined.jsonl.slurm-%j.log", script, "recipe/negatives.yaml"]
    assert "--dependency=afterok:JOB1,afterok:JOB2,singleton" in supervised and "mined" not in said.stderr
    (mines.parent / "pairs.jsonl").unlink()
    [note] = submit("recipe", "--dry-run", cwd=mines.parent).stderr.splitlines()
    assert note.startswith("note: recipe/negatives.yaml: path ") and "pairs.jsonl' must name a file" in note
    swept = submit("recipe", "--dry-run", "--sweep", "model.lora.r=4,8", cwd=mines.parent)
    assert swept.returncode == 1 and "--sweep must be of stages; recipe/negatives.yaml mines" in swept.stderr


def test_a_stage_alone_may_wait_for_the_job_that_makes_its_start(recipe: Path) -> None:
    """So that stages have different resources."""
    alone = ("recipe/simcse.yaml", "--dry-run", "--nodes=2")
    assert "--dependency=afterok:JOB." in submit(*alone, cwd=recipe.parent).stderr
    [command] = commands(submit(*alone, "--dependency=afterok:5", cwd=recipe.parent).stdout)
    assert {"--nodes=2", "--dependency=afterok:5,singleton"} <= {*command}


def test_files_of_mining_may_be_globs_and_a_corpus(mines: Path) -> None:
    settings, stage = mines / "negatives.yaml", mines / "supervised.yaml"
    settings.write_text(settings.read_text().replace("pairs.jsonl", "pairs.jsonl, corpus: no.txt"))
    stage.write_text(stage.read_text().replace("runs/mined.jsonl", f"{mines.parent}/runs/*.jsonl"))
    said = submit("recipe", "--dry-run", cwd=mines.parent)
    [note] = said.stderr.splitlines()
    assert note.startswith("note: recipe/negatives.yaml: path 'no.txt' must name a file")
    assert "--dependency=afterok:JOB1,afterok:JOB2,singleton" in commands(said.stdout)[2]


def test_mining_that_a_job_would_not_know_is_refused(mines: Path) -> None:
    """It looks for the line in the file itself."""
    (mines / "negatives.yaml").rename(mines / "parts")
    (mines / "negatives.yaml").write_text("include: parts\n")
    ended = submit("recipe", "--dry-run", cwd=mines.parent)
    assert ended.returncode == 1 and "recipe/negatives.yaml must have mine: at the start of a line" in ended.stderr


def test_a_dependency_is_joined_with_ours() -> None:
    dependency = runpy.run_path(str(REPOSITORY / "slurm" / "submit"))["dependency"]
    assert dependency(["7", "8"], False, "afterok:5,singleton") == [
        "--dependency=afterok:5,singleton,afterok:7,afterok:8"
    ]
    assert dependency(["7"], True, "afterok:5") == ["--dependency=afterok:5,aftercorr:7"]
    with pytest.raises(ValueError, match=r"--dependency must be a list with commas.*got after:5.after:6"):
        dependency(["7"], False, "after:5?after:6")


def test_finished_stages_stay_finished(recipe: Path) -> None:
    end(recipe / "mntp.yaml", recipe.parent / "runs" / "mntp", steps=20)
    printed = submit("recipe", "--dry-run", cwd=recipe.parent).stdout
    assert printed.splitlines()[1] == "  is finished"
    assert ["--dependency=singleton" in command for command in commands(printed)] == [True, True]
    printed = submit("recipe", "--dry-run", "--", "--model.lora.r", "2", cwd=recipe.parent).stdout
    assert "is finished" not in printed  # the job says what was changed


def test_a_finished_stage_is_submitted_behind_one_that_runs(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its encoder will be another, which only its own job will see."""
    monkeypatch.chdir(recipe.parent)
    end(Path("recipe/simcse.yaml"), Path("runs/simcse"), steps=20)
    assert Stage(Path("recipe/simcse.yaml"), "runs/mntp/encoder", "runs/simcse").is_finished()
    printed = submit("recipe", "--dry-run", cwd=recipe.parent).stdout
    assert len(commands(printed)) == 3 and "is finished" not in printed


def test_a_sweep_is_an_array_and_each_task_waits_for_its_own(recipe: Path) -> None:
    sweep = ("--sweep", "model.lora.r=4,8", "--sweep", "seed_everything=1,2")
    printed = submit("recipe", "--dry-run", *sweep, cwd=recipe.parent).stdout
    mntp, simcse, _ = commands(printed)
    assert "--array=0-3" in mntp and not [option for option in mntp if option.startswith("--dependency")]
    assert "--dependency=aftercorr:JOB1" in simcse
    assert (
        "  task 2: --model.lora.r=8 --seed_everything=1 --trainer.default_root_dir=runs/simcse/sweep/2 "
        "--model.backbone.model=runs/mntp/sweep/2/encoder"
    ) in printed.splitlines()


def test_a_task_of_a_sweep_stays_what_it_is(tmp_path: Path) -> None:
    """In a dry run, too."""
    array = runpy.run_path(str(REPOSITORY / "slurm" / "submit"))["array"]
    stage = Stage(tmp_path / "a.yaml", "base", str(tmp_path))
    array(stage, None, [["--a=1"], ["--a=2"]], False)
    array(stage, None, [["--a=1"]], False)
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r"sweep/1.txt must stay the task that it is: --a=2 .*; got --a=3 "):
            array(stage, None, [["--a=1"], ["--a=3"]], dry_run)
    assert (tmp_path / "sweep" / "1.txt").read_text().startswith("--a=2\n")


def test_outside_of_its_environment_it_says_so(recipe: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-I", "-S", REPOSITORY / "slurm" / "submit", recipe], capture_output=True, text=True
    )
    assert ended.returncode == 1 and "source .venv/bin/activate" in ended.stderr and "Trace" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["recipe", "--dry-run", "--sweep", "model.loss.scale=10,20"],
            "recipe/mntp.yaml with --model.loss.scale=10: ",
        ),
        (["recipe", "--dry-run", "--", "--trainer.max_step", "3"], "did you mean --trainer.max_steps?"),
        (["recipe", "--dry-run", "--", "--trainer.max_steps", "many"], "trainer.max_steps"),
        (
            ["recipe"],
            "must run where SLURM's sbatch is; there is none. --dry-run",
        ),
        (["recipe/simcse.yaml", "--dry-run"], "there is no runs/mntp/encoder. Submit the folder of the whole recipe"),
        (["nowhere"], "a recipe must be a folder with a YAML per stage, or a stage's YAML; got nowhere"),
        (["recipe", "--sweep", "model.lora.r"], "--sweep must be SETTING=VALUE,VALUE; got 'model.lora.r'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, recipe: Path) -> None:
    ended = submit(*arguments, cwd=recipe.parent, PATH="/nowhere")
    assert ended.returncode == 1 and said in ended.stderr
    assert ended.stderr.startswith("error: ") and len(ended.stderr.splitlines()) == 1


def test_a_wrong_grace_time_is_refused(recipe: Path) -> None:
    ended = submit("recipe", "--dry-run", cwd=recipe.parent, OTHERSIDE_GRACE="20m")
    assert ended.returncode == 1 and ended.stderr.startswith("error: OTHERSIDE_GRACE must be") and not ended.stdout


@pytest.mark.parametrize(
    ("environment", "config", "said"),
    [
        ({}, "recipe/mntp.yaml", "must run as a job; got none. Use sbatch or slurm/submit."),
        ({"SLURM_JOB_ID": "1"}, "recipe/none.yaml", "must be given a stage's YAML; got 'recipe/none.yaml'."),
        (
            {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "1"},
            "recipe/mntp.yaml",
            "each GPU must have a task; got 1 on 8 GPUs. Set --ntasks-per-node=8.",
        ),
        (
            {"SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0"},
            "recipe/mntp.yaml",
            "each task of an array must have settings of its own; got an array without. Use slurm/submit --sweep",
        ),
    ],
)
def test_a_wrong_job_says_so_at_once(environment: dict[str, str], config: str, said: str, recipe: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    command = ["bash", str(REPOSITORY / "slurm" / "stage.sbatch"), config]
    options = {"cwd": recipe.parent, "env": {**clean, **environment}, "timeout": 60}
    ended = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert ended.returncode == 2 and said in ended.stderr


HAS = (
    "$SLURM_CPUS_PER_TASK CPUs, $OMP_NUM_THREADS threads, GPUs $CUDA_VISIBLE_DEVICES, "
    "$PYTORCH_ALLOC_CONF$SLURM_TRES_PER_TASK"
)


@on_the_cluster
@pytest.mark.parametrize(
    ("options", "has"),
    [
        ([], "4 CPUs, 4 threads, GPUs "),
        (["--gpus-per-node=2"], "4 CPUs, 4 threads, GPUs 0,1"),
        (["--gpus-per-task=1"], "4 CPUs, 4 threads, GPUs 0,1"),
        (["--gres=gpu:2"], "4 CPUs, 4 threads, GPUs 0,1"),
        (["--cpus-per-task=1"], "1 CPUs, 1 threads, GPUs "),
        (["--cpus-per-task=1", "--exclusive"], "4 CPUs, 1 threads, GPUs 0,1"),
        (["--export=OTHERSIDE_SITE,HOME,PATH"], "4 CPUs, 4 threads, GPUs "),
    ],
)
def test_what_a_task_has(options: list[str], has: str, jobs: Jobs, recipe: Path, tmp_path: Path) -> None:
    """CPUs for loader workers; all GPUs of its node, however they were asked for."""
    site = tmp_path / "says.sh"
    site.write_text(f"launch=(sh -c 'echo \"has {HAS}\"')\n")
    script = REPOSITORY / "slurm" / "stage.sbatch"
    environment = {**jobs.environment, "OTHERSIDE_SITE": str(site), "CUDA_VISIBLE_DEVICES": ""}
    environment["SLURM_TRES_PER_TASK"] = "cpu=1"  # as sbatch of SLURM 23.11 sets it, and srun then refuses to start
    size = ("--nodes=2", "--ntasks-per-node=2", f"--output={jobs.place}/%j.log")
    job = jobs.cluster.sbatch(*size, *options, script, recipe / "mntp.yaml", cwd=recipe.parent, **environment)
    jobs.end(job, "COMPLETED")
    tasks = [line for line in jobs.log(job).splitlines() if line.startswith("has ")]
    assert tasks == [f"has {has}, expandable_segments:True"] * 4, jobs.log(job)


def numbers(printed: list[str]) -> list[str]:
    return [match[1] for line in printed if (match := re.match(r"  is job (\d+), waits for", line))]


@on_the_cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recipe_runs_to_its_end_though_it_is_preempted(jobs: Jobs, mines: Path) -> None:
    recipe, jobs.place = mines, mines.parent
    options = (f"--output={jobs.place}/%j.log", "--cpus-per-task=1")  # as many threads as the tests have
    printed = jobs.submit("recipe", *options)
    mntp, mining, supervised = numbers(printed)
    assert printed[-1] == f"cancel:  scancel {mntp} {mining} {supervised}"
    jobs.until(mntp, "^step [5-9]/")
    high = jobs.cluster.sbatch("-p", "high", "-N3", "--exclusive", "--wrap", "sleep 1", cwd=jobs.place)
    jobs.until(mntp, "^waiting for SLURM to end the job")
    jobs.end(high, "COMPLETED")
    assert jobs.end(mntp, "COMPLETED")["Restarts"] == "1"
    for job in (mining, supervised):
        jobs.end(job, "COMPLETED")
    assert jobs.submit("recipe")[1::2] == ["  is finished"] * 3

    calm = ("--trainer.callbacks", "[]", "--trainer.default_root_dir")
    runs.run("fit", "--config", recipe / "mntp.yaml", *calm, "calm/mntp", cwd=jobs.place)
    mined = ("calm/mntp/encoder", "pairs.jsonl", "--out", "calm/mined.jsonl", "--dtype", "float32")
    runs.run("mine", *mined, cwd=jobs.place)
    assert (jobs.place / "calm/mined.jsonl").read_bytes() == (jobs.place / "runs/mined.jsonl").read_bytes()
    start = ("--model.backbone.model", "calm/mntp/encoder")
    runs.run("fit", "--config", recipe / "supervised.yaml", *start, *calm, "calm/supervised", cwd=jobs.place)
    for name in ("mntp", "supervised"):
        runs.assert_equal(runs.adapter(jobs.place / "runs" / name), runs.adapter(jobs.place / "calm" / name))


@on_the_cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stage_that_fails_takes_along_those_behind_it(jobs: Jobs, recipe: Path) -> None:
    jobs.place = recipe.parent
    printed = jobs.submit("recipe", f"--output={jobs.place}/%j.log", "--", "--model.chunk_tokens", "-1")
    first, *behind = numbers(printed)
    jobs.end(first, "FAILED")
    failed = time.monotonic()
    assert "error: model.chunk_tokens must be at least 1" in jobs.log(first)
    for job in behind:
        jobs.end(job, "CANCELLED", timeout=15)
    assert time.monotonic() - failed < 15
