"""Every exercise: its solution passes, its stub is not attempted, and each wrong answer is named."""

import importlib

import pytest

from recnb.lessons import exercise

NUMBERS = ("01", "02", "03", "04", "05", "06", "07", "08", "09", "10")
CASES = {number: importlib.import_module(f"test_exercises_{number}") for number in NUMBERS}
TASKS = [(number, name) for number, cases in CASES.items() for name in cases.EXERCISES]
WRONG = [(number, *answer) for number, cases in CASES.items() for answer in cases.WRONG]


@pytest.mark.parametrize(("number", "name"), TASKS)
def test_solution_passes(number, name, capsys):
    task = CASES[number].EXERCISES[name]
    assert task.check(task.solution) is None
    assert exercise(f"{number}.{name}", task.solution) is task.solution
    assert f"✓ right: {task.praise}" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "name"), TASKS)
def test_untouched_stub_is_not_attempted(number, name, capsys):
    cases = CASES[number]
    assert exercise(f"{number}.{name}", cases.STUBS[name]) is cases.EXERCISES[name].solution
    assert "not attempted yet" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "name", "answer", "words"), WRONG)
def test_wrong_answer_is_named(number, name, answer, words, capsys):
    assert exercise(f"{number}.{name}", answer) is CASES[number].EXERCISES[name].solution
    assert words in capsys.readouterr().out
