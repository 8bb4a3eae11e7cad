"""Real models over real boards: every logit has the same bits as on one board."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import shelf_models
from cluster_boards import ClusterOf, cluster_of, last_json
from trained_packs import trained_pack

from picoedge.cluster.load import load_over_boards
from picoedge.cluster.resilient_model import ClusterModel
from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.jobs import group_links
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.transport import listening
from picoedge.model.transformer import Transformer
from picoedge.planner.cluster_plan import ClusterOptions
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import HELD
from picoedge.text.tokenizer.load import load_tokenizer

PROMPT = " ".join(["The quick brown fox jumps over the"] * 10)  # long enough for two lanes
STEPS = 6
OPTIONS = OpenOptions(threads=1, n_ctx=128)
# Boards of the cluster that have little memory stream what they hold, if it is more than a shard.
MEMORY = ["3G", "3G", "3G", "120M", "120M"]

Run = tuple[list[int], np.ndarray]


@pytest.fixture(scope="module")
def packs(
    smollm2_pack: Path, gemma_pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Pack]:
    """Real models, and one in f32 as training begins with it."""
    trained = trained_pack(tmp_path_factory.mktemp("trained"))
    return {
        "smollm2": Pack.open(smollm2_pack), "gemma": Pack.open(gemma_pack), "trained": trained
    }  # fmt: skip


@pytest.fixture(scope="module")
def cluster(
    packs: dict[str, Pack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterOf]:
    with cluster_of(tmp_path_factory.mktemp("golden"), 5, MEMORY) as made:
        for pack in packs.values():
            made.shelve(pack.path)
        yield made


@pytest.fixture(autouse=True)
def as_hub(cluster: ClusterOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a session of b1."""
    cluster[1].lend_environ(monkeypatch)


def greedy(model: Transformer | ClusterModel, pack: Pack) -> Run:
    """STEPS greedy tokens after PROMPT, and the logits of each step."""
    ids = load_tokenizer(pack.path).encode(PROMPT)[:100]
    tokens, seen = list[int](), []
    logits = model.forward(ids, 0)
    for step in range(STEPS):
        seen.append(logits.copy())
        tokens.append(int(logits.argmax()))
        logits = model.forward(tokens[-1:], len(ids) + step)
    return tokens, np.stack(seen)


@pytest.fixture(scope="module")
def alone(packs: dict[str, Pack]) -> dict[str, Run]:
    """What one board says."""
    runs = {}
    for name, pack in packs.items():
        with closing(load_model(pack, OPTIONS)) as model:
            runs[name] = greedy(model, pack)
    return runs


@contextmanager
def model_over(
    pack: Pack,
    shares: Sequence[float],
    allreduce: str,
    *,
    split_head: bool = False,
    transport: str = "auto",
) -> Iterator[ClusterModel]:
    """The model over the boards that have a share, b1 first."""
    wanted = ClusterOptions(
        split=tuple(shares),
        allreduce=allreduce,  # type: ignore[arg-type]
        split_head=split_head,
        transport=transport,  # type: ignore[arg-type]
    )
    with closing(load_over_boards(pack, dataclasses.replace(OPTIONS, cluster=wanted))) as model:
        yield model


SPLITS = {
    "two": (1, 1),
    "two uneven": (1, 6),
    "hub has nothing": (0, 1),
    "three": (1, 1, 1),
    "three uneven": (2, 1, 4),
    "five": (1, 1, 1, 1, 1),
    "little memory": (1, 0, 0, 0, 6),
}
CASES = [
    ("smollm2", "two", "star", "zeromq"),
    ("smollm2", "two uneven", "exchange", "stream"),
    ("smollm2", "three", "star", "zeromq"),
    ("smollm2", "three uneven", "exchange", "stream"),
    ("smollm2", "five", "exchange", "zeromq"),
    ("smollm2", "little memory", "star", "stream"),
    ("gemma", "two", "exchange", "zeromq"),
    ("gemma", "hub has nothing", "star", "stream"),
    ("gemma", "three uneven", "star", "zeromq"),
    ("gemma", "five", "star", "stream"),
    ("gemma", "little memory", "exchange", "zeromq"),
    ("smollm2", "two", "star", "stream"),
    ("smollm2", "two uneven", "exchange", "zeromq"),
    ("smollm2", "five", "exchange", "stream"),
    ("gemma", "five", "star", "zeromq"),
    ("smollm2", "three", "exchange", "auto"),
    ("trained", "two uneven", "star", "zeromq"),
    ("trained", "three uneven", "exchange", "stream"),
    ("trained", "hub has nothing", "star", "stream"),
]


@pytest.mark.parametrize(
    ("name", "split", "allreduce", "transport"), CASES, ids=map(" ".join, CASES)
)
def test_boards_do_not_change_a_bit(
    packs: dict[str, Pack],
    alone: dict[str, Run],
    name: str,
    split: str,
    allreduce: str,
    transport: str,
) -> None:
    shares = SPLITS[split]
    with model_over(packs[name], shares, allreduce, transport=transport) as model:
        tokens, logits = greedy(model, packs[name])
        used = model.report()["transports"]
        assert len(used) == model.boards - 1
        assert set(used.values()) <= ({"stream", "zeromq"} if transport == "auto" else {transport})
        assert model.boards == 1 + sum(share > 0 for share in shares[1:])
        assert model.plan.chosen.allreduce == allreduce
        streamed = [share.streamed_bytes for share in model.plan.chosen.shares[1:]]
        assert any(streamed) == (split == "little memory")
    assert tokens == alone[name][0]
    np.testing.assert_array_equal(logits, alone[name][1])


@pytest.mark.parametrize("is_handed_on", [True, False], ids=["stream", "relay"])
def test_a_relay_by_the_daemon_does_not_change_a_bit(
    packs: dict[str, Pack],
    alone: dict[str, Run],
    cluster: ClusterOf,
    monkeypatch: pytest.MonkeyPatch,
    is_handed_on: bool,
) -> None:
    """Streams come to the daemon's port, or ZeroMQ's messages where that is not known there."""
    used = "stream" if is_handed_on else "relay"
    monkeypatch.setattr(listening, "MARK", listening.MARK if is_handed_on else 0)
    cluster.wait()  # b2 may have been silent on a busy machine, and another board be taken
    daemons = {parse_address(board.address) for board in cluster.boards}
    monkeypatch.setattr(
        group_links, "probe", lambda tried: dict.fromkeys(set(tried) - daemons, "closed")
    )
    with model_over(packs["smollm2"], (1, 1), "star") as model:
        assert model.report()["transports"] == {"b2": used}
        tokens, logits = greedy(model, packs["smollm2"])
        ps = cluster[1].run("ps", "--json")
        assert ps.wait() == 0
        boards = json.loads(ps.out.text)["boards"]
        assert [board["relayed"] for board in boards[:2]] == [False, True]
        assert [board["transport"] for board in boards[:2]] == ["", used]
    assert tokens == alone["smollm2"][0]
    np.testing.assert_array_equal(logits, alone["smollm2"][1])


SHARED_HEADS = [
    ("smollm2", "two", "star"),
    ("smollm2", "three uneven", "exchange"),
    ("smollm2", "five", "star"),
    ("gemma", "hub has nothing", "exchange"),
    ("gemma", "three", "star"),
    ("gemma", "little memory", "exchange"),
    ("trained", "three", "star"),
]


@pytest.mark.parametrize(
    ("name", "split", "allreduce"), SHARED_HEADS, ids=map(" ".join, SHARED_HEADS)
)
def test_a_head_over_boards_does_not_either(
    packs: dict[str, Pack], alone: dict[str, Run], name: str, split: str, allreduce: str
) -> None:
    shares, pack = SPLITS[split], packs[name]
    with model_over(pack, shares, allreduce, split_head=True) as model:
        tokens, logits = greedy(model, pack)
        runs = [share.part.head_shards for share in model.plan.chosen.shares]
        streamed = [share.streamed_bytes for share in model.plan.chosen.shares[1:]]
    assert [shard for run in runs for shard in run] == list(range(pack.n_head_shards))
    assert [bool(run) for run in runs] == [shares[0] > 0, *(True for share in shares[1:] if share)]
    assert any(streamed) == (split == "little memory")
    assert tokens == alone[name][0]
    np.testing.assert_array_equal(logits, alone[name][1])


def test_every_logit_of_a_text_is_that_of_one_board(packs: dict[str, Pack]) -> None:
    pack = packs["smollm2"]
    ids = load_tokenizer(pack.path).encode(PROMPT)

    def every(model: Transformer) -> np.ndarray:
        return np.concatenate([rows.copy() for rows in model.forward_all(ids, 0)])

    with closing(load_model(pack, OPTIONS)) as one:
        want = every(one)
    with model_over(pack, (2, 1, 1), "star", split_head=True) as model:
        got = every(model.slice)
    np.testing.assert_array_equal(got, want)


def test_a_head_apart_from_the_embedding_may_be_shared(
    cluster: ClusterOf, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tiny = Pack.open(shelf_models.packed_tiny(tmp_path_factory.mktemp("untied")))
    assert not tiny.config.tie_word_embeddings
    wanted = ClusterOptions(split=(1, 1, 1), split_head=True)
    options = dataclasses.replace(OPTIONS, cluster=wanted)
    with closing(load_model(tiny, OPTIONS)) as one:
        want = one.forward([3, 141, 59], 0).copy()
    with closing(load_over_boards(tiny, options)) as model:
        np.testing.assert_array_equal(model.forward([3, 141, 59], 0), want)
    for board in cluster.boards[1:3]:  # each has pulled its own shards, and no rows of tokens
        pulled = next(board.shelf.glob("tiny*.pico"))
        names = (pulled / HELD).read_text().splitlines()
        assert 0 < sum("head/head." in name for name in names) < tiny.n_head_shards
        assert not any("embed" in name for name in names)


def test_a_hub_of_little_memory_does_not_either(
    packs: dict[str, Pack], alone: dict[str, Run], cluster: ClusterOf
) -> None:
    arguments = ["-c", "128", "-n", str(STEPS), "--temperature", "0", "--json", "--raw", "-t", "1"]
    memory = ["--memory", "120M", "--cluster", "-ts", "4,1"]
    pack = packs["smollm2"]
    session = cluster[1].run("generate", pack.path, "-p", PROMPT, *arguments, *memory)
    assert session.wait() == 0, session.err.text
    report = last_json(session)
    assert report["boards"] == 2
    assert report["tokens"] == alone["smollm2"][0]
    assert report["window_depth"] > 0
