"""The public names of training, and where those that an earlier version had are now."""

from __future__ import annotations

import importlib

import pytest

from franca_fast import training
from franca_fast.errors import RenamedError


@pytest.mark.parametrize(
    "name", ["Config", "list_recipes", "load_config", "plan_training", "to_yaml"]
)
def test_a_name_that_moved_tells_its_new_place(name: str) -> None:
    with pytest.raises(RenamedError) as caught:
        getattr(training, name)
    package, _, new = str(caught.value).rpartition(" ")[2].rpartition(".")
    assert new == name and name in importlib.import_module(package).__all__
    assert hasattr(importlib.import_module(package), name)


def test_the_public_names_are_those_that_train() -> None:
    assert training.__all__ == ["PretrainResult", "finetune", "pretrain"]
