"""`import otterlm` is fast and lists what it gives; Transformers' auto classes know exported folders in any order of
imports; the public names and the command's help are those of `surface.txt`."""

import ast
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import add_tiny_adapter, tiny_base
from surface import FILE, commands, surface
from transformers import AutoConfig

import otterlm
from otterlm.engines.exported import config_class, export
from otterlm.model import OtterModel

HEAVY = "{'torch', 'transformers', 'datasets', 'accelerate', 'numpy'}"


def python(code: str) -> str:
    """Returns the output of a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- names -------------------------------------------------------------------------------------------------------------


def test_importing_otterlm_loads_no_library() -> None:
    assert python(f"import sys, otterlm; print({HEAVY} & set(sys.modules))") == "set()\n"


def test_names() -> None:
    assert sorted(otterlm._MODULE_OF) == sorted(otterlm.__all__)
    assert set(otterlm.__all__) <= set(dir(otterlm))
    for name, module in otterlm._MODULE_OF.items():
        assert getattr(otterlm, name) is getattr(sys.modules[module], name)
        assert name in sys.modules[module].__dict__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = otterlm.Nothing
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec("from otterlm import Nothing")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(str(otterlm.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == otterlm._MODULE_OF


def test_a_star_import_and_a_submodule() -> None:
    assert python("from otterlm import *; print(OtterModel.__name__)") == "OtterModel\n"
    assert python("import otterlm.files, otterlm; print(otterlm.OtterConfig.__name__)") == "OtterConfig\n"
    assert python("from otterlm import decoding; print(decoding.__name__)") == "otterlm.decoding\n"


# -- exported folders --------------------------------------------------------------------------------------------------

AUTO = "transformers.models.auto"
ORDERS = [
    "import otterlm; from transformers import AutoConfig, AutoModelForCausalLM",
    "from transformers import AutoConfig, AutoModelForCausalLM; import otterlm",
    "import transformers; import otterlm; from transformers import AutoConfig, AutoModelForCausalLM",
    f"import {AUTO}.modeling_auto; import otterlm; from transformers import AutoConfig, AutoModelForCausalLM",
    f"import {AUTO}.configuration_auto; import otterlm; from transformers import AutoModelForCausalLM, AutoConfig",
    f"import otterlm; import {AUTO}.modeling_auto; from transformers import AutoConfig, AutoModelForCausalLM",
    f"import otterlm; import {AUTO}.auto_factory; from transformers import AutoConfig, AutoModelForCausalLM",
    "import otterlm; from transformers import AutoTokenizer, AutoModelForCausalLM, AutoConfig",
    "import otterlm.errors; from transformers import AutoModelForCausalLM, AutoConfig",
    "from otterlm import OtterModel; from transformers import AutoModelForCausalLM, AutoConfig",
    "import otterlm.engines.exported; from transformers import AutoModelForCausalLM, AutoConfig",
    "from transformers import AutoModelForCausalLM, AutoConfig; import otterlm.engines.exported",
    "import threading, otterlm\n"
    "threads = [threading.Thread(target=exec, args=(f'from transformers import {name}',))"
    " for name in ('AutoModelForCausalLM', 'AutoConfig', 'AutoTokenizer', 'LlamaForCausalLM')]\n"
    "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
    "from transformers import AutoConfig, AutoModelForCausalLM",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Makes an exported folder of a tiny base and a reward adapter."""
    folder = tmp_path_factory.mktemp("exported")
    tiny_base().save_pretrained(folder / "base")
    model = OtterModel(tiny_base())
    add_tiny_adapter(model, "reward")
    model.save_pretrained(folder / "reward", "reward")
    export(str(folder / "base"), {"reward": folder / "reward"}, folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    "order", [pytest.param(order, marks=[pytest.mark.slow] if index > 1 else []) for index, order in enumerate(ORDERS)]
)
def test_the_auto_classes_know_exported_folders(exported, order) -> None:
    code = f"""
{order}
config = AutoConfig.from_pretrained({str(exported)!r})
model = AutoModelForCausalLM.from_pretrained({str(exported)!r})
again = AutoModelForCausalLM.from_pretrained({str(exported)!r}, config=config)
print(type(config).__name__, config.model_type, list(config.otter), type(model).__name__, type(again).__name__)
"""
    assert python(code) == "OtterLlamaConfig otter_llama ['reward'] OtterModel OtterModel\n"


def test_a_configuration_in_a_process_that_imports_nothing(exported, tmp_path) -> None:
    """As engines send it to their workers."""
    configs = AutoConfig.from_pretrained(exported), config_class("smollm3")()  # a listed family, and another
    (tmp_path / "configs.pickle").write_bytes(pickle.dumps(configs))
    code = f"""
import pickle
config, other = pickle.load(open({str(tmp_path / "configs.pickle")!r}, "rb"))
assert other.model_type == "otter_smollm3"
from transformers import AutoModelForCausalLM
print(config.model_type, type(AutoModelForCausalLM.from_pretrained({str(exported)!r}, config=config)).__name__)
"""
    assert python(code) == "otter_llama OtterModel\n"


def test_auto_classes_that_are_imported_twice() -> None:
    code = """
import importlib, otterlm, transformers
from transformers.models.auto import configuration_auto
first = configuration_auto.CONFIG_MAPPING
importlib.reload(configuration_auto)
print(first is configuration_auto.CONFIG_MAPPING, "otter_llama" in configuration_auto.CONFIG_MAPPING)
"""
    assert python(code) == "False True\n"


# -- the command -------------------------------------------------------------------------------------------------------


def otter(*arguments: str) -> str:
    """Returns the output of the command in a fresh process that fails where a library is loaded."""
    return python(f"""
import sys
from otterlm.cli import main
sys.argv = ["otter", *{arguments!r}]
try:
    main()
except SystemExit as exit:
    assert exit.code == 0
assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)
""")


def test_help_and_version_load_no_library() -> None:
    assert otter("--version") == f"otter {otterlm.__version__}\n"
    assert "verify" in otter("--help")
    assert "overhead" in otter("bench", "--help")


def test_the_list_of_verbs_has_the_first_line_of_each_help() -> None:
    for name, group in commands():
        for verb, listed in getattr(group, "verbs", {}).items():
            help = " ".join(str(listed.load().help).split("\n\n")[0].split())
            assert help.startswith(listed.help), f"{name} {verb}"


def test_the_surface_is_what_the_file_says() -> None:
    assert surface() == FILE.read_text(), "run python tests/surface.py if the change is wanted"


@pytest.mark.parametrize("columns", ["20", "200"])
def test_the_surface_does_not_depend_on_the_terminal(monkeypatch, columns) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert surface() == FILE.read_text()


# -- pages -------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


def test_the_reference_names_what_there_is_and_all_that_is_public() -> None:
    named = {}
    for path in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), flags=re.MULTILINE):
        name = path.rpartition(".")[2]
        named[name] = pkgutil.resolve_name(path)  # an object, or a whole module
        assert named[name].__doc__, path
    assert set(otterlm.__all__) <= set(named)
    assert all(named[name] is getattr(otterlm, name) for name in otterlm.__all__)


def test_the_map_of_contributing_names_every_module() -> None:
    map = (ROOT / "CONTRIBUTING.md").read_text().split("\n## ")[1]
    rows = re.findall(r"^\| (`.*?) \|", map, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    there = {path.name + "/" * path.is_dir() for path in (ROOT / "src" / "otterlm").iterdir()}
    assert named == there - {"__init__.py", "__pycache__/", "py.typed"}
