"""`--help` of the commands that train: ours first, with true defaults; nothing is lost in `--help-all`."""

import re

import pytest

from syvla.training import finetune, ppo, pretrain, value_warmup

COMMANDS = {"finetune": finetune, "pretrain": pretrain, "ppo": ppo, "value_warmup": value_warmup}


def printed(capsys, module, *arguments):
    with pytest.raises(SystemExit) as end:
        module.main(list(arguments))
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_what_the_command_is_for(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    module = COMMANDS[name]
    text = printed(capsys, module, "--help")
    first_sentence = module.__doc__.split("\n\n")[0].replace("\n", " ")
    assert first_sentence[:60] in " ".join(text.split())
    assert re.search(r"^  --output_dir TEXT", text, re.MULTILINE)
    assert "--help-all" in text
    assert "--fsdp " not in text, "of transformers, and rare"
    everything = printed(capsys, module, "--help-all")
    assert len(text.splitlines()) < len(everything.splitlines()) / 2
    ours = set(re.findall(r"^  --(\w+)", text, re.MULTILINE)) - {"help"}
    assert ours <= set(re.findall(r"--(\w+)", everything))
    assert "--fsdp " in everything


def test_help_gives_the_defaults_of_the_command_and_of_its_recipe(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("learning_rate: 5e-4\nmultimodal_share: 0.25\n")

    def default(text, name):
        return re.search(rf"--{name} .*?\(default: (\S+)\)", text, re.DOTALL)[1]

    text = printed(capsys, finetune, "--help")
    assert (default(text, "learning_rate"), default(text, "multimodal_share")) == ("3e-05", "0.3")
    assert default(text, "validate_data") == "True"
    text = printed(capsys, pretrain, "--help")
    assert (default(text, "learning_rate"), default(text, "multimodal_share")) == ("0.0001", "0.35")
    text = printed(capsys, finetune, "--config", str(recipe), "--help")
    assert (default(text, "learning_rate"), default(text, "multimodal_share")) == ("0.0005", "0.25")
    assert "accelerate launch training/finetune.py --config" in text, "an example of several GPUs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--nonsense", "2"], "unknown arguments: --nonsense 2"),
        (["--config", "RECIPE"], "unknown key 'learning_rates'; did you mean learning_rate?"),
        (["--config", "none.yaml"], "none.yaml is not a file"),
        (["--warmup_steps", "-5", "--output_dir", "x"], "warmup_steps"),
    ],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_line_is_answered_with_the_line_to_type(capsys, tmp_path, monkeypatch, name, words, said):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "RECIPE"
    recipe.write_text("learning_rates: 1\n")
    try:
        status = COMMANDS[name].main(words)
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    message, *_, example, more = capsys.readouterr().err.splitlines()
    command = f"syvla-{name.replace('_', '-')}"
    assert message.startswith(f"{command}: error: ")
    assert said in message
    assert example.startswith(f"for example: {command} --")
    assert more == f"options: {command} --help"
