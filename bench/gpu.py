"""Training step and loader together on this machine's GPU: rows of both in bench/results/DEVICE.json.

python -m bench.gpu [--quick]
"""

import argparse
import tempfile
from pathlib import Path

import torch

from bench import loader, report
from bench.step import __main__ as step
from ffcv_ops.errors import UserError, exits_cleanly

RESULTS = Path(__file__).parent / "results"


@exits_cleanly
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short measurements of both")
    quick = ["--quick"] if parser.parse_args(argv).quick else []
    if not torch.cuda.is_available():
        raise UserError("gpu-bench measures a GPU and there is none here; for the CPU run python -m bench.step")
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "step.json", Path(folder) / "loader.json"]
        step.main([*quick, "--json", str(files[0])])
        loader.main([*quick, "--json", str(files[1])])
        (machine, steps), (_, loaders) = map(report.read_json, files)
    path = RESULTS / f"{name}.json"
    report.write_json(path, machine, steps + loaders)
    print(f"{path}: {len(steps + loaders)} rows")


if __name__ == "__main__":
    main()
