"""The command line as a whole: help, exit codes, errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from diffusion_policy_ros.cli import main as cli
from diffusion_policy_ros.errors import UserError, UserErrors

MAIN = [sys.executable, "-m", "diffusion_policy_ros.cli.main"]


class Verb:
    """A verb's module that does what a test tells it to."""

    def __init__(self, run):
        self.run = run

    def add_parser(self, subparsers):
        subparsers.add_parser("verb", help="a verb of the test").set_defaults(run=self.run)


@pytest.fixture
def verb(monkeypatch):
    """Make `verb` the only verb, with the given `run`."""

    def install(run):
        monkeypatch.setattr(cli, "VERBS", {"verb": "verb"})
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: Verb(run))

    return install


def raising(error):
    """Return a verb's `run` that raises."""

    def run(args):
        raise error

    return run


def test_help_lists_every_verb_with_its_line(capsys):
    """`--help` shows each verb and one line of help for each."""
    with pytest.raises(SystemExit) as exited:
        cli.main(["--help"])
    assert exited.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name in cli.VERBS:
        assert any(words[:1] == [name] and len(words) > 1 for words in lines), name


def test_help_answers_at_once():
    """`--help` imports nothing that is installed, not even NumPy: a third of a second's cause."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from diffusion_policy_ros.cli import main\n"
        "main.build_parser(main.VERBS)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"diffusion_policy_ros", *sys.stdlib_module_names}


def test_a_verb_imports_only_itself():
    """Naming a verb does not import the others."""
    code = (
        "import sys; from diffusion_policy_ros.cli import main\n"
        "main.build_parser(['contract'])\n"
        "print([m for m in sys.modules if m.startswith('diffusion_policy_ros.cli.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "cli.doctor" not in done.stdout
    assert "cli.contract" in done.stdout


def test_a_verb_gives_the_exit_code(verb):
    """What `run` returns is the exit code."""
    verb(lambda args: 7)
    assert cli.main(["verb"]) == 7


def test_a_user_error_is_one_line_and_exit_code_2(verb, capsys):
    """A user's mistake prints what, where and the cure, without a traceback."""
    verb(raising(UserError("is no bag", where="talk.txt", cure="give a rosbag2 directory")))
    assert cli.main(["verb"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: talk.txt: is no bag; give a rosbag2 directory\n"
    assert captured.out == ""


def test_many_user_errors_are_one_line_each(verb, capsys):
    """Several mistakes at once are printed one a line, each with the prefix."""
    verb(raising(UserErrors([UserError("a"), UserError("b", where="x")])))
    assert cli.main(["verb"]) == 2
    assert capsys.readouterr().err == "error: a\nerror: x: b\n"


def test_an_interruption_is_exit_code_130(verb, capsys):
    """Ctrl-C ends without a traceback, with a shell's exit code."""
    verb(raising(KeyboardInterrupt()))
    assert cli.main(["verb"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(verb):
    """Any other exception is ours and is not hidden."""
    verb(raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["verb"])


@pytest.mark.parametrize(
    ("number", "cure"), [(errno.EACCES, "permissions"), (errno.ENOSPC, "make room")]
)
def test_what_the_system_refuses_is_a_users_error(verb, capsys, number, cure):
    """No permission, a full disk: one line with the path and the cure."""
    verb(raising(OSError(number, os.strerror(number), "/a/file")))
    assert cli.main(["verb"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: /a/file: ") and cure in line and line.count("\n") == 1


def test_a_name_that_is_too_long_is_a_users_error(capsys):
    """A path is checked with the system's help, not ours."""
    assert cli.main(["contract", "check", "a" * 300]) == 2
    assert "too long" in capsys.readouterr().err


def test_an_unknown_verb_names_the_valid_ones(capsys):
    """A misspelt verb exits with 2 and lists what there is."""
    with pytest.raises(SystemExit) as exited:
        cli.main(["contrakt"])
    assert exited.value.code == 2
    assert "contract" in capsys.readouterr().err


def test_what_argparse_refuses_is_one_line(capsys):
    """Without the whole usage, and with where to find it."""
    with pytest.raises(SystemExit) as exited:
        cli.main(["eval", "runs/first", "--threads", "x"])
    assert exited.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: argument --threads: ") and line.count("\n") == 1
    assert line.endswith("; see diffusion-policy eval --help\n")


def test_a_reader_that_leaves_is_no_error():
    """`diffusion-policy … | head -0` prints no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        done = subprocess.run(
            [*MAIN, "contract", "check", "mini_lift"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == cli.EXIT_BROKEN_PIPE
    assert done.stderr == ""


def test_an_error_cannot_command_the_terminal():
    """What a damaged file holds is shown as text, on one line."""
    error = UserError("got '\x1b[2J\u2028\x00é'", "a\nb")
    assert str(error) == "a b: got '\\x1b[2J \\x00é'"
    assert len(str(UserError("a" * 5000, "file", "use another"))) < 600


TERMINATED = """
import sys, time
from diffusion_policy_ros.cli import doctor, main

def run(args):
    try:
        print("at work", flush=True)
        time.sleep(1000)
    finally:
        print("put away", flush=True)

doctor.run = run
sys.argv = ["diffusion-policy", "doctor"]
sys.exit(main.main())
"""


def test_sigterm_puts_away_what_was_begun():
    """As Ctrl-C does: nodes that a demo started, and folders that are half written."""
    with subprocess.Popen(
        [sys.executable, "-c", TERMINATED], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "at work\n"
        process.terminate()
        assert process.stdout.read() == "put away\n"
    assert process.returncode == cli.EXIT_INTERRUPTED
