"""Bringing the partitions that are led here to newer rules, once everybody who folds them can follow.

::

    control: rules are to be N ──▶ every live process supports N? ──▶ RulesActivated in each led partition, one by one
                                             │ no: told who does not
                                             └─▶ asked again with every turn

Who wishes it has asked all live processes already. It is asked here again, for the wish stays on the control topic, and
an older process may have come back since. One that comes back later still stops by itself: it folds the activation and
does not know the rules. Nothing is kept of what was written: a partition whose rules are older than wished for is
proposed to again, by whoever leads it.

Of the rules that the namespace was made with nobody has to be asked: who lacks them could not open it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.orchestrator.leadership import SILENT_MS
from penstock.orchestrator.outputs import Now, Outputs
from penstock.orchestrator.partition import PartitionMachine
from penstock.schemas.messages import Beat, Serving

LISTEN_MS = 2 * SILENT_MS
"""A projection that was not heard for so long does not count; nor does an orchestrator know all before that."""

AGAIN_MS = 5_000
TELL_EVERY_MS = 60_000


class RulesUpgrade:
    """Of one orchestrator.

    Args:
        supported: the highest version of the rules that this program has.
        now_ms: monotonic time at which it begins to listen.
        made_with: the version that the namespace was made with.
    """

    def __init__(self, supported: int, now_ms: int, made_with: int = 1) -> None:
        self.supported = supported
        self.made_with = made_with
        self.wanted = made_with
        """The version that the control topic asks for."""
        self._servings: dict[str, tuple[Serving, int]] = {}
        self._since_ms = now_ms
        self._written: dict[int, tuple[int, int]] = {}
        """By partition: the version last proposed, and when."""
        self._told_ms = now_ms - TELL_EVERY_MS

    def want(self, version: int) -> None:
        """The control topic asks for these rules; an older wish is met by a newer one."""
        self.wanted = max(self.wanted, version)

    def hear(self, serving: Serving, now_ms: int) -> None:
        """A projection tells that it serves, or that it leaves."""
        if serving.leaving:
            self._servings.pop(serving.incarnation, None)
        else:
            self._servings[serving.incarnation] = (serving, now_ms)

    def unheard(self, now_ms: int) -> None:
        """Nothing was listened to for a while: who lives has to be heard anew."""
        self._since_ms = now_ms

    def turn(
        self, leading: Sequence[PartitionMachine], peers: Iterable[Beat], now: Now, out: Outputs
    ) -> None:
        """Propose the next version in each led partition that lacks it, if everybody can follow."""
        behind = [machine for machine in leading if machine.store.state.rules < self.wanted]
        if not behind:
            return
        peers = list(peers)
        for machine in behind:
            version = machine.store.state.rules + 1
            if version > self.made_with:
                if now.mono_ms - self._since_ms < LISTEN_MS:
                    return
                lacking = self._lacking(version, peers, now.mono_ms)
                if lacking:
                    self._tell(version, lacking, now, out)
                    return
            proposed, written_ms = self._written.get(machine.number, (0, 0))
            if proposed != version or now.mono_ms - written_ms >= AGAIN_MS:
                self._written[machine.number] = version, now.mono_ms
                machine.activate_rules(version, now, out)

    def _lacking(self, version: int, peers: Iterable[Beat], now_ms: int) -> list[str]:
        """Names of the live processes that cannot follow these rules."""
        lacking = [f"orchestrator {beat.orchestrator}" for beat in peers if beat.rules < version]
        for incarnation, (serving, heard_ms) in list(self._servings.items()):
            if now_ms - heard_ms > LISTEN_MS:
                del self._servings[incarnation]
            elif serving.rules < version:
                lacking.append(f"projection {serving.projection}")
        if self.supported < version:
            lacking.append("this orchestrator")
        return lacking

    def _tell(self, version: int, lacking: list[str], now: Now, out: Outputs) -> None:
        if now.mono_ms - self._told_ms >= TELL_EVERY_MS:
            self._told_ms = now.mono_ms
            out.notices.append(
                f"rules {version} are wanted, and not supported by {', '.join(sorted(lacking))}"
            )
