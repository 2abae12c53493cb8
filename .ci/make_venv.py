"""Make a virtual environment with pip, also where the system's Python comes without ensurepip, as on Debian."""

import os
import shutil
import subprocess
import sys
import venv

folder, tried = sys.argv[1], "installed" in sys.argv[2:]
try:
    import ensurepip  # noqa: F401
except ImportError:
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if tried or os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"This Python cannot make virtual environments. Install {package}: sudo apt-get install {package}")
    print(f"installing {package}, which this Python needs to make virtual environments", flush=True)
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", package], check=True)
    # This process may still believe that the module is missing.
    os.execv(sys.executable, [sys.executable, *sys.argv, "installed"])

venv.create(folder, with_pip=True, clear=True, symlinks=True)
