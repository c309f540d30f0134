"""`syvla completion`, as bash takes it."""

import subprocess

from syvla.completion import commands, completion_lines


def completed(script: str, name: str, begun: str) -> list[str]:
    """What bash offers for the beginning of a word."""
    words = f"""$(complete -p {name} | sed "s/.*-W '\\(.*\\)' {name}/\\1/")"""
    line = f'{script}\ncompgen -W "{words}" -- {begun}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    return done.stdout.split()


def test_bash_completes_options_and_subcommands():
    script = "\n".join(completion_lines(["syvla", "syvla-eval", "syvla-finetune"]))
    assert completed(script, "syvla", "re") == ["recipes"]
    assert completed(script, "syvla-eval", "--epi") == ["--episodes", "--episode"]
    assert "--multimodal_share" in completed(script, "syvla-finetune", "--multimodal")
    assert "--fsdp_config" in completed(script, "syvla-finetune", "--fsdp"), "transformers' own too"


def test_every_installed_command_is_found():
    assert {"syvla", "syvla-eval", "syvla-serve", "syvla-finetune"} <= set(commands())
