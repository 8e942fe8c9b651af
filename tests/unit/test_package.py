"""The front of the package: public names that are imported when they are used, and help on each of them."""

import inspect
import subprocess
import sys

import pytest

import wsdm_ray
from jobs._registry import JOBS
from wsdm_ray import api

PUBLIC = [
    "Comparison", "Judge", "WsdmRayError", "arena", "ensemble", "evaluate", "prepare", "pseudolabel",
    "quantize", "score", "train",
]  # fmt: skip


def test_the_public_names_are_exactly_these():
    assert wsdm_ray.__all__ == PUBLIC
    assert {name for name in dir(wsdm_ray) if name in PUBLIC} == set(PUBLIC)
    assert sorted(api.__all__) == sorted(set(JOBS) - {"quickstart"}), "every job is a function, but the demo"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_imported_when_it_is_used(name):
    found = getattr(wsdm_ray, name)
    assert found.__name__ == name
    assert len(inspect.getdoc(found).split()) > 5


def test_there_is_no_other_name():
    with pytest.raises(AttributeError, match="module 'wsdm_ray' has no attribute 'scor'"):
        wsdm_ray.scor  # noqa: B018


def test_the_package_alone_loads_no_library():
    code = """
import sys
before = set(sys.modules)
import wsdm_ray
names = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(names - {"wsdm_ray"} - sys.stdlib_module_names))
from wsdm_ray import evaluate, prepare, score, train
print(sorted({"torch", "ray", "pandas", "transformers"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split("\n")[:2] == ["[]", "[]"]
