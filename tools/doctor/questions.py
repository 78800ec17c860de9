"""Questions that need the libraries, asked in a process of their own: one that is missing, crashes or hangs is an
answer."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180  # for an import from a cold disk

# Both answer with a line of JSON behind MARK for each argument; libraries may print what they like. An argument of
# FILES is a data set, or those of training and validation, a line each.
MARK = "answer: "
SAY = f"""
import importlib, json, sys
def say(**answer):
    print("{MARK}" + json.dumps(answer), flush=True)
"""
IMPORTS = f"""{SAY}
for name in sys.argv[1:]:
    try:
        module, more = importlib.import_module(name), dict()
        if name == "torch":
            gpus = [module.cuda.get_device_properties(i) for i in range(module.cuda.device_count())]
            more = dict(cuda=module.version.cuda, gpus=[[gpu.name, gpu.total_memory] for gpu in gpus],
                        bf16=bool(gpus) and module.cuda.is_bf16_supported(),
                        nccl=module.distributed.is_nccl_available())
        say(**more)
    except BaseException as error:
        say(error=f"{{type(error).__name__}}: {{error}}".splitlines()[0])
"""
FILES = f"""{SAY}
from ffcv_ops.errors import UserError
from ffcv_ops.storage.index import describe
from ffcv_ops.storage.pairs import pair_remark
for path in sys.argv[1:]:
    try:
        if "\\n" in path:
            say(remark=pair_remark(*path.split("\\n")))
        else:
            beton = describe(path)
            say(samples=beton.samples, classes=beton.classes)
    except UserError as error:
        say(refused=str(error))
"""


def answers(code: str, arguments) -> dict[str, dict]:
    """What a process that runs `code` answers to each argument; {"error": why} for one on which it crashed or hung,
    after which the others are asked again."""
    found, left = {}, list(arguments)
    while left:
        try:
            command = [sys.executable, "-c", code, *left]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS)
            said, why = done.stdout, _last_line(done.stderr) or f"ended with status {done.returncode}"
        except subprocess.TimeoutExpired as hung:
            said, why = hung.stdout or b"", f"nothing happened for {SECONDS} s"
        lines = [line[len(MARK) :] for line in said.decode(errors="replace").splitlines() if line.startswith(MARK)]
        found |= {name: json.loads(line) for name, line in zip(left, lines, strict=False)}
        if len(lines) < len(left):
            found[left[len(lines)]] = {"error": why}
        left = left[len(lines) + 1 :]
    return found


def _last_line(said):
    return next((line for line in reversed(said.decode(errors="replace").splitlines()) if line.strip()), "")
