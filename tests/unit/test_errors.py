"""The error hierarchy: one line, the right exit status, the tree at the top of the module."""

import inspect
import pickle

import pytest

from wsdm_ray import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_message_is_one_line():
    assert str(errors.DataError("a\n  b\tc ")) == "a b c"


@pytest.mark.parametrize("cls", CLASSES)
def test_each_is_a_user_error_that_crosses_processes(cls):
    assert issubclass(cls, errors.WsdmRayError)
    assert cls("x").exit_status == (2 if cls is errors.ConfigError else 1)
    copy = pickle.loads(pickle.dumps(cls("x y")))
    assert (type(copy), str(copy)) == (cls, "x y")


def test_tree_in_the_docstring_is_complete():
    raised = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)]
    assert sorted(cls.__name__ for cls in raised) == sorted(errors.__all__)
    for cls in CLASSES:
        assert cls.__name__ in (errors.__doc__ or "")
