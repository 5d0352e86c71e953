"""`objective` names one of ours, or a module of the user's."""

from __future__ import annotations

import pytest
import torch

from fastfgssl.objectives import build_objective
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError

WORLD = World.alone(torch.device("cpu"))


def test_a_module_of_the_users_own_is_built(make_config, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "contrast.py").write_text(
        "def build(config, world, *, fresh):\n    return config.seed, fresh\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build_objective(make_config(objective="mine.contrast", seed=7), WORLD, fresh=False) == (7, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fgsl", r"objective = 'fgsl': must be one of fgssl, .*did you mean 'fgssl'\?"),
        ("nowhere.contrast", r"objective = 'nowhere.contrast': No module named 'nowhere'; .* PYTHONPATH"),
        ("os.path", r"objective = 'os.path': .*posixpath.py has no `build\(config, world, \*, fresh\)`"),
        ("./mine.py", r"objective = './mine.py': must be one of fgssl, .*or a module"),
        ("nowhere.contrast.py", r"objective = 'nowhere.contrast.py': No module named 'nowhere'"),
    ],
)
def test_what_cannot_be_built_is_one_line(make_config, name, message):
    with pytest.raises(UserError, match=message):
        build_objective(make_config(objective=name), WORLD)


@pytest.mark.parametrize(
    ("text", "error"), [("import nowhere_at_all", ModuleNotFoundError), ("import os\nos.nothing", AttributeError)]
)
def test_a_fault_of_the_module_itself_is_shown_as_it_is(make_config, tmp_path, monkeypatch, text, error):
    (tmp_path / f"of_{error.__name__}").mkdir()
    (tmp_path / f"of_{error.__name__}" / "contrast.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error):
        build_objective(make_config(objective=f"of_{error.__name__}.contrast"), WORLD)
