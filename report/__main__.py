"""Makes the report of a run anew, or compares several, from their folders alone.

python -m report runs/demo                                   # runs/demo/report.html, curves.png
python -m report runs/one runs/other --out compare.html
"""

from pathlib import Path

import report
from config.parser import Parser
from ffcv_ops.errors import exits_cleanly, writing


@exits_cleanly
def main(argv=None) -> None:
    parser = Parser(prog="python -m report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("compare.html"),
                        help="the page that compares several runs; compare.html if not given")  # fmt: skip
    options = parser.parse_args(argv)

    from ffcv_ops.files import write_atomically
    from report import compare, tables  # after the command line is read: they bring torch and timm, which take seconds
    from report.collect import collect

    if len(options.runs) == 1:
        collect(options.runs[0])
        print(report.write(options.runs[0]))
        return
    runs = [collect(folder) for folder in options.runs]
    print(tables.padded(compare.numbers(runs)))
    differing = compare.differences(runs)
    print("\n" + (tables.padded(differing) if differing else "The recipes differ in nothing that changes a run."))
    page = compare.render(runs)
    with writing(options.out):
        write_atomically(options.out, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"\ncomparison: {options.out}")


if __name__ == "__main__":
    main()
