from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypermux.core.pacing import Pacer
from hypermux.model.accounts import Cap, Limits


def pacer(rate: float | None = 10.0, burst: int = 3, **accounts: float) -> Pacer:
    limits = Limits(
        whole=Cap(connect_rate=rate),
        connect_burst=burst,
        per_account=Cap(connect_rate=4.0),
        per_endpoint=Cap(connect_rate=5.0),
        account_caps={name: Cap(connect_rate=value) for name, value in accounts.items()},
    )
    return Pacer(limits, 0.0)


def test_without_limits_nothing_waits() -> None:
    free = Pacer(Limits(), 0.0)
    assert [free.reserve("a", "h:1", 7.0) for _ in range(3)] == [7.0] * 3


def test_an_account_s_own_rate_replaces_the_common_one() -> None:
    own = pacer(rate=None, burst=1, slow=0.5)
    first, second = (own.reserve("slow", "h:1", 100.0) for _ in range(2))
    assert (first, second) == pytest.approx((100.0, 102.0))
    assert own.reserve("other", "i:1", 100.0) == 100.0


@given(
    st.lists(
        st.tuples(st.floats(0, 0.5), st.sampled_from("abc"), st.sampled_from("xy")), max_size=60
    )
)
def test_no_span_sees_more_than_its_rates(arrivals: list[tuple[float, str, str]]) -> None:
    burst, own = 2, pacer(burst=3)  # of three, one is kept back for the way there
    now, sent = 0.0, []
    for wait, account, address in arrivals:
        now += wait
        at = own.reserve(account, address, now)
        assert at >= now
        sent.append((at, account, address))
    for rate, pick in [
        (10.0, lambda s: True),
        *((4.0, lambda s, a=a: s[1] == a) for a in "abc"),
        *((5.0, lambda s, e=e: s[2] == e) for e in "xy"),
    ]:
        times = sorted(s[0] for s in sent if pick(s))  # type: ignore[no-untyped-call]
        for i, start in enumerate(times):
            for j in range(i, len(times)):
                assert j - i + 1 <= rate * (times[j] - start) + burst + 1e-3
