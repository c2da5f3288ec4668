"""The command line around a plain function: its help, short forms of its options, and who reads its output."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import runs

from lightning_modules import cli
from lightning_modules.cli import FUNCTIONS, main

REPOSITORY = Path(__file__).parents[3]
CONFIG, SHAPE = (str(REPOSITORY / path) for path in ("configs/quickstart/mntp.yaml", "benchmarks/shapes/tiny"))


@pytest.mark.parametrize("command", FUNCTIONS)
def test_help_says_what_positional_arguments_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    rest = " ".join(capsys.readouterr().out.partition("positional arguments:")[2].split())
    for name in FUNCTIONS[command][1]:
        assert f"{name} " in rest and f"{name} (required" not in rest


@pytest.mark.parametrize(("asked", "policy"), [("", "passive"), ("active", "active")])
def test_threads_that_wait_leave_cores_to_others(asked: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", asked)
    if not asked:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    main(["--help"])
    assert os.environ["OMP_WAIT_POLICY"] == policy


def test_a_bare_flag_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--json", CONFIG], [CONFIG, "--json"], [CONFIG, "--json", "true"], ["--json=true", CONFIG]):
        main(["size", *arguments, "--model", SHAPE])
        assert json.loads(capsys.readouterr().out)["fits"]
    main(["size", CONFIG, "--json", "false", "--model", SHAPE])
    assert capsys.readouterr().out.startswith("mntp, ")


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, tiny_llama: Path) -> None:
    """By the script, which unlike `python -m` has no working directory among its paths; also in a job."""
    (tmp_path / "mycode.py").write_text("from lightning_modules import MNTP\n\n\nclass Mine(MNTP):\n    pass\n")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "lightning"
    script.write_text("from lightning_modules.cli import main\n\nmain()\n")  # as pip writes it
    runs.write_data(tmp_path, rows=16)
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, steps=1, **{"model.class_path": "mycode.Mine"})
    ended = subprocess.run(
        [sys.executable, script, "fit", "--config", config],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, "-m", "lightning_modules.cli", "size", CONFIG, "--model", SHAPE]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_classes_beside_a_yaml_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are named, and beside those that they include, whose own come behind theirs."""
    files = [tmp_path / name for name in ("a/stage.yaml", "b/stage.yaml", "c/stage.yaml", "d/base.yaml")]
    for file in files:
        file.parent.mkdir()
        file.write_text("include: ../d/base.yaml" if file == files[0] else "{}")
    named = ["--config", f"{files[0]}", f"--config={files[1]}", "-c", f"{files[2]}"]
    training = SimpleNamespace(TrainingCLI=lambda command, arguments: None)
    monkeypatch.setattr(cli, "_imported", lambda module, command: training)
    monkeypatch.setattr(sys, "path", [])
    cli._train("fit", [*named, "--model.seed", "1"])
    assert sys.path == [str(Path.cwd()), *(str(tmp_path / name) for name in "cbad")]


@pytest.mark.parametrize(
    "arguments", [["probe", "no", "--out", "out"], ["fit", "--config", CONFIG], ["recipe", "configs/quickstart"]]
)
def test_ctrl_c_while_libraries_are_imported_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_modules.cli", *arguments]
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")  # where nobody has run the quickstart before
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and len([line for line in said.splitlines() if line]) == 1
    assert said.endswith(" was stopped by Ctrl-C; the same command begins again\n")
