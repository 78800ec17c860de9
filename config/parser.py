"""The parser of every command line. It needs nothing that has to be installed: the doctor starts without."""

import argparse
import sys

from ffcv_ops.errors import UserError, exits_cleanly, one_line
from ffcv_ops.options import nearest


@exits_cleanly
def part_of(command: str) -> None:
    """Ends `python -m` of a module that is a part of a command."""
    raise UserError(f"this is a part of {command}, which is the command to start")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line: no abbreviations, the nearest name for a typo, and no value that is there but
    empty, as `--init=$UNSET` leaves one."""

    def __init__(self, *names, **settings):
        spec = sys.modules["__main__"].__spec__  # of a module that was started with -m; argparse would say __main__.py
        defaults = {"prog": f"python -m {spec.name.removesuffix('.__main__')}"} if spec else {}
        defaults |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*names, **(defaults | settings))

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else [str(word) for word in args]
        self._check(args[: args.index("--")] if "--" in args else args)
        return super().parse_args(args, namespace)

    def _check(self, words):
        """UserError with a line for each unknown name and each empty value."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        faults, before = [], ""
        for word in words:
            flag, equals, value = word.partition("=")
            is_flag = flag.startswith("--")
            if is_flag and flag not in known:
                faults.append(f"{one_line(flag)} is not an option; the nearest is {nearest(flag, known)}")
            elif (is_flag and equals and not value.strip()) or not word.strip():
                name = flag if is_flag else before if before in known else "an argument"
                faults.append(f"{name} is empty; give it a value or leave it out")
            before = word
        if faults:
            raise UserError("\n".join(faults))

    def error(self, message):
        raise UserError(f"{one_line(message)}; --help lists what there is")
