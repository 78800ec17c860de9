"""Writes the reference at the end of docs/library.md, from the docstrings and the declared keywords.

python -m tools.api_reference
"""

import inspect
from pathlib import Path

from config.parser import Parser
from ffcv_ops.errors import exits_cleanly

if __name__ == "__main__":  # --help and mistakes are answered here: the imports below take seconds
    exits_cleanly(Parser(prog="python -m tools.api_reference", description=__doc__).parse_args)()

import ffcv_ops
from ffcv_ops.loader import EvalOptions, TrainOptions
from ffcv_ops.options import describe_type, keywords_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "library.md"
BEGIN = "<!-- reference: python -m tools.api_reference -->\n"


def reference() -> str:
    """Everything that `from ffcv_ops import ...` gives, as Markdown."""
    of_evaluation = keywords_of(EvalOptions)
    of_training = {name: one for name, one in keywords_of(TrainOptions).items() if name not in of_evaluation}
    parts = [
        _described("train_loader(path, **keywords)", ffcv_ops.train_loader),
        "Its keywords, beside those of `eval_loader`:",
        _table(of_training),
        _described("eval_loader(path, **keywords)", ffcv_ops.eval_loader),
        _table(of_evaluation),
        _described("Loader", ffcv_ops.Loader),
    ]
    for name in ("__iter__", "epoch", "set_epoch", "state_dict", "load_state_dict", "close"):
        method = getattr(ffcv_ops.Loader, name)
        parts.append(f"`{name}{_signature(method)}`: {inspect.getdoc(method)}")
    for name in ("mixup_cutmix", "Mixing", "write_beton"):
        value = getattr(ffcv_ops, name)
        parts.append(_described(f"{name}{_signature(value)}", value))
    return "\n\n".join([*parts, _described("UserError", ffcv_ops.UserError)]) + "\n"


def _described(title, value):
    return f"### {title}\n\n{inspect.getdoc(value)}"


def _signature(value):
    signature = inspect.signature(value)
    bare = [one.replace(annotation=one.empty) for one in signature.parameters.values() if one.name != "self"]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _table(keywords):
    rows = [
        f"| `{name}` | {describe_type(kind, one.limits)} | `{one.default}` | {one.help.replace('|', chr(92) + '|')} |"
        for name, (kind, one) in keywords.items()
    ]
    return "\n".join(["| keyword | what it may be | default | |", "|---|---|---|---|", *rows])


@exits_cleanly
def main(argv=None) -> None:
    before = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0]
    PAGE.write_text(f"{before}{BEGIN}\n{reference()}", encoding="utf-8")


if __name__ == "__main__":
    main()
