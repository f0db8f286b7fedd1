"""Programs that tests need and that Debian has."""

import os
import shutil
import subprocess
from collections.abc import Sequence


def lacks(programs: Sequence[str], *packages: str) -> str | None:
    """Why there are no such programs here, after trying to install them; None if there are."""
    if all(map(shutil.which, programs)):
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"no {', '.join(programs)}, and no apt-get to install {', '.join(packages)} with"
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, ["apt-get", "update", "-q"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if all(map(shutil.which, programs)):
            return None
    return f"apt-get could not install {', '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}"
