"""`syvla-serve` says in one line what is wrong, and ends."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "no token is set; give --token-file, or --insecure"),
        (["--think", "sometimes"], "think: expected on, off or a number of calls"),
        (["--token-file", "missing"], "token-file: cannot read missing"),
        (["--port", "99999"], "port below 65536"),
        (["--limits", "missing.yaml"], "limits: cannot read"),
        (["--camera", "center"], "camera: expected VIEW=CAMERA"),
        (["--async", "--think", "4"], "think: expected on or off with --async"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, message, capsys):
    from syvla.serving.serve_command import main

    assert main(["--model", "nowhere", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_missing_checkpoint_ends_the_command():
    command = [sys.executable, "-m", "syvla.serving.serve_command", "--model", "./nowhere", "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "syvla-serve: " in result.stderr
