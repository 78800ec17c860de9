"""Makes the report of a run anew, or compares several, from their folders alone.

python -m report runs/demo                                   # runs/demo/report.html, curves.png
python -m report runs/one runs/other --out compare.html
"""

from pathlib import Path

from config.parser import Parser
from ffcv_ops.errors import UserError, exits_cleanly, writing


@exits_cleanly
def main(argv=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="the page that compares several runs; compare.html if not given"
    )
    options = parser.parse_args(argv)
    if len(options.runs) == 1:
        if options.out:
            raise UserError("--out is for the comparison of several runs; one run's report lies in its folder")
        import report  # what makes a page takes seconds to import; --help and a typo need none of it

        print(report.write(options.runs[0]))
    else:
        _compare(options.runs, options.out or Path("compare.html"))


def _compare(folders, out):
    from config.text import markdown_table
    from ffcv_ops.files import write_atomically
    from report import collect, compare, tables

    runs = [collect.collect(folder) for folder in folders]
    print(markdown_table(tables.run_table(runs), left=1))
    differing = compare.differences(runs)
    print(
        "\n" + (markdown_table(differing, left=1) if differing else "The recipes differ in nothing that changes a run.")
    )
    page = compare.render(runs)
    with writing(out):
        write_atomically(out, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"\ncomparison: {out}")


if __name__ == "__main__":
    main()
