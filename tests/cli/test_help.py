"""The command line says what it can do, fast: nothing heavy is imported before a verb needs it."""

import re
import subprocess
import sys

import pytest
from command_line import CommandLine

from sprachbund import __version__
from sprachbund.cli.app import app

VERBS = ["init", "audit", "run", "demo", "probe", "group", "layers", "expand", "train", "evaluate", "report"]
HEAVY = {"torch", "transformers", "datasets", "scipy", "matplotlib", "pyarrow", "babel", "langcodes", "safetensors"}


def plain(text: str) -> str:
    """Text without the boxes and line breaks of the terminal."""
    return " ".join(re.sub(r"[─│╭╮╰╯]", " ", text).split())


def test_every_verb_is_listed_in_order(cli: CommandLine) -> None:
    said = cli("--help")
    assert said.status == 0
    listed = [line.split()[1] for line in said.out.splitlines() if re.match(r"│ [a-z]+ ", line)]
    assert listed[: len(VERBS)] == VERBS
    assert "one expert per language group" in plain(said.out)


@pytest.mark.parametrize("verb", [command.callback.__name__ for command in app.registered_commands if command.callback])
def test_every_verb_shows_an_example_of_itself(verb: str, cli: CommandLine) -> None:
    said = cli(verb, "--help")
    assert said.status == 0
    assert f"Example: sprachbund {verb}" in plain(said.out)


@pytest.mark.parametrize("verb", ["run", "demo", "group", "layers", "evaluate", "audit"])
def test_what_a_machine_may_read_comes_as_json(verb: str, cli: CommandLine) -> None:
    assert "--json" in plain(cli(verb, "--help").out)


def test_nothing_asked_gives_the_help(cli: CommandLine) -> None:
    said = cli()
    assert said.status == 2
    assert "Usage: " in plain(said.out + said.err)


def test_the_version(cli: CommandLine) -> None:
    assert cli("--version").out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rum",), "No such command 'rum'."),
        (("run",), "Missing argument 'recipe'."),
        (("run", "r.yaml", "--sed", "1"), "No such option: --sed"),
        (("run", "r.yaml", "--seed", "x"), "Invalid value for '--seed': "),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...], message: str, cli: CommandLine) -> None:
    said = cli(*arguments)
    assert said.status == 2
    assert message in plain(said.err)
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "program",
    [
        "import sprachbund",
        "import sprachbund.recipe, sprachbund.recipe_file, sprachbund.languages",
        "sys.argv[1:] = ['--help']\nfrom sprachbund.cli import main\ntry: main()\nexcept SystemExit: pass",
        "sys.argv[1:] = ['run', '--help']\nfrom sprachbund.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
    ids=["import", "recipe", "help", "help of a verb"],
)
def test_nothing_heavy_is_imported_for_help(program: str) -> None:
    program = f"import sys\n{program}\nprint(sorted(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout.splitlines()[-1]))
    assert "sprachbund" in loaded
    assert loaded & HEAVY == set()


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "sprachbund", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__}\n"
