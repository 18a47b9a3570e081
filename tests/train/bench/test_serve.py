"""The benchmark of a server: what a talker hears, and which number of talkers is the largest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.app import Served, start
from slm.errors import TresseError
from tests.fake_bundle import FakeBundle, buzz
from train.bench import serve
from train.bench.latency import LEAD, Playback
from train.bench.serve import Heard, Talker, Trial, bench_serve, largest, session_megabytes, table, talk

pieces = st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 2)), min_size=1, max_size=30)
"""Of each piece, s since the one before, and how many s it is long."""


@given(pieces, st.floats(0, 1000))
def test_what_is_heard_lasts_as_long_as_the_sound_and_the_gaps(pieces: list[tuple[float, float]], began: float) -> None:
    playback, now = Playback(), began
    for waited, seconds in pieces:
        now += waited
        playback.add(now, seconds)
    first = began + pieces[0][0]
    assert playback.ends == pytest.approx(first + LEAD + sum(seconds for _, seconds in pieces) + playback.silent)
    assert (playback.gaps == 0) == (playback.silent == 0)
    together = Playback()
    for _, seconds in pieces:
        together.add(now, seconds)
    assert together.gaps == 0


@given(st.integers(0, 70), st.integers(1, 64))
def test_the_largest_number_is_that_before_the_first_that_fails(limit: int, most: int) -> None:
    tried: list[int] = []

    def passes(count: int) -> bool:
        tried.append(count)
        return count <= limit

    assert largest(passes, most) == min(limit, most)
    assert len(tried) == len(set(tried)) <= 2 * most.bit_length()
    assert all(1 <= count <= most for count in tried)


@given(st.floats(1e6, 1e9), st.floats(0, 1e8), st.permutations([1, 2, 4, 8]))
def test_a_session_takes_what_each_adds(server: float, session: float, order: list[int]) -> None:
    """Trials with fewer talkers than one before say nothing: the server may have kept its memory."""
    most, trials = 0, {}
    for count in order:
        most = max(most, count)
        trials[count] = Trial([], round(server + most * session))
    grown = session_megabytes(trials)
    if order[0] == 8:
        assert grown is None
    else:
        assert grown == pytest.approx(session / 1e6, abs=0.01)


@pytest.mark.parametrize(
    "talker",
    [Talker(), Talker([Heard(0.1, 1, 0.2, False)]), Talker([Heard(0.1, 0, 0.0, False)], ["nobody listens"])],
    ids=["no reply", "a gap", "a problem"],
)
def test_one_talker_is_enough_to_fail(talker: Talker) -> None:
    good = Talker([Heard(0.1, 0, 0.0, True)])
    assert Trial([good, good], None).passed
    assert not Trial([good, talker], None).passed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeBundle, Served, str]]:
    bundle = FakeBundle(tmp_path_factory.mktemp("bundle") / "bundle")
    page, url = start(bundle, "127.0.0.1", 0, replies=1)  # type: ignore[arg-type]
    yield bundle, page, url
    page.close()


def say(url: str) -> Talker:
    return asyncio.run(talk(url.replace("http", "ws", 1) + "v1/realtime", [buzz(150.0, 0.4, 16000)], 0.0, 3))


def test_a_talker_hears_gaps_where_the_server_is_too_slow(server: tuple[FakeBundle, Served, str]) -> None:
    bundle, _, url = server
    bundle.reply_seconds, bundle.real_time_factor = 0.8, 2.0
    (slow,) = say(url).replies
    assert slow.gaps > 0
    assert slow.silent == pytest.approx(0.8, abs=0.4)
    bundle.real_time_factor = 0.0
    (quick,) = say(url).replies
    assert not quick.waited
    assert quick.first > 0


def test_two_at_once_wait_in_line_where_one_reply_is_made_at_a_time(server: tuple[FakeBundle, Served, str]) -> None:
    bundle, _, url = server
    bundle.reply_seconds, bundle.real_time_factor = 1.0, 0.8
    address = url.replace("http", "ws", 1) + "v1/realtime"

    async def both() -> list[Talker]:
        return list(await asyncio.gather(*(talk(address, [buzz(150.0, 0.4, 16000)], 0.0, seed) for seed in range(2))))

    talkers = asyncio.run(both())
    assert [reply.waited for talker in talkers for reply in talker.replies].count(True) == 1


def test_a_prompt_without_a_reply_is_a_problem(server: tuple[FakeBundle, Served, str]) -> None:
    bundle, _, url = server
    bundle.reply_seconds = 0.0
    assert say(url).problems
    bundle.reply_seconds = 0.5
    assert say("http://127.0.0.1:1/").problems
    with pytest.raises(TresseError, match="gives no reply"):
        bench_serve("http://127.0.0.1:1/", ["en"], lambda: None, 1, 1.0)


def test_what_is_printed_is_what_happened(
    server: tuple[FakeBundle, Served, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _, url = server
    bundle.reply_seconds, bundle.real_time_factor = 0.5, 0.01
    prompts = [(buzz(150.0, 0.4, 16000), 16000, "en", 0)]
    monkeypatch.setattr(serve, "spoken_prompts", lambda *_: iter(prompts))
    sizes = iter(range(100_000_000, 10**9, 1_000_000))
    result = bench_serve(url, ["en"], lambda: next(sizes), most=2, seconds=1.0)
    assert json.loads(json.dumps(result)) == result
    assert [row["talkers"] for row in result["trials"]] == [1, 2]
    for row in result["trials"]:
        assert row["replies"] >= row["talkers"]
        assert row["problems"] == 0
        least, median, most = row["by_talker"]["first_audio_ms"].values()
        assert 0 < least <= median <= most
        assert row["passed"] == (row["gaps"] == 0)
    assert result["session_mb"] > 0
    shown = table(result)
    assert f"without a gap: {result['largest']}" in shown
    assert len(shown.splitlines()) >= 1 + len(result["trials"])
