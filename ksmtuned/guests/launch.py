"""How a guest was started, as its command line says: its RAM, its id, what keeps KSM out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ksmtuned.guests.options import OFF, ON, keyvals, options, parse_bytes

_QEMU = ("uuid", "m", "object", "machine", "M", "numa", "device", "mem-path")
_IMPLIED = {"m": "size", "object": "qom-type", "device": "driver", "numa": "type"}
_ENCRYPTING = ("sev-guest", "sev-snp-guest", "tdx-guest", "s390-pv-guest")
_HUGE = "huge pages (hugetlbfs)"


class Obstacle(NamedTuple):
    """What keeps a guest's memory from being merged."""

    why: str
    # Does it hold also where the kernel sees mergeable areas? A guest's video memory is one.
    is_firm: bool = True
    # Is memory offered to KSM, and cannot be merged nonetheless?
    is_pinned: bool = False


class Launch(NamedTuple):
    """What a command line says. None: nothing."""

    uuid: str | None = None
    ram_bytes: int | None = None
    obstacle: Obstacle | None = None
    is_probe: bool = False  # started to ask the VMM what it can do: no guest will ever run in it


def launch_of(vmm: str, cmdline: Sequence[str]) -> Launch:
    """Reads it as that program does. vmm: a program's name, whole or as the kernel cut it."""
    if vmm.startswith("cloud-hyperviso"):
        return _cloud_hypervisor(cmdline)
    if vmm.startswith("firecracker"):
        never = Obstacle("firecracker offers KSM no memory", is_firm=False)
        return Launch(obstacle=never)
    if vmm.startswith("crosvm"):
        return _crosvm(cmdline)
    return _qemu(cmdline)


# -- QEMU ----------------------------------------------------------------------------------------


def _qemu(cmdline: Sequence[str]) -> Launch:
    found: dict[str, list[dict[str, str]]] = {}
    for name, value in options(cmdline, _QEMU):
        key = "machine" if name == "M" else name
        found.setdefault(key, []).append(keyvals(value, _IMPLIED.get(key, key)))
    machine = {key: value for part in found.get("machine", ()) for key, value in part.items()}
    machine.setdefault("type", machine.get("machine", ""))
    objects = found.get("object", [])
    backends = {
        o.get("id", ""): o for o in objects if o.get("qom-type", "").startswith("memory-backend-")
    }
    uuids = [part.get("uuid", "") for part in found.get("uuid", ())]
    return Launch(
        uuid=uuids[-1] if uuids else None,
        ram_bytes=_qemu_ram_bytes(found, backends),
        obstacle=_qemu_obstacle(found, machine, backends),
        is_probe=machine["type"] == "none",
    )


def _qemu_ram_bytes(
    found: Mapping[str, Sequence[Mapping[str, str]]], backends: Mapping[str, Mapping[str, str]]
) -> int | None:
    """-m, and what is plugged into the slots beside it; without -m, every backend."""
    sizes = {name: parse_bytes(b.get("size", "")) or 0 for name, b in backends.items()}
    main = [parse_bytes(part.get("size", ""), bare="m") for part in found.get("m", ())]
    if not main or main[-1] is None:
        return sum(sizes.values()) or None
    dimms = (d for d in found.get("device", ()) if d.get("driver") == "pc-dimm")
    return main[-1] + sum(sizes.get(dimm.get("memdev", ""), 0) for dimm in dimms)


def _qemu_obstacle(
    found: Mapping[str, Sequence[Mapping[str, str]]],
    machine: Mapping[str, str],
    backends: Mapping[str, Mapping[str, str]],
) -> Obstacle | None:
    for device in found.get("device", ()):
        driver = device.get("driver", "")
        if driver.startswith("vfio-"):
            return _pinned(driver)
    for thing in found.get("object", ()):
        if thing.get("qom-type") in _ENCRYPTING:
            return Obstacle(f"encrypted memory ({thing['qom-type']})")
    if machine.get("mem-merge") in OFF:
        return Obstacle("started with mem-merge=off", is_firm=False)
    if any(_is_huge(part.get("mem-path", "")) for part in found.get("mem-path", ())):
        return Obstacle(_HUGE)
    numa = (node.get("memdev", "") for node in found.get("numa", ()))
    used = (machine.get("memory-backend", ""), *numa)
    main = [backends[name] for name in used if name in backends]
    obstacles = [_of_backend(backend) for backend in main]
    return obstacles[0] if obstacles and all(obstacles) else None


def _of_backend(backend: Mapping[str, str]) -> Obstacle | None:
    kind = backend.get("qom-type", "")
    if backend.get("hugetlb") in ON or _is_huge(backend.get("mem-path", "")):
        return Obstacle(_HUGE)
    is_shared = kind in ("memory-backend-memfd", "memory-backend-shm")
    if backend.get("share", "on" if is_shared else "off") in ON:
        return Obstacle(f"shared memory ({kind})")
    if backend.get("merge") in OFF:
        return Obstacle("started with merge=off")
    return None


def _is_huge(path: str) -> bool:
    return any(part.startswith(("hugepages", "hugetlbfs")) for part in path.split("/"))


def _pinned(driver: str) -> Obstacle:
    return Obstacle(f"memory pinned for a passed-through device ({driver})", is_pinned=True)


# -- others --------------------------------------------------------------------------------------


def _cloud_hypervisor(cmdline: Sequence[str]) -> Launch:
    """Source: cloud-hypervisor's docs/memory.md."""
    wanted = ("memory", "memory-zone", "device")
    found = [(name, keyvals(value, "size")) for name, value in options(cmdline, wanted)]
    zones = [part for name, part in found if name != "device"]
    sizes = [parse_bytes(zone.get("size", "")) or 0 for zone in zones]
    used = [zone for zone, size in zip(zones, sizes, strict=True) if size]
    obstacle = next(_of_zones(used), None)
    if any(name == "device" for name, _ in found):
        obstacle = _pinned("VFIO")
    return Launch(ram_bytes=sum(sizes) or None, obstacle=obstacle)


def _of_zones(zones: Sequence[Mapping[str, str]]) -> Iterator[Obstacle]:
    """What all of them have in common."""
    for key, why in (("hugepages", _HUGE), ("shared", "shared memory (shared=on)")):
        if zones and all(zone.get(key) in ON for zone in zones):
            yield Obstacle(why)
    if zones and not any(zone.get("mergeable") in ON for zone in zones):
        yield Obstacle("started without mergeable=on", is_firm=False)


def _crosvm(cmdline: Sequence[str]) -> Launch:
    sizes = [
        parse_bytes(keyvals(value, "size").get("size", ""), bare="m")
        for name, value in options(cmdline, ("m", "mem"))
    ]
    return Launch(ram_bytes=sizes[-1] if sizes else None)
