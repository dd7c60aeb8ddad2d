"""The keys of all accounts: read when first needed, and renewed before anybody misses them.

- A key is read anew when a server has refused it, when its file was changed (looked at every few
  seconds), before it ends (`Expiration` of a credential process), and when an operator asks.
- `changed` hears of every account that has another key than before, or one at last: whoever was
  refused tries again at once, and whoever is connected moves to the new key while the old
  connection goes on.
- A key that is read for a dial is told of when a server has taken it, and one that is over by our
  clock likewise: a program that makes another one each time it is asked would else have the
  refused sources of an account send each other to the server for ever. For the same reason a key
  that takes the place of one that was about to end is no news for who was refused: that waits for
  its next probe.
- A key that is over is not used: no server would take it. One that was over when the program gave
  it is the exception, for then it is more likely our clock that is wrong: the server decides.
- Reading that fails is repeated with backoff, said once, and takes nothing away: the key that is
  there stays in use to its end.

Reading may block (a network disk, a program that hangs): in threads of its own, an account's
trouble holding up that account.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable

import trio
from attrs import define, field

from hypermux.config import credentials
from hypermux.config.settings import Source
from hypermux.core import backoff
from hypermux.core.recording import rfc3339
from hypermux.core.renewal import renew_at_ns
from hypermux.model.accounts import Credential, CredentialSource
from hypermux.model.errors import ConfigurationFault
from hypermux.upstream.filewatch import FileWatch, RunSync, in_thread

log = logging.getLogger("hypermux.keys")

# Key files may be on a network disk and credential processes may hang: they wait for each other
# here, never for the journal's thread.
_KEY_READERS = 4
# Between attempts to read what could not be read: a vault that restarts is back within seconds, and
# a program a minute burdens nobody.
_MIN_S, _MAX_S = 1.0, 60.0
# The wall clock may be stepped: how often it is compared with the end of a key.
_LOOK_S = 1.0
# A key that ends sooner is not taken to a server that may be slow to be reached.
_DIAL_NS = 10_000_000_000


def _ignore(account: str, renewed: bool) -> None:
    """Hear nothing."""


@define(eq=False)
class _Held:
    """One account's key, and what is known of the way to it. Times are of the wall, in ns."""

    account: str
    source: CredentialSource
    lock: trio.Lock = field(factory=trio.Lock)
    credential: Credential | None = field(default=None, repr=False)
    refused: Credential | None = field(default=None, repr=False)
    over_ns: int | None = None  # the credential is of no use from then on
    read_at_ns: int | None = None  # to be read again then; None: when there is a reason
    failures: int = 0
    trouble: str | None = None
    missed: bool = False  # a dial could not be made for want of it
    untold: bool = False  # it is another one than before, and `changed` has not heard of it

    def is_over(self, now_ns: int) -> bool:
        """Whether there is no key to dial with now."""
        if self.credential is None:
            return True
        return self.over_ns is not None and now_ns + _DIAL_NS >= self.over_ns


@define(eq=False)
class KeyRing:
    """Credentials by account. `changed` must not wait or raise.

    It hears the account, and whether its key was only renewed because it was about to end.
    """

    utc_ns: Callable[[], int]
    rng: random.Random
    changed: Callable[[str, bool], None] = _ignore
    run_sync: RunSync = field(factory=lambda: in_thread(_KEY_READERS))
    watch: FileWatch = field(init=False)
    _held: dict[str, _Held] = field(factory=dict)
    _due: set[str] = field(factory=set)
    _wake: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.watch = FileWatch(self._file_changed)

    def use(self, sources: Iterable[Source]) -> None:
        """Hold the keys of these sources' accounts and no others'."""
        wanted = {s.id.account: s.credential for s in sources if s.credential is not None}
        self._held = {
            account: self._keep(account, credential) for account, credential in wanted.items()
        }
        files = (source.secret_key_file for source in wanted.values())
        self.watch.watch(path for path in files if path is not None)

    def _keep(self, account: str, source: CredentialSource) -> _Held:
        held = self._held.get(account)
        if held is None or held.source != source:
            held = _Held(account, source)
        return held

    async def get(self, source: Source) -> Credential | None:
        """Return the credential of `source`'s account. Raises ConfigurationFault.

        It is the one that is configured now: `source` may be of a link that began in the moment
        of a reload. That of an account that is no more is read for this one link, and not held.
        """
        if source.credential is None:
            return None
        account = source.id.account
        held = self._held.get(account) or _Held(account, source.credential)
        # One reads for all regions of an account; a program that hangs holds up its own account.
        async with held.lock:
            if held.is_over(self.utc_ns()):
                try:
                    await self._read(held, dialing=True)
                except ConfigurationFault:
                    held.missed = True
                    raise
            return held.credential

    def refused(self, source: Source, credential: Credential | None) -> bool:
        """Forget a credential that a server refused; say whether there is another one already."""
        held = self._held.get(source.id.account)
        if held is None or credential is None:
            return False
        if held.credential is credential:
            held.credential, held.refused = None, credential
        return held.credential is not None and held.credential != credential

    def accepted(self, source: Source, credential: Credential | None) -> None:
        """A server took this one: whoever does not know it yet hears of it."""
        held = self._held.get(source.id.account)
        if held is not None and held.untold and held.credential is credential:
            self._tell(held)

    def current(self, account: str) -> Credential | None:
        """Return the key that the next dial of an account would use, None when it would be read."""
        held = self._held.get(account)
        return None if held is None else held.credential

    def trouble(self, account: str) -> str | None:
        """Return why an account's key could not be read or renewed, None when it could."""
        held = self._held.get(account)
        return None if held is None else held.trouble

    async def refresh(self) -> None:
        """Read every key anew, and return when all have been; `changed` hears of other ones."""
        async with trio.open_nursery() as nursery:
            for held in list(self._held.values()):
                nursery.start_soon(self._look, held)

    async def run(self) -> None:
        """Watch files and ends of keys until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch.run)
            while True:
                self._wake = trio.Event()
                now_ns = self.utc_ns()
                for held in list(self._held.values()):
                    if held.read_at_ns is not None and held.read_at_ns <= now_ns:
                        held.read_at_ns = None
                        # In trouble it had none, or none that is of use: then it is news for all.
                        nursery.start_soon(self._look, held, held.trouble is None)
                    elif held.account in self._due:
                        nursery.start_soon(self._look, held)
                self._due.clear()
                timed = any(held.read_at_ns is not None for held in self._held.values())
                with trio.move_on_after(_LOOK_S if timed else float("inf")):
                    await self._wake.wait()

    def _file_changed(self, path: str) -> None:
        accounts = (h.account for h in self._held.values() if h.source.secret_key_file == path)
        self._due.update(accounts)
        self._wake.set()

    async def _look(self, held: _Held, renewal: bool = False) -> None:
        """Read a key for which there may be a successor; `renewal`: for it is about to end."""
        async with held.lock:
            try:
                await self._read(held, renewal=renewal)
            except ConfigurationFault:
                pass  # told, and to be tried again
            except Exception:
                # One account's key must not end the others' watch.
                log.exception("%s: internal error while reading its key", held.account)
                self._failed(held, "an internal error of hypermux; see its log")

    async def _read(self, held: _Held, *, dialing: bool = False, renewal: bool = False) -> None:
        before = held.credential or held.refused
        try:
            found = await self._load(held.source)
        except ConfigurationFault as fault:
            self._failed(held, str(fault))
            raise
        self._take(held, found)
        held.untold |= before is not None and before != found
        if held.missed or (held.untold and not dialing and held.trouble is None):
            self._tell(held, renewed=renewal)

    def _tell(self, held: _Held, *, renewed: bool = False) -> None:
        held.missed = held.untold = False
        self.changed(held.account, renewed)

    async def _load(self, source: CredentialSource) -> Credential:
        if source.secret_key is not None or source.secret_key_env is not None:
            return credentials.load(source)
        found: Credential = await self.run_sync(credentials.load, source)
        return found

    def _take(self, held: _Held, found: Credential) -> None:
        now_ns, expires_ns = self.utc_ns(), found.expires_ns
        held.credential, held.refused = found, None
        held.over_ns = held.read_at_ns = None
        if expires_ns is not None and expires_ns <= now_ns:
            words = f"the key that its program gives ended at {rfc3339(expires_ns)} by our clock"
            if held.trouble is None:
                log.warning("%s: %s; using it anyway", held.account, words)
            held.trouble = words
            self._again(held)
            return
        if held.trouble is not None:
            log.info("%s: its key can be read again", held.account)
        held.trouble, held.failures = None, 0
        if expires_ns is not None:
            held.over_ns = expires_ns
            held.read_at_ns = renew_at_ns(expires_ns, now_ns, rng=self.rng)
            self._wake.set()

    def _failed(self, held: _Held, trouble: str) -> None:
        if held.trouble is None and held.credential is not None:
            ends = f", which ends at {rfc3339(held.over_ns)}" if held.over_ns is not None else ""
            log.warning(
                "%s: no new key: %s; trying again, and going on with the present one%s",
                *(held.account, trouble, ends),
            )
        held.trouble = trouble
        if held.source.secret_key_env is None:  # our own environment does not change
            self._again(held)

    def _again(self, held: _Held) -> None:
        """Read once more after a while."""
        wait_s = backoff.full_jitter(held.failures, min_s=_MIN_S, max_s=_MAX_S, rng=self.rng)
        held.failures += 1
        held.read_at_ns = self.utc_ns() + int(wait_s * 1e9)
        self._wake.set()
