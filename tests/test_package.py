"""The package from outside: what importing it costs and what it calls itself."""

import importlib.metadata
import subprocess
import sys

import pytest

import cdm

EXTRAS = ("tensorboard", "diffusers", "accelerate", "datasets", "webdataset", "transformers", "gradio", "fastapi")
HEAVY = ("torch", "numpy", "PIL", "matplotlib", "rich", "tyro", "safetensors", "jaxtyping")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_neither_torch_nor_an_extra():
    assert not modules_after("import cdm; cdm.__version__; cdm.UserError") & {*EXTRAS, *HEAVY}


def test_config_loads_without_torch():
    assert not modules_after("import cdm.config, cdm.errors") & {*EXTRAS, *HEAVY}


def test_cascade_loads_no_extra():
    assert not modules_after("import cdm; cdm.Cascade") & set(EXTRAS)


def test_version_agrees_with_the_distribution():
    assert importlib.metadata.version("cascaded-diffusion") == cdm.__version__


def test_exports_are_what_they_say():
    assert set(cdm.__all__) <= set(dir(cdm))
    assert all(getattr(cdm, name) is not None for name in cdm.__all__)
    assert issubclass(cdm.UserError, ValueError)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Cascades'"):
        cdm.Cascades  # noqa: B018
