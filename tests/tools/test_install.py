"""tools/install.py: what it refuses, what it writes, and what it says. Nothing is installed and no network is used."""

import ast
import base64
import csv
import hashlib
import importlib.util
import os
import shutil
import sys
import venv
import zipfile
from collections import namedtuple
from importlib.metadata import distribution  # importing pip would take setuptools its distutils
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install.py"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """tools/install.py as a module whose repository is a folder of the test's own."""
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
    """A small wheel with every fault of the real one."""
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    info = "sal_detectron2-0.7.2.dist-info/"
    files = {
        "detectron2/__init__.py": "__version__ = '0.6'\n",
        "detectron2/model_zoo/configs/Base.yaml": "MODEL: {}\n",
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "\x7fELF",
        "tools/__init__.py": "",
        "tools/train_net.py": "pass\n",
        info + "LICENSE": "Apache License\n",
        info
        + "METADATA": "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\nSummary: Detectron2\n"
        "License-File: LICENSE\nRequires-Dist: Pillow>=7.1\nRequires-Dist: numpy<2\n"
        'Requires-Dist: dataclasses; python_version < "3.7"\nRequires-Dist: black\n'
        "Requires-Dist: omegaconf<2.4,>=2.1\nProvides-Extra: all\n"
        'Requires-Dist: timm; extra == "all"\n',
        info
        + "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n",
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
    """A new virtual environment with this one's pip, and a folder with the wheel of a package "small"."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
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
def test_a_pip_conf_sends_no_package_elsewhere_and_its_index_counts(
    install, scratch, monkeypatch, setting
):
    elsewhere = scratch / "elsewhere"
    (scratch / "pip.conf").write_text(
        f"[global]\nno-index = true\nfind-links =\n    {scratch}/none\n    {scratch}/wheels\n"
        f"[install]\n{setting.replace('ELSEWHERE', str(elsewhere))}\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(scratch / "pip.conf"))
    target = install.Target(
        scratch / "env" / "bin" / "python", scratch / "install.log", isolated=True
    )
    target.leave_settings_behind()
    target.pip("install", "small")
    assert target.version("small") == "1" and not elsewhere.exists()


# --- the Detectron2 wheel ---


def test_a_wheel_with_another_hash_is_refused(install, wheel):
    install.check_hash(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(install.Failure, match="not the file this project was tested with"):
        install.check_hash(wheel, install.DETECTRON2_SHA256)


def test_the_repacked_wheel_suits_every_python_and_says_that_it_is_changed(install, wheel):
    copy = install.repack(wheel)
    assert copy.name == "sal_detectron2-0.7.2+pure-py3-none-any.whl"
    files = read(copy)
    assert b"Tag: py3-none-any\n" in files["sal_detectron2-0.7.2+pure.dist-info/WHEEL"]
    metadata = files["sal_detectron2-0.7.2+pure.dist-info/METADATA"].decode()
    assert "Name: sal-detectron2\nVersion: 0.7.2+pure\n" in metadata
    assert "Summary: Detectron2 (repacked without its compiled extension)\n" in metadata


def test_the_repacked_wheel_has_neither_the_extension_nor_the_tools_package(install, wheel):
    files = read(install.repack(wheel))
    info = "sal_detectron2-0.7.2+pure.dist-info/"
    assert set(files) == {"detectron2/__init__.py", "detectron2/model_zoo/configs/Base.yaml"} | {
        info + name for name in ("LICENSE", "METADATA", "WHEEL", "top_level.txt", "RECORD")
    }
    assert files[info + "top_level.txt"] == b"detectron2\n"


def test_the_repacked_wheel_needs_what_detectron2_imports(install, wheel):
    metadata = read(install.repack(wheel))["sal_detectron2-0.7.2+pure.dist-info/METADATA"].decode()
    needs = [
        line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")
    ]
    assert sorted(needs) == [
        "Pillow>=7.1",
        "fvcore",
        "iopath",
        "numpy",
        "omegaconf<2.4,>=2.1",
        "torch",
    ]
    assert "Provides-Extra" not in metadata


def test_the_record_of_the_repacked_wheel_is_right(install, wheel):
    files = read(install.repack(wheel))
    name = "sal_detectron2-0.7.2+pure.dist-info/RECORD"
    rows = {row[0]: row[1:] for row in csv.reader(files[name].decode().splitlines())}
    assert set(rows) == set(files)
    assert rows.pop(name) == ["", ""]
    for path, (digest, size) in rows.items():
        expected = (
            base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=").decode()
        )
        assert (digest, size) == (f"sha256={expected}", str(len(files[path]))), path


# --- Python versions ---


def test_an_old_python_gets_one_clear_line(install):
    with pytest.raises(SystemExit) as ended:
        install.check_python((3, 9, 18))
    text = str(ended.value.code)
    assert "3.10 or newer is needed" in text and "3.9.18" in text and "\n" not in text


def test_a_python_newer_than_the_tested_ones_gets_a_warning_and_goes_on(install, capsys):
    install.check_python((3, 13, 5))
    assert capsys.readouterr().err == ""
    install.check_python((3, 14, 0))
    assert "tested up to Python 3.13" in capsys.readouterr().err


def test_an_old_python_can_read_the_script_up_to_the_version_check():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


# --- the stamp, and a .venv that is there ---


@pytest.fixture
def installed(install):
    """A .venv that looks finished; any further work on it is an error."""
    (install.VENV / "bin").mkdir(parents=True)
    (install.VENV / "bin" / "python").symlink_to(sys.executable)
    install.STAMP.write_text(install.fingerprint())

    def work(*_):
        raise AssertionError("installs again")

    install.make_venv = work
    return install


def test_a_second_run_does_nothing(installed, capsys):
    installed.install_venv()
    assert capsys.readouterr().out == ".venv is ready\n"


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt", "project/pyproject.toml"])
def test_a_changed_file_installs_again(installed, name):
    (installed.ROOT / name).write_text("two\n")
    with pytest.raises(AssertionError, match="installs again"):
        installed.install_venv()


def test_another_python_version_installs_again(installed, monkeypatch):
    Version = namedtuple("Version", "major minor micro")
    monkeypatch.setattr(installed.sys, "version_info", Version(3, 99, 0))
    with pytest.raises(AssertionError, match="installs again"):
        installed.install_venv()


def test_an_interrupted_installation_is_continued(installed):
    installed.STAMP.write_text("unfinished")
    with pytest.raises(AssertionError, match="installs again"):
        installed.install_venv()


def test_a_venv_whose_interpreter_is_gone_installs_again(installed):
    (installed.VENV / "bin" / "python").unlink()
    (installed.VENV / "bin" / "python").symlink_to("/nowhere/python3")
    with pytest.raises(AssertionError, match="installs again"):
        installed.install_venv()


def test_a_folder_that_is_no_virtual_environment_is_not_touched(install):
    install.VENV.mkdir()
    (install.VENV / "thesis.txt").write_text("years of work")
    with pytest.raises(install.Failure, match="not a virtual environment"):
        install.make_venv(target(install))
    assert (install.VENV / "thesis.txt").exists()


def test_a_broken_venv_is_made_anew(install, monkeypatch, capsys):
    (install.VENV / "bin").mkdir(parents=True)
    (install.VENV / "pyvenv.cfg").touch()
    (install.VENV / "bin" / "python").symlink_to("/nowhere/python3")
    monkeypatch.setattr(
        install.subprocess,
        "run",
        lambda command, **_: namedtuple("Done", "returncode stdout")(0, ""),
    )
    make = target(install)
    monkeypatch.setattr(make, "ask", lambda code: "")
    install.make_venv(make)
    assert "made anew" in capsys.readouterr().out and not install.VENV.exists()


def test_a_package_with_a_torn_file_is_forgotten_and_a_whole_one_kept(install, tmp_path):
    for name, size in (("whole", 3), ("torn", 30)):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (tmp_path / f"{name}.py").write_text("a=1")
        (info / "RECORD").write_text(f"{name}.py,sha256=x,{size}\n")
    install.forget_torn_packages(tmp_path)
    assert (tmp_path / "whole-1.0.dist-info").exists() and not (
        tmp_path / "torn-1.0.dist-info"
    ).exists()


# --- an environment of the user's own ---


def test_here_holds_the_torch_and_the_opencv_that_are_there(install, monkeypatch):
    install.REQUIREMENTS.write_text("torch>=2.6\ntorchvision\nopencv-python-headless\n# end\n")
    monkeypatch.setattr(install.Target, "has", lambda self, module: module == "cv2")
    monkeypatch.setattr(
        install.Target,
        "version",
        lambda self, package: "2.11.0+cu130" if package == "torch" else "",
    )
    seen = []
    monkeypatch.setattr(
        install,
        "install_requirements",
        lambda target, step, requirements, c, held, *options: seen.extend(
            [requirements.read_text(), c, held.read_text()]
        ),
    )
    monkeypatch.setattr(install, "install_detectron2", lambda *_: None)
    monkeypatch.setattr(install, "install_gpvit", lambda *_: None)
    install.install_here()
    assert seen == ["torch>=2.6\ntorchvision\n# end\n", "-c", "torch==2.11.0+cu130\n"]


# --- failures ---


def target(install):
    return install.Target(Path(sys.executable), install.ROOT / "install.log", isolated=False)


def test_a_missing_network_is_named(install, monkeypatch):
    for name in [
        name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    for name, value in dict(
        INDEX_URL="http://127.0.0.1:9/simple", RETRIES="1", CONFIG_FILE=os.devnull
    ).items():
        monkeypatch.setenv("PIP_" + name, value)
    with pytest.raises(install.Failure, match="no network"):
        target(install).pip("download", "--no-deps", "--dest", install.ROOT, "a-package")


def test_another_failure_of_pip_shows_its_last_lines_and_names_the_log(install):
    with pytest.raises(install.Failure, match=r"(?s)pip failed.*nowhere\.txt.*install\.log"):
        target(install).pip("install", "-r", install.ROOT / "nowhere.txt")


def test_a_disk_that_fills_up_is_named(install):
    assert install.reason(
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        False,
    ).startswith("no room")
    assert install.reason("killed", True).startswith("no room")


@pytest.mark.parametrize("free, outcome", [(5, "refused"), (10, "no cache"), (50, "fits")])
def test_room_is_checked_before_anything_is_fetched(install, monkeypatch, tmp_path, free, outcome):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(0, 0, free * 1e9)
    )
    if outcome == "refused":
        with pytest.raises(install.Failure, match="no room: 9 GB are needed"):
            install.check_room(tmp_path, tmp_path / "project")  # two folders of one disk
    else:
        assert install.check_room(tmp_path, tmp_path / "project") == (
            ["--no-cache-dir"] if outcome == "no cache" else []
        )


def test_a_missing_venv_module_names_the_package_to_install(install, monkeypatch):
    monkeypatch.setattr(
        install.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name
    )
    with pytest.raises(
        install.Failure, match=r"lacks the module ensurepip.*apt install python3\.\d+-venv"
    ):
        install.make_venv(target(install))


def test_a_failure_is_one_line_and_no_traceback(install, monkeypatch, capsys):
    def fail():
        raise install.Failure("reason")

    monkeypatch.setattr(install, "install_venv", fail)
    monkeypatch.setattr(install.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["install.py"])
    assert install.main() == 1
    assert capsys.readouterr().err == "install.py: reason\n"
