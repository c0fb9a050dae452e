import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from llmopt import config
from llmopt.config import ROOT, InputError


def test_scales_load_and_differ():
    smoke, classroom = config.scale("smoke"), config.scale("classroom")
    assert smoke.name == "smoke" and smoke.train_steps < classroom.train_steps


def test_scale_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("LLMOPT_SCALE", "classroom")
    assert config.scale().name == "classroom"


def test_unknown_scale_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'classroom'"):
        config.scale("clasroom")


def test_a_preset_file_with_foreign_keys_is_refused(tmp_path, monkeypatch):
    shutil.copytree(config.ROOT / "configs", tmp_path / "configs")
    path = tmp_path / "configs" / "smoke.toml"
    path.write_text(path.read_text().replace("vocabulary", "vocabularies"))
    monkeypatch.setattr(config, "ROOT", tmp_path)
    with pytest.raises(InputError, match="vocabularies, vocabulary|vocabulary, vocabularies"):
        config.scale("smoke")


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'minsize'"):
        config.check_protocol("minsized")


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "deep" / "file"
    config.write_atomic(path, b"old")
    with pytest.raises(TypeError):
        config.write_atomic(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose code a test may edit."""
    shutil.copytree(config.ROOT / "llmopt", tmp_path / "llmopt")
    monkeypatch.setattr(config, "ROOT", tmp_path)
    config._closure.cache_clear()
    yield tmp_path / "llmopt"
    config._closure.cache_clear()


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    config._closure.cache_clear()


def test_fingerprint_sees_code_of_imports_but_no_prose(package):
    before = config.fingerprint("sandbox"), config.fingerprint("metrics")
    edited(package / "llvm.py", '"""LLVM 22 in process', '"""LLVM in process')
    assert (config.fingerprint("sandbox"), config.fingerprint("metrics")) == before
    edited(package / "llvm.py", '"LLVMGetVersion": (None', '"LLVMGetVersion": (_INT')
    assert config.fingerprint("sandbox") != before[0]  # sandbox imports llvm
    assert config.fingerprint("metrics") == before[1]  # metrics does not


def test_a_device_is_written_to_and_a_full_one_says_so():
    config.write_atomic(Path("/dev/null"), b"gone")
    with pytest.raises(OSError, match="No space left"):
        config.write_atomic(Path("/dev/full"), b"x" * 10)
    assert Path("/dev/full").is_char_device() and Path("/dev/null").is_char_device()


def test_binder_and_conda_install_the_same_lock():
    binder = ROOT / ".binder"
    named = re.findall(r"^-r (.*)", (binder / "requirements.txt").read_text(), re.M)
    assert [(binder / name).resolve() for name in named] == [ROOT / "requirements.lock"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "-r requirements.lock" in conda[-1]["pip"]
    version = (binder / "runtime.txt").read_text().strip().removeprefix("python-")
    assert f"python={version}" in conda


def test_binder_begins_small_but_can_be_told_otherwise():
    start = [ROOT / ".binder" / "start", "sh", "-c", "echo $LLMOPT_SCALE"]
    env = {name: value for name, value in os.environ.items() if name != "LLMOPT_SCALE"}
    for given, scale in (({}, "smoke"), ({"LLMOPT_SCALE": "classroom"}, "classroom")):
        done = subprocess.run(start, env=env | given, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == scale
