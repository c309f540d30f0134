"""`syvla env` and `syvla recipes`."""

import json
import sys
from importlib.metadata import version

import pytest
import yaml

from syvla.command import environment_report, main, recipe_files


@pytest.mark.smoke
def test_env_tells_what_is_installed_here(capsys):
    main(["env", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["torch"] == version("torch")
    assert report["python"].startswith("{}.{}.{}".format(*sys.version_info[:3]))
    assert report["syvla"].startswith(version("syvla"))
    main(["env"])
    assert f"- transformers: {version('transformers')}\n" in capsys.readouterr().out


def test_env_reports_a_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` raise
    report = environment_report()
    assert report["torch import"].startswith("fails: ModuleNotFoundError")
    assert "accelerator" not in report


def test_every_recipe_is_listed_and_says_what_it_is_for(capsys):
    main(["recipes", "list"])
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in capsys.readouterr().out.splitlines()}
    assert {"finetune.yaml", "tables/rl.yaml", "accelerate_configs/zero2.yaml"} <= lines.keys()
    assert all(lines.values()), "each has a first comment"


@pytest.mark.parametrize("name", ["finetune.yaml", "finetune", "accelerate_configs/ddp.yaml", "rl"])
def test_a_recipe_is_copied_and_never_over_a_file(name, tmp_path, capsys):
    main(["recipes", "copy", name, str(tmp_path)])
    target = next(tmp_path.iterdir())
    assert capsys.readouterr().out.strip() == str(target)
    source = next(path for key, path in recipe_files().items() if key.endswith(target.name))
    assert target.read_bytes() == source.read_bytes()
    assert yaml.safe_load(target.read_text())
    target.write_text("mine: 1\n")
    with pytest.raises(SystemExit) as end:
        main(["recipes", "copy", name, str(tmp_path)])
    assert end.value.code == 2
    assert "exists; name another file, or replace it with --force" in capsys.readouterr().err
    assert target.read_text() == "mine: 1\n"
    main(["recipes", "copy", name, str(target), "--force"])
    assert target.read_bytes() == source.read_bytes()


def test_a_recipe_that_is_not_there_names_those_that_are(capsys):
    with pytest.raises(SystemExit):
        main(["recipes", "path", "fine"])
    assert "'fine': expected one of adapter.yaml, demo.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recipes", "copy", "finetune", "nowhere/mine.yaml"])
    assert "nowhere is no folder; make it first" in capsys.readouterr().err
