"""How a batch calls a worker that a script holds, and that another process finds the same worker by that name."""

import copy
import json
import sys
from pathlib import Path

import forked
import pytest

from batchq.discovery import find_worker
from batchq.errors import ConfigurationError
from batchq.naming import name_of, settings_of
from batchq.worker import Plugin

MODULE = """
from functools import partial, wraps
from batchq import Plugin

async def ask(prompt): return prompt

def blocking(prompt): return prompt

def traced(function):
    @wraps(function)
    def call(*arguments): return function(*arguments)
    return call

around = traced(blocking)
short = lambda prompt: prompt

class Asker:
    def __init__(self, model="m"): self.model = model
    async def __call__(self, prompt): return self.model
    async def method(self, prompt): return self.model
    @staticmethod
    async def static(prompt): return prompt

asker = Asker()
_hidden = Asker("hidden")
plugin = Plugin(lambda endpoint: None, name="its own name")

def nested():
    async def inner(prompt): return prompt
    class Inner:
        async def __call__(self, prompt): return prompt
    return inner, Inner()

async def choose(prompt, *, model, options=None): return model
"""

# What each name must be, in a script and in a module: {} is script.py or the module's name.
NAMES = {
    "ask": "{}:ask",
    "blocking": "{}:blocking",
    "around": "{}:around",
    "traced(ask)": "{}:ask:5",
    "short": "{}:short",
    "asker": "{}:asker",
    "_hidden": "{}:_hidden",
    "Asker('other')": "{}:Asker:737185ea",
    "asker.method": "{}:asker.method",
    "Asker('other').method": "{}:Asker.method:737185ea",
    "Asker.static": "{}:Asker.static",
    "plugin": "{}:plugin",
    "nested()[0]": "{}:nested.<locals>.inner:29",
    "nested()[1]": "{}:nested.<locals>.Inner:31",
}


def print_names(expressions, *, of="sys.modules[__name__]"):
    """Code that prints the name of each expression."""
    return (
        "\nimport json, sys\nfrom batchq.naming import name_of, settings_of\n"
        f"if __name__ == '__main__':\n"
        f"    print(json.dumps([name_of(eval(text, vars({of}))) for text in {list(expressions)!r}]))\n"
    )


def run(directory, *arguments, **options):
    done = forked.run([sys.executable, *arguments], cwd=directory, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected(prefix):
    return [name.format(prefix) for name in NAMES.values()]


def test_what_a_script_defines_goes_by_the_scripts_name_from_everywhere(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script.py").write_text(MODULE + print_names(NAMES))
    assert run(tmp_path, "sub/script.py") == run(tmp_path / "sub", "script.py") == expected("script.py")


def test_what_a_script_imports_goes_by_its_module(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").write_text(MODULE)
    names = print_names(NAMES, of="sys.modules['package.mine']")
    (tmp_path / "script.py").write_text("import package.mine\nfrom package.mine import *\n" + names)
    assert run(tmp_path, "script.py") == expected("package.mine")


def test_a_module_that_is_run_goes_by_its_module(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").write_text(MODULE + print_names(NAMES))
    assert run(tmp_path, "-m", "package.mine") == expected("package.mine")


def test_what_has_no_file_goes_by_the_notebook(tmp_path):
    # What else carries its line carries a digest here, where Python knows the text.
    named = {text: name.format("notebook") for text, name in NAMES.items() if not name[-1].isdigit()}
    code = MODULE + print_names(named)
    assert run(tmp_path, "-c", code) == run(tmp_path, "-", input=code) == [*named.values()]


def test_a_worker_is_found_by_the_name_that_its_script_gave_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    served = [text for text in NAMES if "(" not in text]
    (tmp_path / "naming_script.py").write_text(MODULE + print_names(served))
    for name in run(tmp_path, "naming_script.py"):
        assert find_worker(name).name == name
    sys.modules.pop("naming_script")


def test_lambdas_carry_their_line(tmp_path):
    code = "from batchq.naming import name_of, settings_of\nnames = [name_of(lambda p: p)]\nprint(__import__('json').dumps([*names, name_of(\n  lambda p: 1)]))"
    (tmp_path / "script.py").write_text(code)
    assert run(tmp_path, "script.py") == ["script.py:<lambda>:2", "script.py:<lambda>:4"]


def test_a_partial_carries_its_arguments_whatever_their_order(tmp_path):
    partials = [
        "partial(choose, model='a')",
        "partial(choose, model='b')",
        "partial(choose, model='a', options={'x': 1, 'y': [2]})",
        "partial(choose, options={'y': [2], 'x': 1}, model='a')",
        "partial(partial(choose, model='b'), options={'x': 1, 'y': [2]}, model='a')",
    ]
    (tmp_path / "script.py").write_text(MODULE + print_names(partials))
    a, b, first, second, third = run(tmp_path, "script.py")
    assert all(
        name.startswith("script.py:choose:") and len(name) == len("script.py:choose:") + 8 for name in (a, b, first)
    )
    assert first == second == third
    assert len({a, b, first}) == 3


@pytest.mark.parametrize("argument", [object(), float("nan"), {1, 2}], ids=["object", "nan", "set"])
def test_a_partial_whose_arguments_no_json_can_hold_is_refused(argument):
    from functools import partial

    with pytest.raises(ConfigurationError, match=r"partial of .*: define a function that passes them instead"):
        name_of(partial(print_names, of=argument))


def test_a_plugin_that_no_variable_holds_goes_by_its_own_name():
    assert name_of(Plugin(lambda endpoint: None, name="its own name")) == "its own name"
    assert name_of(Plugin(lambda endpoint: None)) is None


def test_builtins_have_names():
    assert name_of(len) == "builtins:len"
    assert name_of(str.upper) == "builtins:str.upper"


CELLS = [
    "from batchq import Plugin\nfrom batchq.naming import name_of, settings_of\nasync def ask(prompt): return prompt",
    "names = [name_of(ask)]",
    "names += [name_of(lambda p: p.upper())]",
    "names += [name_of(lambda p: p.lower())]",
    "names += [name_of(lambda p: p.upper())]",
    "mine = Plugin(lambda endpoint: None)\nmine",
    "names += [name_of(mine)]",
]


def test_lambdas_of_different_cells_of_a_notebook_are_told_apart(tmp_path):
    code = (
        "import json\nfrom IPython.core.interactiveshell import InteractiveShell\n"
        "from IPython.utils.io import capture_output\n"
        "shell = InteractiveShell.instance(history_manager=None)\n"
        f"with capture_output():\n    results = [shell.run_cell(cell, store_history=True) for cell in {CELLS!r}]\n"
        "[result.raise_error() for result in results]\nprint(json.dumps(shell.user_ns['names']))"
    )
    environment = {"IPYTHONDIR": str(tmp_path / "ipython"), "HOME": str(tmp_path)}
    ask, upper, lower, again, mine = run(tmp_path, "-c", code, env=environment)
    assert (ask, mine) == ("notebook:ask", "notebook:mine")
    assert upper == again != lower
    assert upper.startswith("notebook:<lambda>:")


class Client:
    def __init__(self, model):
        self.model = model

    def ask(self, prompt):
        return self.model, prompt

    def __call__(self, prompt):
        return self.ask(prompt)


def closure(value, client=None):
    async def ask(prompt, *, temperature=0.5):
        return value, client, temperature

    return ask


@pytest.mark.parametrize(
    "value",
    ["a", 1, 0.5, None, True, b"x", ("a", 1), {"model": "a"}, ["a"], frozenset({"a"}), Client("a"), Path("a")],
    ids=lambda value: type(value).__name__,
)
def test_what_a_function_has_taken_along_tells_it_from_others(value):
    other = {"other": 1} if not isinstance(value, Client) else Client("b")
    assert settings_of(closure(value)) == settings_of(closure(copy.deepcopy(value)))
    assert settings_of(closure(value)) != settings_of(closure(other))


def test_objects_their_methods_and_defaults_count():
    assert settings_of(Client("a")) == settings_of(Client("a")) != settings_of(Client("b"))
    assert settings_of(Client("a").ask) != settings_of(Client("b").ask)
    assert settings_of(lambda p, n=1: p) != settings_of(lambda p, n=2: p)
    client = Client("a")
    before = settings_of(client)
    client.model = "b"
    assert settings_of(client) != before


def test_a_list_that_a_worker_fills_makes_it_no_other():
    log = []

    class Logging:
        def __init__(self):
            self.log = log

        async def __call__(self, prompt):
            self.log.append(prompt)

    worker = Logging()
    before = settings_of(worker)
    log.append("called")
    assert settings_of(worker) == before


def test_globals_that_a_scripts_function_reads_count_and_its_code_does_not(tmp_path):
    def settings(model, answer, directory="."):
        place = tmp_path / directory
        place.mkdir(exist_ok=True)
        (place / "script.py").write_text(
            "from batchq.naming import settings_of\n"
            f"model = {model!r}\nasync def ask(prompt):\n    return {answer} + model\nprint(settings_of(ask))\n"
        )
        done = forked.run([sys.executable, "script.py"], cwd=place, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert settings("a", "prompt") == settings("a", "prompt.upper()")
    assert settings("a", "prompt") != settings("b", "prompt")
    # Two projects may each have a function of that name.
    assert settings("a", "prompt") != settings("a", "prompt", "elsewhere")


def test_no_value_stands_in_the_settings():
    assert "sk-secret" not in str(settings_of(closure("sk-secret")))
