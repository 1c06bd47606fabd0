"""A SQLite queue on a file system that several machines share is refused, unless somebody takes the risk."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

import forked
import pytest
from processes import bench

from batchq.database.sqlite import network
from batchq.database.sqlite.network import network_file_system, shared_kind
from batchq.errors import ConfigurationError
from batchq.store import open_store

pytestmark = pytest.mark.anyio

LAPTOP = """\
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
/dev/mapper/vg-root / ext4 rw,relatime,errors=remount-ro 0 0
tmpfs /tmp tmpfs rw,nosuid,nodev,size=8101872k 0 0
/dev/nvme0n1p1 /boot/efi vfat rw,relatime 0 0
/dev/sdb1 /media/disk fuseblk rw,nosuid,nodev,user_id=0 0 0
me@host:/srv /home/me/remote fuse.sshfs rw,nosuid,nodev,user_id=1000 0 0
//nas/share /mnt/my\\040share cifs rw,relatime,vers=3.1.1 0 0
portal /run/user/1000/doc fuse.portal rw,nosuid,nodev 0 0
"""
CLUSTER = """\
/dev/sda2 / xfs rw,relatime 0 0
auto.home /home autofs rw,relatime,fd=6,pgrp=1,timeout=300 0 0
filer:/export/home/ann /home/ann nfs4 rw,relatime,vers=4.2,hard,proto=tcp 0 0
10.0.0.1@tcp:/scratch /scratch lustre rw,flock,lazystatfs 0 0
/dev/sdb1 /scratch/local ext4 rw 0 0
fs1 /gpfs gpfs rw,relatime 0 0
"""
WSL = """\
/dev/sdc / ext4 rw,relatime,discard 0 0
C:\\134 /mnt/c 9p rw,noatime,aname=drvfs;path=C:\\134;uid=1000,access=client,msize=65536 0 0
D: /mnt/d drvfs rw,noatime 0 0
"""
CONTAINER = """\
overlay / overlay rw,relatime,lowerdir=/l,upperdir=/u,workdir=/w 0 0
tmpfs /dev tmpfs rw,nosuid,size=65536k,mode=755 0 0
/run/host_mark/Users /host fakeowner rw,nosuid,nodev,relatime,fakeowner 0 0
grpcfuse /old fuse.grpcfuse rw,nosuid,nodev 0 0
share /data virtiofs rw,relatime 0 0
/dev/vda1 /volume ext4 rw,relatime 0 0
"""
SANDBOX = """\
none / 9p rw,trans=fd,rfdno=4,wfdno=4,aname=/ 0 0
none /dev/shm tmpfs rw 0 0
"""
OVERMOUNTED = CLUSTER + "/dev/sdc1 /home/ann ext4 rw 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "path", "kind"),
    [
        (LAPTOP, "/home/me/runs.db", None),
        (LAPTOP, "/home/me/remote/runs.db", "fuse.sshfs"),
        (LAPTOP, "/home/me/remoter/runs.db", None),
        (LAPTOP, "/mnt/my share/queues/runs.db", "cifs"),
        (LAPTOP, "/media/disk/runs.db", None),
        (LAPTOP, "/tmp/runs.db", None),
        (CLUSTER, "/home/ann/project/runs.db", "nfs4"),
        (CLUSTER, "/scratch/ann/runs.db", "lustre"),
        (CLUSTER, "/scratch/local/runs.db", None),
        (CLUSTER, "/gpfs/runs.db", "gpfs"),
        (OVERMOUNTED, "/home/ann/runs.db", None),
        (WSL, "/home/me/runs.db", None),
        (WSL, "/mnt/c/Users/me/runs.db", "9p"),
        (WSL, "/mnt/d/runs.db", "drvfs"),
        (CONTAINER, "/host/runs.db", "fakeowner"),
        (CONTAINER, "/old/runs.db", "fuse.grpcfuse"),
        (CONTAINER, "/data/runs.db", "virtiofs"),
        (CONTAINER, "/volume/runs.db", None),
        (CONTAINER, "/runs.db", None),
        (SANDBOX, "/home/user/runs.db", None),
        ("", "/runs.db", None),
        ("nonsense\n\n", "/runs.db", None),
    ],
)
def test_the_file_system_of_a_path_is_told_by_the_table_of_mounts(mounts, path, kind):
    assert shared_kind(PurePosixPath(path), mounts) == kind


def test_a_share_of_windows_is_one_wherever_there_is_no_such_table(monkeypatch):
    monkeypatch.setattr(network, "_MOUNTS", Path("/nowhere/mounts"))
    assert network_file_system(Path("\\\\server\\share\\runs.db")) == "network share"
    assert network_file_system(Path("/home/me/runs.db")) is None


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A directory that this process takes for a network file system."""
    table, directory = tmp_path / "mounts", tmp_path / "my share"
    directory.mkdir()
    escaped = str(directory.resolve()).replace(" ", "\\040")
    table.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/export {escaped} nfs4 rw 0 0\n")
    monkeypatch.setattr(network, "_MOUNTS", table)
    return directory


@pytest.mark.parametrize("create", [False, True])
async def test_a_queue_there_is_refused_before_anything_is_written(shared, monkeypatch, create):
    monkeypatch.delenv("BATCHQ_ALLOW_NETWORK_FS", raising=False)
    with pytest.raises(
        ConfigurationError,
        match=r"runs\.db is on a file system of the kind nfs4.*--allow-network-fs .* BATCHQ_ALLOW_NETWORK_FS=1",
    ):
        await open_store(str(shared / "runs.db"), create=create)
    assert list(shared.iterdir()) == []


async def test_a_link_into_it_leads_there(shared, tmp_path):
    (tmp_path / "link.db").symlink_to(shared / "runs.db")
    with pytest.raises(ConfigurationError, match="nfs4"):
        await open_store(str(tmp_path / "link.db"), create=True)


async def test_whoever_takes_the_risk_may_use_it(shared, monkeypatch):
    monkeypatch.setenv("BATCHQ_ALLOW_NETWORK_FS", "1")
    async with await open_store(str(shared / "runs.db"), create=True) as store:
        assert await store.batches() == []


# Starts batchq where the table of mounts is another one.
ELSEWHERE = """
import pathlib, sys
from batchq.database.sqlite import network
network._MOUNTS = pathlib.Path(sys.argv.pop(1))
from batchq.cli import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a table of mounts")
def test_commands_refuse_it_and_have_an_option_to_allow_it(shared, tmp_path):
    (shared / "in.jsonl").write_text('"a prompt"\n')
    with bench(shared) as place:

        def run(*arguments: str, **environment: str):
            command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "mounts"), *arguments]
            return forked.run(command, cwd=shared, env=place.environment | environment, text=True, timeout=60)

        for command in (["enqueue", "in.jsonl", "--worker", "echo"], ["worker", "--until-empty"]):
            ended = run(*command)
            assert ended.returncode == 78, ended.stderr
            assert "--allow-network-fs takes the risk" in ended.stderr
        assert [file.name for file in shared.iterdir()] == ["in.jsonl"]

        assert run("enqueue", "in.jsonl", "--worker", "echo", "--allow-network-fs").returncode == 0
        assert run("worker", "--worker", "echo", "--until-empty", BATCHQ_ALLOW_NETWORK_FS="1").returncode == 0
        (shared / "batchq.toml").write_text("allow_network_fs = true\n")
        assert run("collect", "in").stdout.count('"state":"done"') == 1
