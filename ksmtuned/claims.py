"""Which controls are ours and which are somebody else's, from tick to tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ksmtuned.model import ADVISOR_ON, RUN_UNMERGE, KsmStat, Refusal, Settings

Values = Mapping[str, int | str]


class Claims:
    """What each control held when it was as we wanted it, and who changed it since.

    reassert: a control that somebody else changed is written again, not left to them.
    """

    def __init__(self, *, reassert: bool, is_unmerging: bool = False) -> None:
        self.reassert = reassert
        self._ours: dict[str, int | str] = {}
        self._foreign: dict[str, str] = {}  # and what is said of it
        self._late: dict[str, int | str] = {}  # written, and not taken when we last looked
        self._is_unmerging = is_unmerging  # somebody else set run=2

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each control that is somebody else's."""
        lines = tuple(self._foreign.values())
        if self._is_unmerging and "run" not in self._foreign:
            lines += ("run: somebody else unmerges (2); left alone",)
        return lines

    def left_alone(self) -> set[str]:
        """Controls that are not to be written. An unmerge is never broken off."""
        leave = set() if self.reassert else set(self._foreign)
        return leave | {"run"} if self._is_unmerging else leave

    def take_back(self) -> None:
        """What somebody else changed is ours again, but for an unmerge."""
        self._ours.clear()
        self._foreign.clear()

    def forgo(self, control: str) -> None:
        """It is moved past us for a while, on orders: nothing that it holds is news."""
        for known in (self._ours, self._foreign, self._late):
            known.pop(control, None)

    def notice(self, now: KsmStat, in_flight: Values) -> None:
        """Find what somebody else changed. in_flight: writes of ours that may land any moment."""
        self._is_unmerging &= now.value("run") == RUN_UNMERGE
        for control, coming in list(self._late.items()):
            if now.value(control) == coming:
                self._ours[control] = self._late.pop(control)
        self.expect(in_flight)
        for control, ours in self._ours.items():
            value = now.value(control)
            if value in (ours, None):
                if self.reassert:
                    self._foreign.pop(control, None)
                continue
            if control in in_flight:
                continue
            if control == "pages_to_scan" and now.advisor_mode == ADVISOR_ON:
                continue  # the kernel's advisor moves it: nobody's doing
            self._is_unmerging |= (control, value) == ("run", RUN_UNMERGE)
            if control not in self._foreign or self.reassert:
                self._foreign[control] = self._line(control, ours, value)

    def expect(self, in_flight: Values) -> None:
        """These writes of ours will land, some time."""
        self._late.update(in_flight)

    def remember(self, now: KsmStat, wanted: Settings, refused: Sequence[Refusal]) -> None:
        """After the writes: what was not refused is as we want it."""
        failed = {refusal.write.control for refusal in refused}
        for control, value in wanted.wanted().items():
            if now.value(control) is not None and control not in self.left_alone() | failed:
                self._ours[control] = value
        if wanted.advisor_mode == ADVISOR_ON:
            self._ours.pop("pages_to_scan", None)  # the kernel's from now on

    def _line(self, control: str, ours: int | str, value: int | str | None) -> str:
        then = "written again" if self.reassert else "left alone until a reload"
        if (control, value) == ("run", RUN_UNMERGE):
            then = "an unmerge is left alone"
        return f"{control}: somebody else changed {ours} to {value}; {then}"
