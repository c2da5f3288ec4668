"""No abbreviated options."""

from __future__ import annotations

import difflib
from argparse import ArgumentError
from typing import Any

from jsonargparse import ArgumentParser


class Exact(ArgumentParser):
    """Knows no abbreviations: `--loss.scal` would be taken for `--loss.scale`, and a typing error for a setting."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Argparse's hook for options that are not there; it asks for those that may be meant."""
        name = option_string.partition("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.85)
        if near and not self._subcommands_action:  # those of a subcommand come by here too
            raise ArgumentError(None, f"there is no option {name}, did you mean {near[0]}?")
        return []
