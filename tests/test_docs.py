"""What README and docs say to type: every block of code is run or parsed, or its fence says why not.

Each page is read from top to bottom in a folder of its own that has the repository's configs, examples and benchmarks,
and small encoders where the docs have the quickstart's.

- A fence with `title="FILE"` is written to that file.
- Python is run; YAML is read by the real parser, alone if it has a `model`, else on top of a stage.
- `lightning fit` trains where its first YAML was written by the page; other commands are read by the real parser.
- `no-run="REASON"` in the fence leaves a block out.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml
from conftest import SENTENCES

from lightning_modules import cli
from lightning_modules.steps import Mining, read
from lightning_modules.training import check_settings
from otherside.adapters import Lora, attach
from otherside.encoder import Encoder

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "configs/README", "slurm/README", "benchmarks/README")
]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STAGE = "configs/quickstart/supervised.yaml"  # what a YAML without a model is put behind
FILES = ("csv", "tsv", "jsonl", "text")  # of no use but as a file, or to look at
COMMANDS = ("lightning ", "make ", "python ", "slurm/submit ", "examples/", "torchrun ", "pip ", "git ", "hf ")
SMALL = ["--model.backbone.dtype", "float32", "--data.num_workers", "0"]


@dataclass(frozen=True)
class Block:
    """One fence."""

    language: str
    marks: str
    text: str
    line: int

    def mark(self, name: str) -> str | None:
        """The value of NAME="VALUE" behind the language."""
        found = re.search(rf'\b{name}="([^"]*)"', self.marks)
        return found and found[1]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2], m[3], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


WITH_BLOCKS = [page for page in PAGES if blocks(page)]


@pytest.fixture(scope="module")
def encoder(tiny_llama_bos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder of a tiny Llama with an adapter."""
    made = Encoder.load(tiny_llama_bos)
    attach(made.backbone.lm, Lora(r=2))
    return made.save(tmp_path_factory.mktemp("docs") / "encoder", "mntp")


@pytest.fixture
def place(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout after `make quickstart`, but small."""
    for folder in ("configs", "examples", "benchmarks", "slurm", "lightning_modules", "otherside"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for stage in ("mntp", "simcse", "supervised"):
        shutil.copytree(encoder, tmp_path / f"runs/quickstart/{stage}/encoder")
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name)
def test_every_block_runs(page: Path, place: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, own, shared = set(sys.modules), set[str](), dict[str, Any]()
    for block in blocks(page):
        if (reason := block.mark("no-run")) is not None:
            assert len(reason) > 5, f"{name(page)}, line {block.line}: no-run must give a reason"
            continue
        try:
            if title := block.mark("title"):
                Path(title).write_text(block.text)
                own.add(title)
            run_block(block, own, shared, encoder, monkeypatch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name(page)}, line {block.line}: {error}") from error
    for module in set(sys.modules) - known:  # another page may have a file of the same name
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(place)):
            del sys.modules[module]


def run_block(
    block: Block, own: set[str], shared: dict[str, Any], encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = block.mark("title")
    if block.language == "python":
        code = compile(block.text, title or "block", "exec")
        exec(code, {"__name__": "block"} if title else shared)
    elif block.language == "yaml":
        check_yaml(title or "block.yaml", block.text)
    elif block.language in ("sh", "bash"):
        for words in commands(block.text):
            check_command(words, own, encoder, monkeypatch)
    elif block.language in ("", *FILES):
        typed = [line for line in block.text.splitlines() if line.startswith(COMMANDS)]
        assert not typed, f"a block with commands must be ```sh; got {typed[0]!r}"
    else:
        raise AssertionError(f"nobody knows how to check ```{block.language}")


def check_yaml(file: str, text: str) -> None:
    """By the real parser, with the includes that there are from a recipe's folder or from here."""
    settings = yaml.safe_load(text)
    below = [] if "model" in settings and "data" in settings else ["--config", STAGE]
    if str(settings.get("include", "")).startswith("../"):
        settings["include"] = str(ROOT / "configs/quickstart" / settings["include"])
        text = yaml.safe_dump(settings)
    Path(file).write_text(text)
    if "mine" in settings:
        assert isinstance(read(Path(file)), Mining)
    if settings.keys() & {"model", "data", "trainer", "mteb", "checkpoints"}:
        check_settings([*below, "--config", file])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command; `a && b` are two."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s&&\s", line):
            if words := shlex.split(part, comments=True):
                yield words


def check_command(words: list[str], own: set[str], encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, rest = words[0], words[1:]
    assert not {"…", "..."} & set(words), f"a command with an ellipsis cannot be typed: {' '.join(words)}"
    if program == "lightning":
        check_lightning(rest[0], rest[1:], own, encoder, monkeypatch)
    elif program == "make":
        subprocess.run(["make", "-n", "-C", ROOT, *rest], check=True, capture_output=True)
    elif program == "slurm/submit":
        done = subprocess.run(
            [sys.executable, ROOT / program, *rest[:1], "--dry-run", *rest[1:]], capture_output=True, text=True
        )
        assert not done.returncode, done.stderr
    elif program in (".venv/bin/lightning", "python") and rest:
        assert rest[0] == "-m" or Path(rest[0]).is_file(), f"there is no {rest[0]}"
        for option in (word.partition("=")[0] for word in rest[1:] if word.startswith("--") and rest[0] != "-m"):
            said = option.removeprefix("--")
            assert re.search(rf"\b{said}\b", Path(rest[0]).read_text()), f"{rest[0]} has no {option}"
    elif "/" in program:
        assert os.access(program, os.X_OK), f"there is no program {program}"
    else:
        raise AssertionError(f'{" ".join(words)!r} is not checked; say no-run="WHY" in its fence')


def check_lightning(
    command: str, rest: list[str], own: set[str], encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command in cli.TRAINING:
        if command == "fit" and rest[1] in own and "--print_config" not in rest:
            runs.run("fit", *rest, *SMALL, cwd=Path.cwd())
        else:
            check_settings([word for word in rest if word != "--print_config"])
    elif command == "recipe":
        runs.run("recipe", rest[0], "--dry-run", cwd=Path.cwd())
    else:
        address, _ = cli.FUNCTIONS[command]
        module, _, function = address.partition(":")
        called = []
        real = getattr(importlib.import_module(module), function)
        stand_in = functools.wraps(real)(lambda **given: called.append(given))
        with monkeypatch.context() as patched:
            patched.setattr(importlib.import_module(module), function, stand_in)
            cli._call(command, rest)
        assert called


def site(module: str) -> Any:
    """A module of docs/site, which is no package."""
    spec = importlib.util.spec_from_file_location(f"site_{module}", ROOT / f"docs/site/{module}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_reference_says_type_default_and_meaning() -> None:
    """Of settings that are numbers, made by a factory, dataclasses, and of a stage that inherits most of its own."""
    page = site("settings").page()
    for row in (
        "| `attention_dropout` | number | `0.0` | on attention probabilities",
        "| `targets` | list of text | `[q_proj, k_proj,",
        "| `backbone` | [BackboneConfig](#backboneconfig) | required |",
        "| `false_negative_margin` | number or `null` | `null` | leave out",
        "| `languages` | list of text or `null` | `[eng]` |",
    ):
        assert row in page
    assert page.count("| `chunk_tokens` |") == 1
    for link in re.findall(r"\]\(#(\w+)\)", page):
        assert f"{{#{link}}}" in page or f"## {link}\n" in page, f"there is no section {link}"


def test_pictures_are_those_that_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = site("figures")
    monkeypatch.setattr(figures, "PICTURES", tmp_path)
    for name, draw in figures.DRAWN.items():
        draw().write(name)
        drawn = (ROOT / f"docs/pictures/{name}.svg").read_text()
        assert (tmp_path / f"{name}.svg").read_text() == drawn, "run python docs/site/figures.py"


def test_a_block_without_a_check_is_an_error(place: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        ("sh", "lightning fit --config configs/quickstart/mntp.yaml --model.lora.rank 3"): "lora.rank",
        ("sh", "lightning probe a --out b --taks wic"): "taks",
        ("sh", "make quickstrat"): "quickstrat",
        ("sh", "python benchmarks/kill.py"): "there is no",
        ("sh", "rm -rf /"): "no-run",
        ("yaml", "trainer: {max_stepz: 3}"): "max_stepz",
        ("", "lightning fit --config a.yaml"): "must be",
    }
    for (language, text), says in wrong.items():
        with pytest.raises((Exception, SystemExit)) as caught:
            run_block(Block(language, "", text, 1), set(), {}, encoder, monkeypatch)
        said = f"{caught.value} {getattr(caught.value, 'cmd', '')}"
        assert says in said, f"{text!r}: {said}"
