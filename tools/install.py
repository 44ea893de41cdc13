#!/usr/bin/env python3
"""Install everything that this repository needs: PyTorch, Detectron2 and the gpvit package.

    python3 tools/install.py          create .venv in the repository and install into it
                                      (about 3 GB to download, 7 GB on disk)
    python tools/install.py --here    install into the environment of the running Python

.venv gets exactly the tested versions, which constraints.txt lists. Run the script again to
continue an interrupted installation, or to update .venv after a change of the requirements; if
nothing has changed, it exits at once.

With --here, installed packages are kept where possible. Only the version ranges in requirements.txt
apply, and PyTorch, torchvision, Detectron2 and any variant of OpenCV are never replaced; if your
PyTorch is too old, pip reports that and stops. Missing packages are installed in their newest
compatible versions.

Nothing is compiled. Detectron2 is not on PyPI. If it is not installed yet, a redistribution of it,
sal-detectron2, is downloaded, verified by its hash, and installed without its compiled extension,
which was built for one version of Python and PyTorch. Mask R-CNN, Cascade R-CNN and RetinaNet do
not need the extension; deformable convolution, rotated boxes and Detectron2's fast COCO evaluation
do. The stray top-level package `tools` in the wheel is not installed either.
"""

# Python 3.6 and later must be able to parse this file and to reach check_python(): no parenthesized
# "with", no ":=", no "list[str]".
import argparse
import ast
import base64
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "gpvit-installed"  # the fingerprint of what is installed, or "unfinished"
REQUIREMENTS = ROOT / "requirements.txt"
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = ROOT / "projects" / "GPViT"
OLDEST, NEWEST = (3, 10), (3, 13)  # tested versions of Python
INSTALLED_GB, DOWNLOAD_GB = 6, 3

DETECTRON2 = "sal-detectron2==0.7.2"
DETECTRON2_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# Appended to the version of the repacked wheel, which is thereby recognized as modified.
DETECTRON2_MARK = "+pure"
# Requirements to add, since the wheel's metadata lacks them or has a wrong version range.
DETECTRON2_NEEDS = ("torch", "numpy", "fvcore", "iopath")
# Requirements to remove: a wrong range, a backport for Python 3.6, and a tool for developers.
DETECTRON2_DROPS = ("numpy", "dataclasses", "black")


class Failure(Exception):
    """Ends the installation; the user sees its message only."""


def main() -> int:
    check_python(sys.version_info[:3])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--here", action="store_true", help="install into the environment of the running Python"
    )
    here = parser.parse_args().here
    sys.stdout.reconfigure(line_buffering=True)  # steps appear at once in a log file too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        install_here() if here else install_venv()
    except (Failure, OSError) as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install.py: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def check_python(version: tuple) -> None:
    """Exit with one line if Python is too old; warn if it is newer than the tested versions."""
    found = f"this is {dotted(version)} ({sys.executable})"
    if version[:2] < OLDEST:
        sys.exit(
            f"install.py: Python {dotted(OLDEST)} or newer is required, {found}. "
            "Run python3.11 tools/install.py, or make PYTHON=python3.11 env"
        )
    if version[:2] > NEWEST:
        print(
            f"install.py: warning: tested up to Python {dotted(NEWEST)}, {found}", file=sys.stderr
        )


# --- The two modes ---


def install_venv() -> None:
    start = time.monotonic()
    if (VENV / "bin" / "python").exists() and STAMP.exists() and STAMP.read_text() == fingerprint():
        print(".venv is up to date")
        return
    target = Target(VENV / "bin" / "python", VENV / "install.log", isolated=True)
    print(f"[1/4] preparing .venv with Python {dotted(sys.version_info[:3])}")
    make_venv(target)
    target.ignore_location_settings()
    STAMP.write_text("unfinished")
    # Some packages exist as source only: they are built with the pinned setuptools, not the newest.
    target.pip("install", "setuptools", "-c", CONSTRAINTS)
    options = ["-c", CONSTRAINTS, "--use-pep517", "--no-build-isolation"]
    install_requirements(target, "[2/4]", REQUIREMENTS, *options)
    install_detectron2(target, "[3/4]")
    install_gpvit(target, "[4/4]")
    STAMP.write_text(fingerprint())
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    size = sum(path.lstat().st_blocks * 512 for path in VENV.rglob("*")) / 1e9
    print(f"done in {minutes} min {seconds} s: .venv takes {size:.1f} GB on disk")
    print("activate it with: source .venv/bin/activate")


def install_here() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(tempfile.mkstemp(prefix="gpvit-install-", suffix=".log")[1])
        target = Target(Path(sys.executable), log, isolated=False)
        # opencv-python and opencv-python-headless contain the same files and must not both be
        # installed. "#" skips comments only.
        skip = "opencv" if target.has("cv2") else "#"
        lines = REQUIREMENTS.read_text().splitlines(keepends=True)
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("".join(line for line in lines if not line.startswith(skip)))
        # Without these constraints, pip would install the newest torchvision and replace torch by
        # the version that it needs.
        constraints = Path(folder, "constraints.txt")
        with constraints.open("w") as file:
            for name in ("torch", "torchvision"):
                version = target.version(name)
                if version:
                    file.write(f"{name}=={version}\n")
        install_requirements(target, "[1/3]", requirements, "-c", constraints, "--prefer-binary")
    install_detectron2(target, "[2/3]")
    install_gpvit(target, "[3/3]")
    log.unlink()
    print(f"done: everything is installed for {sys.executable}")


def fingerprint() -> str:
    """Return a hash of everything that an installation depends on.

    The path of the repository is part of it, since gpvit is linked by its path.
    """
    digest = hashlib.sha256(f"{dotted(sys.version_info[:2])} {ROOT}".encode())
    for path in (REQUIREMENTS, CONSTRAINTS, PROJECT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# --- The steps ---


def make_venv(target: "Target") -> None:
    """Create .venv with the running Python version, unless there is a usable one.

    In a .venv that is kept, incomplete packages are marked for reinstallation.
    """
    wanted = dotted(sys.version_info[:2])
    found = target.ask("import sys, pip; print('%d.%d' % sys.version_info[:2])")
    is_venv = STAMP.exists() or (VENV / "pyvenv.cfg").exists()
    if is_venv and found == wanted:
        if STAMP.exists() and STAMP.read_text() == "unfinished":
            forget_incomplete_packages(target.packages_folder())
        return
    for name in ("venv", "ensurepip"):
        if importlib.util.find_spec(name) is None:
            raise Failure(
                f"this Python lacks the module {name}; on Debian and Ubuntu, run: "
                f"sudo apt install python{wanted}-venv"
            )
    if is_venv:
        problem = f"has Python {found}" if found else "does not work"
        print(f"      the existing .venv {problem}: recreating it")
        shutil.rmtree(str(VENV))
    elif os.path.lexists(str(VENV)):
        raise Failure(f"{VENV} exists and is not a virtual environment; move it elsewhere")
    # The running Python may be that of a virtual environment, even of the one just removed.
    base = getattr(sys, "_base_executable", sys.executable)
    created = subprocess.run(
        [base, "-m", "venv", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if created.returncode:
        raise Failure(f"{base} -m venv failed: {created.stdout.strip()}")


def forget_incomplete_packages(site: Path) -> None:
    """Remove the metadata of packages with missing or truncated files, so that pip reinstalls them.

    An interrupted pip may leave such packages.
    """
    from importlib.metadata import Distribution  # not at the top: Python 3.6 and 3.7 lack it

    for info in site.glob("*.dist-info"):
        files = list(Distribution.at(info).files or ())
        if not files or not all(map(is_complete, files)):
            print(f"      {info.stem} is incomplete: reinstalling it")
            shutil.rmtree(str(info))


def is_complete(file: object) -> bool:
    """Return whether a file of a package exists and has its recorded size, if one is recorded."""
    path = file.locate()
    return os.path.exists(path) and file.size in (None, os.path.getsize(path))


def install_requirements(target: "Target", step: str, requirements: Path, *options: object) -> None:
    names = re.findall(r"^[\w-]+", requirements.read_text(), re.MULTILINE)
    what = f"{names[0]}, {names[1]} and {len(names) - 2} other packages"
    if target.version("torch"):
        print(f"{step} installing {what}; installed versions are kept where they fit")
    else:
        options += tuple(check_disk_space(target.packages_folder(), Path(tempfile.gettempdir())))
        print(f"{step} installing {what}: about {DOWNLOAD_GB} GB to download, a few minutes")
    target.pip("install", "-r", requirements, *options)


def check_disk_space(packages: Path, downloads: Path) -> list:
    """Raise Failure unless there is space for the packages and for the downloads.

    Returns:
        Options for pip. Where space is short, pip is to keep no second copy of the downloads in its
        cache.
    """
    needed = {}  # file system -> [gigabytes, a folder on it]
    for folder, gigabytes in ((packages, INSTALLED_GB), (downloads, DOWNLOAD_GB)):
        needed.setdefault(os.stat(folder).st_dev, [0, folder])[0] += gigabytes
    spare = []
    for gigabytes, folder in needed.values():
        free = shutil.disk_usage(folder).free / 1e9
        if free < gigabytes:
            raise Failure(
                f"not enough disk space: {gigabytes} GB are needed in {folder}, {free:.1f} GB are "
                "free. Free some space, or set TMPDIR to another folder for the downloads"
            )
        spare.append(free - gigabytes)
    return ["--no-cache-dir"] if min(spare) < DOWNLOAD_GB else []


def install_detectron2(target: "Target", step: str) -> None:
    name, version = DETECTRON2.split("==")
    installed = target.version(name)
    is_outdated = installed.endswith(DETECTRON2_MARK) and installed != version + DETECTRON2_MARK
    if target.has("detectron2") and not is_outdated:
        print(f"{step} Detectron2 is already installed")
        return
    print(f"{step} installing Detectron2: 7 MB to download")
    with tempfile.TemporaryDirectory() as folder:
        # The wheel's tag is cp310-none-any. Repacked, it is valid for every Python 3.
        tag = ["--python-version=3.10", "--implementation=cp", "--abi=none", "--platform=any"]
        no_source = "--only-binary=:all:"
        target.pip("download", DETECTRON2, "--no-deps", no_source, *tag, "--dest", folder)
        (wheel,) = Path(folder).glob("*.whl")
        check_hash(wheel, DETECTRON2_SHA256)
        target.pip("install", "--no-deps", "--force-reinstall", repack(wheel))


def install_gpvit(target: "Target", step: str) -> None:
    print(f"{step} installing gpvit, linked to {PROJECT.relative_to(ROOT)}")
    # An editable installation (PEP 660) needs setuptools 64; if it is older, pip downloads one.
    major = int((target.version("setuptools") or "0").split(".")[0])
    options = ["--no-build-isolation"] if major >= 64 else []
    target.pip("install", "--no-deps", "-e", PROJECT, *options)


# --- The Detectron2 wheel ---


def check_hash(wheel: Path, expected: str) -> None:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != expected:
        raise Failure(
            f"{wheel.name} is not the file this project was tested with, so it was not installed: "
            f"its SHA-256 is {found}, expected {expected}. Check the package index that pip uses"
        )


def repack(wheel: Path) -> Path:
    """Write a copy of the wheel for every Python 3 into the same folder.

    It has only `detectron2/` and the metadata, no compiled files, and corrected requirements.
    """
    name, version = wheel.name.split("-")[:2]
    copy = wheel.with_name(f"{name}-{version}{DETECTRON2_MARK}-py3-none-any.whl")
    old_info = f"{name}-{version}.dist-info/"
    new_info = f"{name}-{version}{DETECTRON2_MARK}.dist-info/"
    # A line of RECORD: path, SHA-256 in URL-safe base64 without padding, size. Its own line has
    # neither hash nor size.
    record = ""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as new:
        for path in old.namelist():
            is_wanted = path.startswith(("detectron2/", old_info))
            if not is_wanted or path.endswith((".so", ".pyd", "/", "/RECORD")):
                continue
            content = old.read(path)
            if path == old_info + "METADATA":
                content = fix_metadata(content.decode()).encode()
            elif path == old_info + "WHEEL":
                content = (
                    b"Wheel-Version: 1.0\nGenerator: tools/install.py\n"
                    b"Root-Is-Purelib: true\nTag: py3-none-any\n"
                )
            elif path == old_info + "top_level.txt":
                content = b"detectron2\n"
            path = path.replace(old_info, new_info)
            new.writestr(path, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
            record += f"{path},sha256={digest.rstrip('=')},{len(content)}\n"
        new.writestr(new_info + "RECORD", f"{record}{new_info}RECORD,,\n")
    return copy


def fix_metadata(text: str) -> str:
    """Mark version and summary as modified, correct the requirements, and remove the extras."""
    # Header lines, an empty line, and the description.
    head, blank, body = text.partition("\n\n")
    suffixes = {"Version": DETECTRON2_MARK, "Summary": " (repacked without its compiled extension)"}
    lines = []
    for line in head.splitlines():
        key, _, value = line.partition(": ")
        if key == "Provides-Extra":
            continue
        if key == "Requires-Dist":  # 'numpy<2', 'timm; extra == "all"'
            package = re.match(r"[\w-]+", value).group()
            if "extra ==" in value or package in DETECTRON2_DROPS:
                continue
        lines.append(line + suffixes.get(key, ""))
    for package in DETECTRON2_NEEDS:
        lines.append(f"Requires-Dist: {package}")
    return "\n".join(lines) + (blank + body or "\n")


# --- The Python that is installed into, and its pip ---

# The lines of pip's output that are shown, without " (from -r requirements.txt (line 1))" at the
# end. Lines about metadata files and "Building wheel for X (pyproject.toml): finished" are not.
STEP = re.compile(
    r"^ *("
    r"(?:Collecting|Downloading|Using cached|Processing|Building wheel for|Installing collected)\b"
    r"(?!.*(?:\.metadata|: finished)).*?"
    r")(?: \(from .*)?$",
    re.MULTILINE,
)


# Options of pip that install packages elsewhere than into the Python that runs it, or not at all.
LOCATION_OPTIONS = ("target", "prefix", "root", "user", "python", "dry-run")


def pip_variable(option: str) -> str:
    """Return the environment variable of an option of pip."""
    return "PIP_" + option.upper().replace("-", "_")


class Target:
    """A Python to install into: runs code and pip in it.

    Args:
        python: its path.
        log: file that pip's complete output is appended to.
        isolated: whether to ignore settings of the user which install packages elsewhere, or which
            make packages from elsewhere importable.
    """

    def __init__(self, python: Path, log: Path, isolated: bool) -> None:
        self.python, self.log = python, log
        self.environment = dict(
            os.environ,
            PYTHONUNBUFFERED="1",
            PIP_PROGRESS_BAR="off",
            PIP_NO_INPUT="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
        )
        if isolated:
            for name in ("PYTHONPATH", "PYTHONHOME", *map(pip_variable, LOCATION_OPTIONS)):
                self.environment.pop(name, None)
            self.environment.update(PIP_USER="0", PYTHONNOUSERSITE="1")

    def ignore_location_settings(self) -> None:
        """Ignore location options in pip's configuration files (pip.conf); keep the others.

        Environment variables override the files, but none of their values means "no target". So
        the other settings become environment variables, and pip reads no file.
        """
        settings = self.run("-m", "pip", "config", "list")  # lines such as "global.timeout='60'"
        if not settings:  # none, or a file that cannot be read, which pip will report
            return
        variables = {}
        for section in ("global", "download", "install"):  # later sections override earlier ones
            for name, value in re.findall(rf"^{section}\.([\w-]+)=(.*)$", settings, re.MULTILINE):
                if name not in LOCATION_OPTIONS:
                    variables[pip_variable(name)] = ast.literal_eval(value)
        self.environment = dict(variables, **self.environment)
        self.environment["PIP_CONFIG_FILE"] = os.devnull  # pip then reads no file at all

    def ask(self, code: str) -> str:
        """Return what `code` prints in this Python; "" if it fails."""
        return self.run("-c", code)

    def run(self, *arguments: str) -> str:
        """Return what this Python prints to stdout with these arguments; "" if it cannot start."""
        try:
            process = subprocess.run(
                [str(self.python), *arguments],
                env=self.environment,
                cwd=str(ROOT),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return ""
        return process.stdout.strip()

    def has(self, module: str) -> bool:
        """Return whether `module` can be found, without importing it.

        A folder of that name without __init__.py does not count.
        """
        find = f"import importlib.util as u; s = u.find_spec('{module}')"
        return self.ask(f"{find}; print(s.origin if s else '')") not in ("", "None")

    def version(self, package: str) -> str:
        """Return the installed version of a package; "" if it is not installed."""
        return self.ask(f"import importlib.metadata as m; print(m.version('{package}'))")

    def packages_folder(self) -> Path:
        return Path(self.ask("import sysconfig; print(sysconfig.get_path('purelib'))"))

    def pip(self, *arguments: object) -> None:
        """Run pip and show its current step; raise Failure with the reason if it fails."""
        with open(self.log, "ab") as log, open(self.log, errors="replace") as reader:
            reader.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                [str(self.python), "-m", "pip", *map(str, arguments)],
                env=self.environment,
                cwd=str(ROOT),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                output = follow(process, reader)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                if sys.stdout.isatty():
                    print(end="\r\033[K")  # erases the line of the current step
        if process.returncode:
            folders = (self.log, tempfile.gettempdir())
            free = min(shutil.disk_usage(folder).free for folder in folders)
            explanation = reason(output, free < 100e6)
            raise Failure(f"{explanation}\nThe complete output of pip is in {self.log}")


def follow(process: subprocess.Popen, reader: object) -> str:
    """Show the steps in a process's output until it ends; return all of its output."""
    start, step, output, has_ended = time.monotonic(), "", "", False
    while not has_ended:
        time.sleep(0.2)
        has_ended = process.poll() is not None  # before reading, so that no output is missed
        new = reader.read()
        output += new
        step = show(new, step, time.monotonic() - start)
    return output


def show(output: str, step: str, seconds: float) -> str:
    """Show the steps in pip's new output; return the current step, which was `step` before.

    On a terminal, one line with the elapsed time is updated; otherwise each step gets a line.
    """
    steps = STEP.findall(output)
    if not sys.stdout.isatty():
        print("".join(f"      {step[:110]}\n" for step in steps), end="", flush=True)
        return ""
    step = steps[-1] if steps else step
    line = f"      {seconds // 60:.0f}:{seconds % 60:02.0f}  {step}"
    columns = shutil.get_terminal_size().columns
    print(f"\r{line[: columns - 1]}\033[K", end="", flush=True)
    return step


def reason(output: str, is_disk_full: bool) -> str:
    """Explain in one line why pip failed; if it is unknown, return the last lines of its output."""
    lines = list(filter(str.strip, output.splitlines()))
    end = "\n".join(lines[-25:])  # pip recovered from earlier problems
    if is_disk_full or re.search(r"No space left|Errno 28\b|quota exceeded", end):
        return (
            "the disk is full (downloads go to TMPDIR, then into pip's cache). "
            "Free some space, then run this again"
        )
    if "externally-managed-environment" in end:
        return (
            "this Python belongs to the operating system, which does not allow other packages in "
            "it: run this without --here"
        )
    if re.search(
        r"connection broken by|Read timed out|Max retries exceeded|Connection (refused|reset)|"
        r"IncompleteRead|name resolution|Network is unreachable",
        end,
    ):
        return (
            "the package index cannot be reached. Check the network connection (also HTTPS_PROXY "
            "and PIP_INDEX_URL), then run this again"
        )
    return "\n    ".join(["pip failed. The last lines of its output:", *lines[-8:]])


def dotted(version: tuple) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main())
