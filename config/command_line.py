"""A command line -> its plain options, and the config options that were given as --section.name=value.

fastargs declares the latter. It is given neither values, files nor the environment: it would drop unknown options and
let environment variables win.
"""

import argparse
from collections.abc import Mapping, Sequence

import fastargs

from config import help
from config.options import all_names, options_of
from config.parser import Parser


class _Declarations(fastargs.Config):
    """fastargs' declarations, without its reading of sys.argv, files and environment variables."""

    def collect_argparse_args(self, parser, disable_help=False):
        return self


class _SectionParser(Parser):
    def add_argument(self, *names, **keywords):
        if "--config-file" not in names:  # fastargs' own way to a file, which is not strict
            return super().add_argument(*names, **keywords)


class _Help(argparse.Action):
    """--help [WORD]: shows it through `const`, a function of the parser and the word, and ends."""

    def __call__(self, parser, namespace, word, option_string=None):
        self.const(parser, word if isinstance(word, str) else "")
        parser.exit()


def parse(
    description: str,
    sections: Mapping[str, type],
    defaults: Mapping[str, Mapping],
    arguments: Sequence[tuple[str, dict]] = (),
    argv: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, dict[str, str]]:
    """The plain `arguments`, (flag, keywords of add_argument), as a namespace, and the config options that were given,
    {"stage.epochs": "1"}, whose texts `parse_options` or `build` will judge.

    sections: {"stage": StageConfig, ...}; the section "" holds options without a prefix. defaults: {"stage": {"epochs":
    400}}, shown by --help only; without an entry a field's own default is shown.
    """

    def show_help(parser, word):
        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        names = [" ".join(filter(None, [action.option_strings[0], action.metavar])) for action in shown]  # --cfg FILE
        listed = [(name, action.help or "") for name, action in zip(names, shown, strict=True)]
        described = description or ""  # python -OO leaves docstrings out
        help.show(parser.usage % {"prog": parser.prog}, described, listed, sections, defaults, word)

    parser = _SectionParser(usage="%(prog)s [options] [--section.key=value ...]", add_help=False)
    parser.add_argument(
        "--help", "-h", action=_Help, nargs="?", const=show_help, metavar="WORD", help="show this, or the keys of WORD"
    )
    for flag, keywords in arguments:
        parser.add_argument(flag, **keywords)
    declarations = _Declarations()
    for name, cls in sections.items():
        section = fastargs.Section(name, config_descriptor=declarations)
        section.ns = tuple(filter(None, [name]))  # fastargs would call an option of the unnamed section `.seed`
        declarations.add_section(section)
        section.params(**{row: fastargs.Param(fastargs.validation.Anything()) for row in options_of(cls)})
    declarations.augment_argparse(parser)
    given = vars(parser.parse_args(argv))
    texts = {name: given.pop(name) for name in all_names(sections)}
    given.pop("help")
    return argparse.Namespace(**given), {name: text for name, text in texts.items() if text is not None}
