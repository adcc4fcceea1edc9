"""Every configuration key: its name, meaning, unit, range and default, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from ksmtuned.units import parse_duration, parse_size

UINT_MAX = 2**32 - 1  # the kernel parses these files with kstrtouint
INT_MAX = 2**31 - 1  # max_page_sharing is an int (mm/ksm.c)
MOST_PATTERNS = 256  # each is compared with each new process
SIZE_MAX = 2**52  # the physical addresses that x86-64 can have


def _seconds(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError(f'write "{_echo(value, "60")} s"')
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f"write {error}") from None


def _bytes(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError('write it with its unit, like "2 MiB"')
    try:
        return parse_size(value)
    except ValueError as error:
        raise ValueError(f"write {error}") from None


def _echo(value: object, otherwise: str) -> str:
    """The bare number, if it can be what was meant."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number and 1 <= value <= 86400 else otherwise  # type: ignore[operator]


def _switch(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


def _few(value: object) -> object:
    if not isinstance(value, list):
        return value
    if len(value) > MOST_PATTERNS:
        raise ValueError("a pattern with * in it may stand for many")
    return tuple(value)


def _glob(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("write at least one character, and no control characters")
    return text


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0.1, le=86400)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=0, le=SIZE_MAX)]
Switch = Annotated[int, BeforeValidator(_switch), Field(ge=0, le=1)]
Globs = Annotated[tuple[Annotated[str, AfterValidator(_glob)], ...], BeforeValidator(_few)]


def _key(default: Any, meaning: str, span: str = "", **rest: Any) -> Any:
    """A key. Extra: kind (what it must be), unit, unset (what None means), sample (shown then)."""
    limits = {name: rest.pop(name) for name in ("ge", "le") if name in rest}
    return Field(default, description=meaning, json_schema_extra={"span": span, **rest}, **limits)


def _whole(default: int | None, meaning: str, low: int, high: int, unit: str, **rest: Any) -> Any:
    rest |= {"kind": "a whole number", "unit": unit, "ge": low, "le": high}
    return _key(default, meaning, f"{low} to {high}", **rest)


def _on_off(meaning: str, sample: int) -> Any:
    return _key(None, meaning, "0 or 1", unset="left alone", sample=sample)


class Table(BaseModel):
    """A table of keys; unknown ones are errors, and nothing is converted silently."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ClassicTable(Table):
    """The law of ksmtuned: faster while memory is short, slower while it is not."""

    npages_boost: int = _whole(
        300, "Pages added to a batch per tick while memory is short.", 0, UINT_MAX, "pages"
    )
    npages_decay: int = _whole(
        -50,
        "Pages added (so: taken away) per tick while guests are big but memory is not short.",
        -UINT_MAX,
        0,
        "pages",
    )
    npages_min: int = _whole(64, "The smallest batch.", 0, UINT_MAX, "pages")
    npages_max: int = _whole(1250, "The biggest batch; at least npages_min.", 0, UINT_MAX, "pages")
    sleep_msec: int = _whole(
        10,
        "Sleep between two batches on a host of 16 GiB; a bigger host sleeps less, a smaller one "
        "more, none less than 10 ms.",
        1,
        UINT_MAX,
        "ms",
    )
    thres_coef: int = _whole(
        20, "Memory is short when less than this part of RAM is free.", 0, 100, "percent"
    )
    thres_const: Bytes = _key(
        2 * 2**20,
        "Memory is short when less than this is free, whatever thres_coef says.",
        "0 B to 4096 TiB",
        kind="a size",
    )
    guest_memory: Literal["rss", "cgroup", "pss", "none"] = _key(
        "rss",
        "How a guest's memory is measured: resident pages (rss), anonymous memory of its cgroup "
        "(cgroup), resident with merged pages counted in part (pss: costly for big guests), or "
        "not at all (none).",
    )
    free_memory: Literal["ksmtuned", "available"] = _key(
        "ksmtuned",
        "What counts as free: MemFree + Buffers + Cached (ksmtuned) or MemAvailable (available).",
    )


class AdaptiveTable(Table):
    """Merge fast while it pays, then stop and watch."""

    max_cpu: Annotated[float, Field(ge=1, le=100)] | None = _key(
        None,
        "The most that ksmd may take of one core while it scans.",
        "1 to 100",
        kind="a number",
        unit="percent",
        unset="by profile: production 30, test 100, desktop 60",
        sample=30,
    )
    cpu_seconds_per_gib: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = _key(
        50.0,
        "Stop when one more GiB saved would cost more CPU time of ksmd than this; as memory "
        "becomes scarce it counts up to ten times.",
        "above 0, up to 1000000",
        kind="a number",
        unit="seconds",
    )


class AdvisorTable(Table):
    """The kernel's scan-time advisor sets the pace (Linux 6.8 and later)."""

    target_scan_time: int = _whole(
        200, "How long one pass over all mergeable memory should take.", 1, UINT_MAX, "seconds"
    )
    max_cpu: int = _whole(70, "The most that ksmd may take of one core.", 0, UINT_MAX, "percent")
    min_pages_to_scan: int = _whole(
        500,
        "The batch that the advisor starts with; more where one pass would take too long so.",
        0,
        UINT_MAX,
        "pages",
    )
    max_pages_to_scan: int = _whole(30000, "The biggest batch.", 0, UINT_MAX, "pages")


class FixedTable(Table):
    """Constant values."""

    pages_to_scan: int = _whole(100, "Pages per batch.", 0, UINT_MAX, "pages")
    sleep_millisecs: int = _whole(
        20, "Sleep between two batches; 0 keeps a whole core busy.", 0, UINT_MAX, "ms"
    )


class KsmTable(Table):
    """Controls that no policy moves, written at start and reload, restored on stop."""

    use_zero_pages: Switch | None = _on_off(
        "Merge empty pages with the kernel's zero page: saves memory without bookkeeping.", 1
    )
    smart_scan: Switch | None = _on_off(
        "Skip for some passes a page that did not merge (Linux 6.7 and later).", 1
    )
    merge_across_nodes: Switch | None = _on_off(
        "Merge pages of different NUMA nodes: saves more, but guests may read far memory. "
        "Changes only while nothing is merged.",
        1,
    )
    max_page_sharing: int | None = _whole(
        None,
        "How many pages may share one. Changes only while nothing is merged.",
        2,
        INT_MAX,
        "pages",
        unset="left alone",
        sample=256,
    )
    stable_node_chains_prune_millisecs: int | None = _whole(
        None,
        "Time between two clean-ups of pages that share to the limit.",
        0,
        UINT_MAX,
        "ms",
        unset="left alone",
        sample=2000,
    )


class GuestsTable(Table):
    """Which processes are guests."""

    comm: Globs = _key(
        (
            "qemu-kvm",
            "qemu-system-*",
            "qemu:*",
            "qemu",
            ".qemu-*",
            "kvm",
            "cloud-hypervisor",
            "firecracker",
            "crosvm",
        ),
        "A process is a guest if its comm (the name in /proc/PID/comm, cut off after 15 bytes) "
        "matches one of these patterns. A list here replaces the whole default.",
        f"glob patterns, {MOST_PATTERNS} at most",
        kind="a list of",
    )


class RootTable(Table):
    """The whole configuration."""

    policy: Literal["adaptive", "advisor", "classic", "fixed", "off"] = _key(
        "adaptive",
        "What decides: merge fast while it pays, then watch (adaptive), the law of ksmtuned "
        "(classic), the kernel's own advisor (advisor), constant values (fixed), or ksmd stopped "
        "(off).",
    )
    profile: Literal["production", "test", "desktop"] = _key(
        "production",
        "What this host is for; it matters to adaptive alone. Scan only while memory is short "
        "(production), whenever it pays (test), or so, but stop earlier while memory is plentiful "
        "(desktop).",
    )
    interval: Seconds | None = _key(
        None,
        "Time between two ticks, that is looks at the host.",
        "0.1 s to 1 d",
        kind="a time",
        unset='the policy\'s own, "60 s" for classic',
        sample=60.0,
    )
    on_stop: Literal["restore", "keep", "stop", "unmerge"] = _key(
        "restore",
        "What ksmtuned leaves when it stops: the values from before (restore), the last ones "
        "(keep), ksmd stopped (stop), or ksmd stopped and no page merged (unmerge: takes memory).",
    )
    on_foreign_write: Literal["respect", "reassert"] = _key(
        "respect",
        "What to do when somebody else changes a control that we wrote: leave it to them "
        "(respect) or write ours again (reassert).",
    )
    adaptive: AdaptiveTable = Field(default=AdaptiveTable())
    classic: ClassicTable = Field(default=ClassicTable())
    advisor: AdvisorTable = Field(default=AdvisorTable())
    fixed: FixedTable = Field(default=FixedTable())
    ksm: KsmTable = Field(default=KsmTable())
    guests: GuestsTable = Field(default=GuestsTable())


@dataclass(frozen=True, slots=True)
class Key:
    """One key as people are told about it."""

    table: str  # "" for the top
    name: str
    meaning: str
    kind: str  # "a whole number", "a size", "a time", "a list of" or ""
    span: str  # "0 to 100", "classic, fixed or off"
    unit: str  # "pages", "ms", "percent" or ""
    default: Any
    unset: str  # what None means
    sample: Any  # a value to show where the default is None

    @property
    def dotted(self) -> str:
        """The key as errors name it: "classic.npages_min"."""
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def allowed(self) -> str:
        """What a value must be: "a whole number, 0 to 100 percent"."""
        joint = " " if self.kind.endswith(" of") else ", "
        return joint.join(part for part in (self.kind, f"{self.span} {self.unit}".strip()) if part)


def tables() -> dict[str, type[Table]]:
    """The tables below the top, by name."""
    found = {name: field.annotation for name, field in RootTable.model_fields.items()}
    return {n: t for n, t in found.items() if isinstance(t, type) and issubclass(t, Table)}


def keys() -> Iterator[Key]:
    """Every key: the top first, then table by table, as they are written in a file."""
    below = tables()
    for name, field in RootTable.model_fields.items():
        if name not in below:
            yield _described("", name, field)
    for table, model in below.items():
        for name, field in model.model_fields.items():
            yield _described(table, name, field)


def _described(table: str, name: str, field: FieldInfo) -> Key:
    extra: dict[str, Any] = dict(field.json_schema_extra or {})  # type: ignore[arg-type]
    *most, last = map(str, get_args(field.annotation) or ("",))  # a Literal's choices
    return Key(
        table=table,
        name=name,
        meaning=field.description or "",
        kind=extra.get("kind", ""),
        span=extra["span"] or f"{', '.join(most)} or {last}",
        unit=extra.get("unit", ""),
        default=field.default,
        unset=extra.get("unset", ""),
        sample=extra.get("sample"),
    )
