#!/usr/bin/env python3
"""Install everything this repository needs: PyTorch, Detectron2 and the gpvit package. No compiler is used.

    python3 tools/install.py           make .venv in the repository and install there (about 3 GB to download, 6 GB on disk)
    python tools/install.py --here     install into the environment of the Python that runs this

.venv gets exactly the versions in constraints.txt, which are the tested ones. A second run sees that nothing changed and
ends at once; an interrupted one is continued; a changed requirement is installed.

--here respects what you have: only the ranges in requirements.txt count, and PyTorch, torchvision, Detectron2 and an
OpenCV of any flavour are never replaced (where your PyTorch is too old, pip says so and stops). What is missing is fetched
in its newest version that fits.

Detectron2 is not on the package index. Where none can be imported, a redistribution of it, sal-detectron2, is fetched,
compared with a known hash, and installed without its compiled extension (built for one Python and one PyTorch only; Mask
R-CNN, Cascade R-CNN and RetinaNet do without: what goes is deformable convolution, rotated boxes and the fast COCO
evaluation) and without its stray top-level package `tools`. A Detectron2 that is already there is kept.
"""

# This file must parse, and reach check_python(), on every Python from 3.6 on.
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
STAMP = VENV / "gpvit-installed"  # says what was installed, or that an installation did not end
REQUIREMENTS, CONSTRAINTS, PROJECT = (
    ROOT / "requirements.txt",
    ROOT / "constraints.txt",
    ROOT / "projects" / "GPViT",
)
OLDEST, NEWEST = (3, 10), (3, 13)
INSTALLED_GB, DOWNLOAD_GB = 6, 3

DETECTRON2 = "sal-detectron2==0.7.2"
DETECTRON2_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
DETECTRON2_MARK = "+pure"  # appended to the version of the repacked wheel: a changed wheel should say that it is one
DETECTRON2_NEEDS = (
    "torch",
    "numpy",
    "fvcore",
    "iopath",
)  # missing from its metadata, or there with a bound that is wrong
DETECTRON2_DROPS = ("numpy", "dataclasses", "black")


class Failure(Exception):
    """Ends the installation; its text is all that the user sees."""


def main() -> int:
    check_python(sys.version_info[:3])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--here", action="store_true", help="install into the running Python's environment"
    )
    here = parser.parse_args().here
    sys.stdout.reconfigure(
        line_buffering=True
    )  # each step is seen when it begins, in a log file too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        install_here() if here else install_venv()
    except (Failure, OSError) as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def check_python(version: tuple) -> None:
    """End with one line on a Python that is too old; warn on one that is newer than any tested."""
    found = f"this is {dotted(version)} ({sys.executable})"
    if version[:2] < OLDEST:
        sys.exit(
            f"install.py: Python 3.10 or newer is needed; {found}. Name a newer one: python3.11 tools/install.py, "
            "or make PYTHON=python3.11 env"
        )
    if version[:2] > NEWEST:
        print(
            f"install.py: warning: tested up to Python {dotted(NEWEST)}; {found}", file=sys.stderr
        )


# --- The two modes ---


def install_venv() -> None:
    began = time.monotonic()
    if (VENV / "bin" / "python").exists() and STAMP.exists() and STAMP.read_text() == fingerprint():
        print(".venv is ready")
        return
    target = Target(VENV / "bin" / "python", VENV / "install.log", isolated=True)
    print(f"[1/4] preparing .venv with Python {dotted(sys.version_info[:3])}")
    make_venv(target)
    target.leave_settings_behind()
    STAMP.write_text("unfinished")
    # The few packages that come as source are built with the pinned setuptools, not with whatever is newest that day.
    target.pip("install", "setuptools", "-c", CONSTRAINTS)
    install_requirements(
        target, "[2/4]", REQUIREMENTS, "-c", CONSTRAINTS, "--use-pep517", "--no-build-isolation"
    )
    install_detectron2(target, "[3/4]")
    install_gpvit(target, "[4/4]")
    STAMP.write_text(fingerprint())
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    size = sum(path.lstat().st_blocks * 512 for path in VENV.rglob("*")) / 1e9
    print(
        f"done in {minutes} min {seconds} s: .venv takes {size:.1f} GB. Use it with: source .venv/bin/activate"
    )


def install_here() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(tempfile.mkstemp(prefix="gpvit-install-", suffix=".log")[1])
        target = Target(Path(sys.executable), log, isolated=False)
        # opencv-python and opencv-python-headless hold the same files: where one is, the other must not come on top.
        skip = "opencv" if target.has("cv2") else "#"
        lines = REQUIREMENTS.read_text().splitlines(keepends=True)
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("".join(line for line in lines if not line.startswith(skip)))
        # Left alone, pip would take the newest torchvision and exchange torch for the one that goes with it.
        held = Path(folder, "held.txt")
        versions = {name: target.version(name) for name in ("torch", "torchvision")}
        held.write_text(
            "".join(f"{name}=={version}\n" for name, version in versions.items() if version)
        )
        install_requirements(target, "[1/3]", requirements, "-c", held, "--prefer-binary")
    install_detectron2(target, "[2/3]")
    install_gpvit(target, "[3/3]")
    log.unlink()
    print(f"done: {sys.executable} has everything")


def fingerprint() -> str:
    """Changes with whatever an installation depends on, the repository's place included: gpvit is linked by its path."""
    digest = hashlib.sha256(f"{dotted(sys.version_info[:2])} {ROOT}".encode())
    for path in (REQUIREMENTS, CONSTRAINTS, PROJECT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# --- The steps ---


def make_venv(target: "Target") -> None:
    """Leave a .venv of this Python version in which every package is whole; replace one that cannot be used."""
    wanted = dotted(sys.version_info[:2])
    found = target.ask("import sys, pip; print('%d.%d' % sys.version_info[:2])")
    ours = STAMP.exists() or (VENV / "pyvenv.cfg").exists()
    if ours and found == wanted:
        if STAMP.exists() and STAMP.read_text() == "unfinished":
            forget_torn_packages(target.packages_folder())
        return
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise Failure(
            f"this Python lacks the module {missing[0]}; on Debian and Ubuntu: sudo apt install python{wanted}-venv"
        )
    if ours:
        print(
            f"      the .venv found here {f'has Python {found}' if found else 'does not work'}: it is made anew"
        )
        shutil.rmtree(str(VENV))
    elif os.path.lexists(str(VENV)):
        raise Failure(f"{VENV} is in the way and is not a virtual environment; move it elsewhere")
    # Run from inside a virtual environment, maybe the very one just removed, its base interpreter does the work.
    base = getattr(sys, "_base_executable", sys.executable)
    made = subprocess.run(
        [base, "-m", "venv", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if made.returncode:
        raise Failure(f"{base} -m venv failed: {made.stdout.strip()}")


def forget_torn_packages(site: Path) -> None:
    """Remove the record of every package whose files are not all whole, as a killed pip leaves it: pip then sees the gap."""
    from importlib.metadata import Distribution  # not at the top: Python 3.6 and 3.7 have none

    for info in site.glob("*.dist-info"):
        files = [(file.locate(), file.size) for file in Distribution.at(info).files or ()]
        if not files or any(
            not os.path.exists(path) or size not in (None, os.path.getsize(path))
            for path, size in files
        ):
            print(f"      {info.stem} is incomplete: it is installed again")
            shutil.rmtree(str(info))


def install_requirements(target: "Target", step: str, requirements: Path, *options: object) -> None:
    names = re.findall(r"^[\w-]+", requirements.read_text(), re.MULTILINE)
    what = f"{names[0]}, {names[1]} and {len(names) - 2} others"
    if target.version("torch"):
        print(f"{step} installing {what}: what is there already stays")
    else:
        options += tuple(check_room(target.packages_folder(), Path(tempfile.gettempdir())))
        print(f"{step} installing {what}: about {DOWNLOAD_GB} GB to download, a few minutes")
    target.pip("install", "-r", requirements, *options)


def check_room(*folders: Path) -> list:
    """Refuse to start without room for the packages in folders[0] and for the downloads in folders[1].

    Returns the option that keeps pip from storing the downloads a second time, in its cache, where room is short.
    """
    need = {}  # of each file system: gigabytes, and a folder on it
    for folder, gigabytes in zip(folders, (INSTALLED_GB, DOWNLOAD_GB)):
        need.setdefault(os.stat(folder).st_dev, [0, folder])[0] += gigabytes
    spare = []
    for gigabytes, folder in need.values():
        free = shutil.disk_usage(folder).free / 1e9
        if free < gigabytes:
            raise Failure(
                f"no room: {gigabytes} GB are needed in {folder}, {free:.1f} GB are free. "
                "Make room, or name another folder for the downloads with TMPDIR"
            )
        spare.append(free - gigabytes)
    return ["--no-cache-dir"] if min(spare) < DOWNLOAD_GB else []


def install_detectron2(target: "Target", step: str) -> None:
    name, version = DETECTRON2.split("==")
    installed = target.version(name)
    stale = installed.endswith(DETECTRON2_MARK) and installed != version + DETECTRON2_MARK
    if target.has("detectron2") and not stale:
        print(f"{step} Detectron2 is there already and stays")
        return
    print(f"{step} installing Detectron2: 7 MB to download")
    with tempfile.TemporaryDirectory() as folder:
        # The wheel is tagged for Python 3.10, whichever Python asks.
        target.pip(
            "download",
            DETECTRON2,
            "--no-deps",
            "--only-binary=:all:",
            "--python-version=3.10",
            "--implementation=cp",
            "--abi=none",
            "--platform=any",
            "--dest",
            folder,
        )
        (wheel,) = Path(folder).glob("*.whl")
        check_hash(wheel, DETECTRON2_SHA256)
        target.pip("install", "--no-deps", "--force-reinstall", repack(wheel))


def install_gpvit(target: "Target", step: str) -> None:
    print(f"{step} installing gpvit, linked to {PROJECT.relative_to(ROOT)}")
    # setuptools links a package (PEP 660) from version 64 on; without it, pip fetches one for the purpose.
    ready = int((target.version("setuptools") or "0").split(".")[0]) >= 64
    target.pip("install", "--no-deps", "-e", PROJECT, *(["--no-build-isolation"] if ready else []))


# --- The Detectron2 wheel ---


def check_hash(wheel: Path, expected: str) -> None:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != expected:
        raise Failure(
            f"{wheel.name} is not the file this project was tested with, and is not installed: its sha256 is "
            f"{found}, expected {expected}. Does the package index in use serve another file under this name?"
        )


def repack(wheel: Path) -> Path:
    """Write a copy for every Python 3 beside `wheel`: only `detectron2/` and metadata, nothing compiled, needs corrected."""
    name, version = wheel.name.split("-")[:2]
    copy = wheel.with_name(f"{name}-{version}{DETECTRON2_MARK}-py3-none-any.whl")
    old_info, new_info = (
        f"{name}-{version}.dist-info/",
        f"{name}-{version}{DETECTRON2_MARK}.dist-info/",
    )
    record = []
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for path in source.namelist():
            if not path.startswith(("detectron2/", old_info)) or path.endswith(
                (".so", ".pyd", "/", "/RECORD")
            ):
                continue
            content = source.read(path)
            if path == old_info + "METADATA":
                content = mend_metadata(content.decode()).encode()
            elif path == old_info + "WHEEL":
                content = b"Wheel-Version: 1.0\nGenerator: tools/install.py\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            elif path == old_info + "top_level.txt":
                content = b"detectron2\n"
            path = path.replace(old_info, new_info)
            target.writestr(path, content)
            digest = (
                base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            )
            record.append(f"{path},sha256={digest},{len(content)}\n")
        target.writestr(new_info + "RECORD", "".join(record) + f"{new_info}RECORD,,\n")
    return copy


def mend_metadata(text: str) -> str:
    """Mark the version and the summary as changed, and state the needs as they are; the extras go."""
    head, blank, body = text.partition("\n\n")
    changes = {"Version": DETECTRON2_MARK, "Summary": " (repacked without its compiled extension)"}
    lines = []
    for line in head.splitlines():
        key, _, value = line.partition(": ")
        if key == "Provides-Extra" or (
            key == "Requires-Dist"
            and ("extra ==" in value or re.match(r"[\w-]+", value).group() in DETECTRON2_DROPS)
        ):
            continue
        lines.append(line + changes.get(key, ""))
    return "\n".join(lines + [f"Requires-Dist: {need}" for need in DETECTRON2_NEEDS]) + (
        blank + body or "\n"
    )


# --- The Python that is installed into, and its pip ---

# The lines of pip's output that are worth showing.
STEP = re.compile(
    r"^ *((?:Collecting|Downloading|Using cached|Processing|Building wheel for|Installing collected)\b"
    r"(?!.*(?:\.metadata|: finished)).*?)(?: \(from .*)?$",
    re.MULTILINE,
)


# pip's options that put packages elsewhere than into the Python that runs it, or nowhere.
ELSEWHERE = ("target", "prefix", "root", "user", "python", "dry-run")


def variable(option: str) -> str:
    """The environment variable of an option of pip's."""
    return "PIP_" + option.upper().replace("-", "_")


class Target:
    """A Python to ask about its packages and to run pip in: its steps are shown, all its output goes into `log`."""

    def __init__(self, python: Path, log: Path, isolated: bool) -> None:
        self.python, self.log = python, log
        self.environment = dict(
            os.environ,
            PYTHONUNBUFFERED="1",
            PIP_PROGRESS_BAR="off",
            PIP_NO_INPUT="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
        )
        if isolated:  # from a user's settings that send packages elsewhere, or find them there
            for name in ("PYTHONPATH", "PYTHONHOME", *map(variable, ELSEWHERE)):
                self.environment.pop(name, None)
            self.environment.update(PIP_USER="0", PYTHONNOUSERSITE="1")

    def leave_settings_behind(self) -> None:
        """From now on, those settings in pip's files (pip.conf) that send packages elsewhere do not count; others do.

        The environment goes before the files, but nothing in it says "no target".
        """
        said = self.run("-m", "pip", "config", "list")
        if not said:  # the files cannot be read, which pip will say itself
            return
        settings = {}
        for section in ("global", "download", "install"):  # the later ones go before
            for name, value in re.findall(rf"^{section}\.([\w-]+)=(.*)$", said, re.MULTILINE):
                if name not in ELSEWHERE:
                    settings[variable(name)] = ast.literal_eval(value)
        self.environment = dict(settings, **self.environment)
        self.environment["PIP_CONFIG_FILE"] = os.devnull  # for pip, this means: none at all

    def ask(self, code: str) -> str:
        """What `code` prints there; empty if it fails."""
        return self.run("-c", code)

    def run(self, *arguments: str) -> str:
        try:
            return subprocess.run(
                [str(self.python), *arguments],
                env=self.environment,
                cwd=str(ROOT),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ).stdout.strip()
        except OSError:
            return ""

    def has(self, module: str) -> bool:
        """Whether `module` can be found; it is not imported, and a mere folder of that name does not count."""
        return bool(
            self.ask(
                f"import importlib.util as u; s = u.find_spec('{module}'); print(s.origin if s else '')"
            ).replace("None", "")
        )

    def version(self, package: str) -> str:
        return self.ask(f"import importlib.metadata as m; print(m.version('{package}'))")

    def packages_folder(self) -> Path:
        return Path(self.ask("import sysconfig; print(sysconfig.get_path('purelib'))"))

    def pip(self, *arguments: object) -> None:
        """Run pip and show, on one line that changes, what it does and for how long; raise Failure with the reason."""
        command = [str(self.python), "-m", "pip", *map(str, arguments)]
        began, shown = time.monotonic(), ""
        with open(self.log, "ab") as log, open(self.log, errors="replace") as output:
            output.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=str(ROOT),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                said, ended = "", False
                while not ended:
                    time.sleep(0.2)
                    ended = (
                        process.poll() is not None
                    )  # before the reading, so that the last lines are read too
                    new = output.read()
                    said += new
                    shown = show(new, shown, time.monotonic() - began)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                if sys.stdout.isatty():
                    print(end="\r\033[K")
        if process.returncode:
            full = (
                min(shutil.disk_usage(folder).free for folder in (self.log, tempfile.gettempdir()))
                < 100e6
            )
            raise Failure(f"{reason(said, full)}\nAll that pip said is in {self.log}")


def show(output: str, shown: str, seconds: float) -> str:
    """Show the newest step in pip's `output`: on a terminal in one line that is kept alive, elsewhere line by line."""
    steps = STEP.findall(output)
    if not sys.stdout.isatty():
        print("".join(f"      {step[:110]}\n" for step in steps), end="", flush=True)
        return ""
    shown = steps[-1] if steps else shown
    line = f"      {seconds // 60:.0f}:{seconds % 60:02.0f}  {shown}"[
        : shutil.get_terminal_size().columns - 1
    ]
    print(f"\r{line}\033[K", end="", flush=True)
    return shown


def reason(said: str, full: bool) -> str:
    """One line on why pip failed, where the reason is a known one; else the last lines of what it `said`."""
    lines = [line for line in said.splitlines() if line.strip()]
    end = "\n".join(lines[-25:])  # what went wrong earlier was got over
    if full or re.search(r"No space left|Errno 28\b|quota exceeded", end):
        return "no room: the disk ran full (downloads go to TMPDIR, then into pip's cache). Make room and run this again"
    if "externally-managed-environment" in end:
        return "this Python belongs to the operating system, which lets nobody add to it: run this without --here"
    if re.search(
        r"connection broken by|Read timed out|Max retries exceeded|Connection (refused|reset)|IncompleteRead|"
        r"name resolution|Network is unreachable",
        end,
    ):
        return (
            "no network: the package index cannot be reached. "
            "Check the connection (also HTTPS_PROXY and PIP_INDEX_URL), then run this again"
        )
    return "\n    ".join(["pip failed. Its last lines:", *lines[-8:]])


def dotted(version: tuple) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main())
