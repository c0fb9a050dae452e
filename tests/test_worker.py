"""A process that may die of a question, or be interrupted at one, answers the next."""

import signal

import pytest

from llmopt.worker import Worker

ECHO = """\
import json, os, sys, time
for line in sys.stdin:
    question = json.loads(line)
    if question == "die":
        os.abort()
    if question == "wait":
        time.sleep(1)
    print(json.dumps([question, os.getpid()]), flush=True)
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    (tmp_path / "echo_for_tests.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("echo_for_tests") as worker:
        yield worker


def test_one_process_answers_all_questions(echo):
    first, second = echo.ask({"a": 1}), echo.ask("é")
    assert (first[0], second[0]) == ({"a": 1}, "é")
    assert first[1] == second[1]


def test_a_death_is_no_answer_and_another_process_takes_over(echo):
    _, process = echo.ask(1)
    assert echo.ask("die") is None
    said, other = echo.ask(2)
    assert said == 2 and other != process


def test_the_answer_to_an_interrupted_question_is_not_taken_for_the_next(echo):
    def interrupt(*_):
        raise KeyboardInterrupt

    echo.ask(1)  # it has started
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            echo.ask("wait")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert echo.ask(3)[0] == 3
