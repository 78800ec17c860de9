"""Libraries that do not answer."""

from tools.doctor import installation, questions


def test_a_library_that_hangs(stand_ins, monkeypatch):
    monkeypatch.setattr(questions, "SECONDS", 2)
    stand_ins("torchvision", "import time; time.sleep(60)")
    answers = questions.answers(questions.IMPORTS, installation.LIBRARIES)
    assert "nothing happened" in answers["torchvision"].pop("error")
    assert not any("error" in answer for answer in answers.values())
