"""Stand-ins for the libraries that the doctor imports, which make a run quick and say what a test wants to hear."""

import pytest

from tools.doctor import __main__ as command
from tools.doctor import installation, questions

TORCH = """
from types import SimpleNamespace as Space
cuda = Space(device_count=lambda: {gpus}, is_bf16_supported=lambda: True,
             get_device_properties=lambda i: Space(name="NVIDIA H100", total_memory=80 * 2**30))
version = Space(cuda={cuda!r})
distributed = Space(is_nccl_available=lambda: {nccl})
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A function that puts Python code in place of a library; at first all of them import and there is no GPU."""
    folder = tmp_path / "stand_ins"
    folder.mkdir()

    def put(name, code=""):
        (folder / f"{name}.py").write_text(code)

    for name in installation.LIBRARIES:
        put(name)
    put("torch", TORCH.format(gpus=0, cuda=None, nccl=False))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return put


@pytest.fixture
def torch_with(stand_ins):
    """A function that puts a torch in place that has so many GPUs."""
    return lambda **has: stand_ins("torch", TORCH.format(**has))


@pytest.fixture
def found(stand_ins):
    """A function that gives the findings about one thing."""
    return lambda what, files=(), cfg=None: [row for row in command.examine(files, cfg) if row.what == what]


@pytest.fixture
def answers_of(monkeypatch):
    """A function that sets what is answered to the question about files."""
    real = questions.answers

    def put(files):
        given = {str(path): answer for path, answer in files.items()}
        answers = lambda code, names: given if code == questions.FILES else real(code, names)  # noqa: E731
        monkeypatch.setattr(questions, "answers", answers)

    return put
