"""A real S3 server on loopback for tests: Ceph's radosgw over one monitor and one OSD, in a folder of its own.

Needs root and Debian's packages radosgw, ceph-mon, ceph-osd, ceph-mgr and ceph-common. It takes about 25 s to start.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool")
KEY, SECRET = "iostack-test", "iostack-test-secret"
_START_DEADLINE_S = 90.0

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{mon_port}]
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
ms bind ipv4 = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
osd objectstore = bluestore
bluestore block create = true
bluestore block size = 4294967296
osd max object name len = 256
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 1
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
run dir = {folder}
keyring = {folder}/keyring
[mon.a]
host = {host}
mon data = {folder}/mon
mon addr = v1:127.0.0.1:{mon_port}
[osd.0]
host = {host}
osd data = {folder}/osd
osd memory target = 939524096
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {folder}
rgw dns name = localhost
rgw thread pool size = 32
"""


def what_is_missing() -> str:
    """Return why the server cannot be started here, or an empty string."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no S3 server: {', '.join(missing)} not installed"
    return "" if os.geteuid() == 0 else "no S3 server: it needs root"


class S3Server:
    """The running server; ``stop`` ends its processes and removes its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}
        mon_port, port = _free_ports(2)
        self.endpoint = f"http://127.0.0.1:{port}"
        self.options = {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint}
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd"):
            (folder / name).mkdir()
        (folder / "keyring").touch()
        (folder / "ceph.conf").write_text(
            _CONFIGURATION.format(fsid=fsid, folder=folder, host=socket.gethostname(), mon_port=mon_port, port=port)
        )
        try:
            self._start(fsid, osd, mon_port)
        except BaseException:
            self.stop()
            raise

    def _start(self, fsid: str, osd: str, mon_port: int) -> None:
        monmap, keyring = self.folder / "monmap", self.folder / "keyring"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", str(monmap))
        self._run(
            "ceph-authtool", "--create-keyring", str(keyring), "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"
        )
        everything = [word for part in ("mon", "osd", "mds", "mgr") for word in ("--cap", part, "allow *")]
        self._run("ceph-authtool", str(keyring), "--gen-key", "-n", "client.admin", *everything)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(monmap), "--keyring", str(keyring))
        self._run("ceph-mon", "-i", "a")
        self._run("ceph", "--connect-timeout", "30", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph-osd", "-i", "0", attempts=5)
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", f"host={socket.gethostname()}")
        self._run("radosgw", "-n", "client.rgw")
        deadline = time.monotonic() + _START_DEADLINE_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"radosgw did not answer at {self.endpoint} in {_START_DEADLINE_S:.0f} s")
            time.sleep(0.2)
        keys = ("--access-key", KEY, "--secret-key", SECRET)
        self._run("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test", *keys)

    def _run(self, *command: str, attempts: int = 1) -> None:
        """Run a program to its end. An OSD that talks to its monitor too early fails, and is started again."""
        for attempt in range(attempts):
            result = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, timeout=_START_DEADLINE_S, check=False
            )
            if result.returncode == 0:
                return
            time.sleep(attempt + 1)
        raise RuntimeError(f"{command[0]} failed: {result.stderr[-2000:]}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint, timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def stop(self) -> None:
        """End the processes that this server started, by their own pid files."""
        for file in self.folder.glob("*.pid"):
            with suppress(ValueError, ProcessLookupError):
                pid = int(file.read_text())
                os.kill(pid, signal.SIGKILL)
                _wait_for_end(pid)
        shutil.rmtree(self.folder, ignore_errors=True)


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
