import inspect

from clusterucb_core import errors

LEAVES = [
    leaf for _, leaf in inspect.getmembers(errors, inspect.isclass) if leaf.__module__ == errors.__name__
]


def test_every_error_stems_from_one_base():
    assert len(LEAVES) > 5
    assert all(issubclass(leaf, errors.ClusterUcbError) for leaf in LEAVES)


def test_the_tree_in_the_docstring_names_every_error():
    assert errors.__doc__ is not None
    assert {leaf.__name__ for leaf in LEAVES} == {
        word for word in errors.__doc__.split() if word in vars(errors)
    }


def test_every_error_says_what_it_means():
    assert all(leaf.__doc__ for leaf in LEAVES)
