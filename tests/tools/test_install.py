"""tools/install.py: its checks, the files it writes, and its messages; no test uses the network."""

import ast
import base64
import csv
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import venv
import zipfile
from collections import namedtuple
from importlib.metadata import distribution  # importing pip itself breaks setuptools' distutils
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install.py"
METADATA = """Metadata-Version: 2.1
Name: sal-detectron2
Version: 0.7.2
Summary: Detectron2
License-File: LICENSE
Requires-Dist: Pillow>=7.1
Requires-Dist: numpy<2
Requires-Dist: dataclasses; python_version < "3.7"
Requires-Dist: black
Requires-Dist: omegaconf<2.4,>=2.1
Provides-Extra: all
Requires-Dist: timm; extra == "all"
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """tools/install.py as a module whose repository is a temporary folder."""
    spec = importlib.util.spec_from_file_location("install_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "gpvit-installed")
    monkeypatch.setattr(module, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.setattr(module, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(module, "PROJECT", tmp_path / "project")
    (tmp_path / "project").mkdir()
    for name in ("requirements.txt", "constraints.txt", "project/pyproject.toml"):
        (tmp_path / name).write_text("one\n")
    return module


@pytest.fixture
def wheel(tmp_path):
    """A small wheel with all defects of the real one."""
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    info = "sal_detectron2-0.7.2.dist-info/"
    wheel_file = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n"
    files = {
        "detectron2/__init__.py": "__version__ = '0.6'\n",
        "detectron2/model_zoo/configs/Base.yaml": "MODEL: {}\n",
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "\x7fELF",
        "tools/__init__.py": "",
        "tools/train_net.py": "pass\n",
        info + "LICENSE": "Apache License\n",
        info + "METADATA": METADATA,
        info + "WHEEL": wheel_file,
        info + "top_level.txt": "detectron2\ntools\n",
        info + "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def scratch(install, tmp_path, monkeypatch):
    """A folder with a new virtual environment with pip, and the wheel of a package "small"."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    venv.create(tmp_path / "env")
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "pip").symlink_to(distribution("pip").locate_file("pip"))
    info = "small-1.dist-info/"
    files = {
        "small.py": "",
        info + "METADATA": "Metadata-Version: 2.1\nName: small\nVersion: 1\n",
        info + "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        info + "RECORD": "",
    }
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "small-1-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return tmp_path


@pytest.mark.parametrize(
    "setting", ["target = ELSEWHERE", "prefix = ELSEWHERE", "root = ELSEWHERE", "user = true"]
)
def test_location_settings_in_pip_conf_are_ignored_and_others_apply(
    install, scratch, monkeypatch, setting
):
    elsewhere = scratch / "elsewhere"
    (scratch / "pip.conf").write_text(
        f"[global]\nno-index = true\nfind-links =\n    {scratch}/none\n    {scratch}/wheels\n"
        f"[install]\n{setting.replace('ELSEWHERE', str(elsewhere))}\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(scratch / "pip.conf"))
    python = scratch / "env" / "bin" / "python"
    target = install.Target(python, scratch / "install.log", isolated=True)
    target.ignore_location_settings()
    target.pip("install", "small")
    assert target.version("small") == "1" and not elsewhere.exists()


# --- The Detectron2 wheel ---


def test_wheel_with_wrong_hash_raises(install, wheel):
    install.check_hash(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(install.Failure, match="not the file this project was tested with"):
        install.check_hash(wheel, install.DETECTRON2_SHA256)


def test_repacked_wheel_fits_every_python_3_and_is_marked_as_modified(install, wheel):
    copy = install.repack(wheel)
    assert copy.name == "sal_detectron2-0.7.2+pure-py3-none-any.whl"
    files = read(copy)
    assert b"Tag: py3-none-any\n" in files["sal_detectron2-0.7.2+pure.dist-info/WHEEL"]
    metadata = files["sal_detectron2-0.7.2+pure.dist-info/METADATA"].decode()
    assert "Name: sal-detectron2\nVersion: 0.7.2+pure\n" in metadata
    assert "Summary: Detectron2 (repacked without its compiled extension)\n" in metadata


def test_repacked_wheel_lacks_the_extension_and_the_tools_package(install, wheel):
    files = read(install.repack(wheel))
    info = "sal_detectron2-0.7.2+pure.dist-info/"
    expected = {"detectron2/__init__.py", "detectron2/model_zoo/configs/Base.yaml"}
    for name in ("LICENSE", "METADATA", "WHEEL", "top_level.txt", "RECORD"):
        expected.add(info + name)
    assert set(files) == expected
    assert files[info + "top_level.txt"] == b"detectron2\n"


def test_repacked_wheel_requires_what_detectron2_imports(install, wheel):
    metadata = read(install.repack(wheel))["sal_detectron2-0.7.2+pure.dist-info/METADATA"].decode()
    requirements = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    detectron2_imports = ["fvcore", "iopath", "numpy", "torch"]
    assert sorted(requirements) == sorted(
        [*detectron2_imports, "Pillow>=7.1", "omegaconf<2.4,>=2.1"]
    )
    assert "Provides-Extra" not in metadata


def test_record_of_the_repacked_wheel_is_correct(install, wheel):
    files = read(install.repack(wheel))
    name = "sal_detectron2-0.7.2+pure.dist-info/RECORD"
    rows = {row[0]: row[1:] for row in csv.reader(files[name].decode().splitlines())}
    assert set(rows) == set(files)
    assert rows.pop(name) == ["", ""]
    for path, (digest, size) in rows.items():
        expected = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).decode()
        expected = f"sha256={expected.rstrip('=')}"
        assert (digest, size) == (expected, str(len(files[path]))), path


# --- Python versions ---


def test_old_python_exits_with_one_line(install):
    with pytest.raises(SystemExit) as ended:
        install.check_python((3, 9, 18))
    text = str(ended.value.code)
    assert "3.10 or newer is required" in text and "3.9.18" in text and "\n" not in text


def test_untested_new_python_prints_a_warning(install, capsys):
    install.check_python((3, 13, 5))
    assert capsys.readouterr().err == ""
    install.check_python((3, 14, 0))
    assert "tested up to Python 3.13" in capsys.readouterr().err


def test_old_python_can_parse_the_script():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


# --- The stamp, and an existing .venv ---


@pytest.fixture
def installed(install):
    """An installation that looks complete; any further work on it is an error."""
    (install.VENV / "bin").mkdir(parents=True)
    (install.VENV / "bin" / "python").symlink_to(sys.executable)
    install.STAMP.write_text(install.fingerprint())

    def work(*_):
        raise AssertionError("installs again")

    install.make_venv = work
    return install


def test_second_run_does_nothing(installed, capsys):
    installed.install_venv()
    assert capsys.readouterr().out == ".venv is up to date\n"


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt", "project/pyproject.toml"])
def test_changed_requirements_are_installed(installed, name):
    (installed.ROOT / name).write_text("two\n")
    with pytest.raises(AssertionError, match="installs again"):
        installed.install_venv()


def test_other_python_version_recreates_the_installation(installed, monkeypatch):
    Version = namedtuple("Version", "major minor micro")
    monkeypatch.setattr(installed.sys, "version_info", Version(3, 99, 0))
    with pytest.raises(AssertionError, match="installs again"):
        installed.install_venv()


def test_interrupted_installation_continues(installed):
    installed.STAMP.write_text("unfinished")
    with pytest.raises(AssertionError, match="installs again"):
        installed.install_venv()


def test_venv_without_interpreter_is_installed_again(installed):
    (installed.VENV / "bin" / "python").unlink()
    (installed.VENV / "bin" / "python").symlink_to("/nowhere/python3")
    with pytest.raises(AssertionError, match="installs again"):
        installed.install_venv()


def test_folder_that_is_not_a_virtual_environment_is_not_touched(install):
    install.VENV.mkdir()
    (install.VENV / "thesis.txt").write_text("years of work")
    with pytest.raises(install.Failure, match="not a virtual environment"):
        install.make_venv(target(install))
    assert (install.VENV / "thesis.txt").exists()


def test_broken_venv_is_recreated(install, monkeypatch, capsys):
    (install.VENV / "bin").mkdir(parents=True)
    (install.VENV / "pyvenv.cfg").touch()
    (install.VENV / "bin" / "python").symlink_to("/nowhere/python3")
    success = namedtuple("CompletedProcess", "returncode stdout")(0, "")
    monkeypatch.setattr(install.subprocess, "run", lambda command, **_: success)
    broken = target(install)
    monkeypatch.setattr(broken, "ask", lambda code: "")
    install.make_venv(broken)
    assert "recreating it" in capsys.readouterr().out and not install.VENV.exists()


def test_only_packages_with_incomplete_files_are_forgotten(install, tmp_path):
    for name, size in (("complete", 3), ("truncated", 30)):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (tmp_path / f"{name}.py").write_text("a=1")
        (info / "RECORD").write_text(f"{name}.py,sha256=x,{size}\n")
    install.forget_incomplete_packages(tmp_path)
    assert (tmp_path / "complete-1.0.dist-info").exists()
    assert not (tmp_path / "truncated-1.0.dist-info").exists()


# --- The user's environment ---


def test_here_keeps_the_installed_torch_and_opencv(install, monkeypatch):
    install.REQUIREMENTS.write_text("torch>=2.6\ntorchvision\nopencv-python-headless\n# end\n")
    monkeypatch.setattr(install.Target, "has", lambda self, module: module == "cv2")
    monkeypatch.setattr(
        install.Target,
        "version",
        lambda self, package: "2.11.0+cu130" if package == "torch" else "",
    )
    seen = []

    def install_requirements(target, step, requirements, option, constraints, *_):
        seen.extend([requirements.read_text(), option, constraints.read_text()])

    monkeypatch.setattr(install, "install_requirements", install_requirements)
    monkeypatch.setattr(install, "install_detectron2", lambda *_: None)
    monkeypatch.setattr(install, "install_gpvit", lambda *_: None)
    install.install_here()
    assert seen == ["torch>=2.6\ntorchvision\n# end\n", "-c", "torch==2.11.0+cu130\n"]


# --- Failures ---


def target(install):
    return install.Target(Path(sys.executable), install.ROOT / "install.log", isolated=False)


def test_missing_network_is_reported(install, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(install.Failure, match="the package index cannot be reached"):
        target(install).pip("download", "--no-deps", "--dest", install.ROOT, "a-package")


def test_unknown_failure_of_pip_shows_its_last_lines_and_the_log(install):
    with pytest.raises(install.Failure, match=r"(?s)pip failed.*nowhere\.txt.*install\.log"):
        target(install).pip("install", "-r", install.ROOT / "nowhere.txt")


def test_full_disk_is_reported(install):
    error = (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    )
    assert install.reason(error, False).startswith("the disk is full")
    assert install.reason("killed", True).startswith("the disk is full")


@pytest.mark.parametrize(
    ("free", "options"), [(5, None), (10, ["--no-cache-dir"]), (50, [])], ids=str
)
def test_disk_space_is_checked_before_the_download(install, monkeypatch, tmp_path, free, options):
    usage = namedtuple("Usage", "total used free")(0, 0, free * 1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    folders = tmp_path, tmp_path / "project"  # on the same disk, so that the sizes add up
    if options is None:
        with pytest.raises(install.Failure, match="not enough disk space: 9 GB are needed"):
            install.check_disk_space(*folders)
    else:
        assert install.check_disk_space(*folders) == options


def test_missing_venv_module_names_the_system_package(install, monkeypatch):
    monkeypatch.setattr(
        install.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name
    )
    with pytest.raises(
        install.Failure, match=r"lacks the module ensurepip.*apt install python3\.\d+-venv"
    ):
        install.make_venv(target(install))


def test_failure_prints_one_line_without_traceback(install, monkeypatch, capsys):
    def fail():
        raise install.Failure("reason")

    monkeypatch.setattr(install, "install_venv", fail)
    monkeypatch.setattr(install.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 1
    assert capsys.readouterr().err == "install.py: reason\n"
