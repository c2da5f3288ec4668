"""The command `lightning`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from lightning_modules import signals
from lightning_modules.functions import FUNCTIONS, parsed
from otherside.waits import LIBRARIES, saying

HELP = """usage: lightning COMMAND [OPTIONS]

Turns decoder-only Llamas into bidirectional text encoders, stage by stage.

Train and use one stage (settings from YAML, any of them also as an option):
  fit       --config configs/R/mntp.yaml      train; run again to resume
  validate  --config configs/R/mntp.yaml      validation loss of the newest checkpoint
  test      --config configs/R/mntp.yaml      MTEB scores of the newest checkpoint
  predict   --config configs/R/mntp.yaml      embed a corpus

All stages, and what they did:
  quickstart                              a 135M Llama through all stages, probed and reported: 13 minutes on two cores
  recipe    configs/R                         all stages in order; skips what is done, resumes what was cut
  probe     ENCODER... --out DIR              the paper's probing tasks on each variant: tables and figures
  report    RUN... --out DIR                  one page: what was trained, losses, MTEB, probes, the paper's findings
  soup      ENCODER ENCODER... --out OUT      the average of several encoders, as an encoder
  export    ENCODER OUT                       for sentence-transformers, ONNX, llama.cpp, transformers; compared
  push      EXPORT ORG/NAME                   an export to the hub; --dry_run shows what would go

Your own data:
  new         RECIPE --base MODEL --data FILE...    a recipe for your texts or pairs and this machine; then `recipe`
  check-data  CONFIG|FILE...                        counts, lengths, duplicates, and test texts among training texts

Before a large run:
  mine      ENCODER PAIRS --out FILE.jsonl    hard negatives for a file of pairs
  size      configs/R/mntp.yaml --nodes 2 --gpus 8      memory, communication and time of a step; loads no weights

R is a recipe; `otherside:quickstart` in place of `configs/quickstart` works anywhere.
`lightning COMMAND --help` says more. Errors are one line; OTHERSIDE_DEBUG=1 shows where they arose.
"""

RECIPES = ("recipe", "quickstart")
TRAINING = ("fit", "validate", "test", "predict")


def main(args: list[str] | None = None) -> None:
    """Run one command; `args` default to the command line's.

    Raises:
        SystemExit: with a status other than 0 if it fails.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # OpenMP's threads would spin on cores that others need
    arguments = sys.argv[1:] if args is None else args
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help"):
        print(HELP)
    elif command in TRAINING:
        _plainly(command, lambda: _train(command, rest))
    elif command in RECIPES:
        _plainly(command, lambda: _recipe(command, rest))
    elif command in FUNCTIONS:
        _plainly(command, lambda: _call(command, rest))
    else:
        commands = ", ".join([*TRAINING, *RECIPES, *FUNCTIONS])
        sys.exit(f"error: {command!r} is no command of lightning; it has {commands}")


def _train(command: str, arguments: list[str]) -> None:
    from lightning_modules.includes import beside, with_includes

    arguments = with_includes(arguments)  # says what is wrong with a YAML before the seconds that imports take
    sys.path += beside(arguments)
    _imported("lightning_modules.training", command).TrainingCLI(command, arguments)


def _recipe(command: str, arguments: list[str]) -> None:
    import_module(f"lightning_modules.{command}").main(arguments)


def _call(command: str, arguments: list[str]) -> None:
    module, _, name = FUNCTIONS[command][0].partition(":")
    function = getattr(_imported(module, command), name)
    function(**parsed(command, function, arguments))


def _imported(module: str, command: str) -> ModuleType:
    with saying(LIBRARIES), signals.at_once(f"lightning {command}"):
        return import_module(module)


def _plainly(command: str, run: Callable[[], None]) -> None:
    """Run; an error that is addressed to the user becomes one line, and so does Ctrl-C."""
    signals.install(training=command == "fit")
    try:
        run()
        sys.stdout.flush()
    except signals.Interrupted:
        if signals.is_first():
            print(signals.stopped(f"lightning {command}"), file=sys.stderr)
        raise
    except Exception as error:
        from lightning_modules.errors import message

        if isinstance(error, BrokenPipeError) and command in FUNCTIONS:  # such as `lightning size CONFIG | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails once more as it ends
            sys.exit(128 + signal.SIGPIPE)
        if os.environ.get("OTHERSIDE_DEBUG") or not (said := message(error, command, command in TRAINING)):
            raise
        sys.exit(f"error: {said}")


if __name__ == "__main__":
    main()
