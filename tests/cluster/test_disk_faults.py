"""A hub whose own disk never answers: the session ends, and the other boards are free."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster_answers import COUNT, HOW, PROMPT, SOME_WORDS
from cluster_boards import cluster_of

pytest_plugins = ["fault_fixtures"]

# picoedge, with a disk given up after 4 s without a finished read instead of 30.
HASTY = """
import sys
from picoedge import files
files.READ_STALL_S = 4.0
from picoedge.cli.main import main
sys.exit(main())
"""


def test_the_hubs_own_disk_never_answers(smollm2_pack: Path, shim: Path, tmp_path: Path) -> None:
    faulty = {"LD_PRELOAD": shim, "FAULTY_PATH": ".safetensors"}
    over = ["-c", "256", "--cluster", "-ts", "1,1", "--memory", "100M", "--window-io", "direct"]
    with cluster_of(tmp_path, 2) as cluster:
        cluster.shelve(smollm2_pack)
        count = tmp_path / "reads"
        command = ("generate", smollm2_pack, "-p", PROMPT, "-n", str(COUNT), *HOW, *over)
        sound = cluster[1].run(*command, **faulty, FAULTY_COUNT=count)
        assert sound.wait() == 0, sound.err.text
        after = int(count.read_text()) * 2 // 3
        hasty = (sys.executable, "-c", HASTY)
        session = cluster[1].run(
            *command, program=hasty, **faulty, FAULTY_HOW="hang", FAULTY_AFTER=after
        )
        worker = cluster[2].worker()
        session.out.wait(SOME_WORDS)
        said = r"shard \S+, byte \d+: the storage has not answered for 4 s \(.*picoedge verify\)$"
        session.err.wait(rf"^error: \S+, {said}", 45)
        worker.wait(3)
        assert session.wait() == 1
        for board in cluster.boards:
            board.await_free()
        assert "going on" not in session.err.text
        assert "Traceback" not in session.err.text
        assert sound.out.text.startswith(session.out.text.rstrip("\n"))
