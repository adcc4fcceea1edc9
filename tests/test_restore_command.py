"""ksmtuned restore after --once: the kernel's own values, wherever they are still ours."""

from __future__ import annotations

from fakehost import FakeHost
from workplace import Workplace


def test_restore_undoes_once(place: Workplace, host: FakeHost) -> None:
    before = host.controls()
    place.call("--once")
    assert place.originals.exists()
    result = place.call("restore")
    assert result.returncode == 0, result.stderr
    assert host.controls() == before


def test_restore_undoes_two_onces_back_to_the_first_values(
    place: Workplace, host: FakeHost
) -> None:
    before = host.controls()
    place.call("--once")
    place.configure('policy = "fixed"\n[fixed]\npages_to_scan = 777\n')
    place.call("--once")
    assert host.knob("pages_to_scan") == "777"
    place.call("restore")
    assert host.controls() == before


def test_a_second_restore_does_nothing(place: Workplace, host: FakeHost) -> None:
    place.call("--once")
    place.call("restore")
    host.set_knobs(run=1, pages_to_scan=500)
    assert place.call("restore").returncode == 0
    assert (host.knob("run"), host.knob("pages_to_scan")) == ("1", "500")


def test_restore_without_anything_to_restore_is_done(place: Workplace, host: FakeHost) -> None:
    before = host.controls()
    result = place.call("restore")
    assert (result.returncode, result.stderr) == (0, "")
    assert host.controls() == before


def test_restore_does_nothing_after_a_reboot(place: Workplace, host: FakeHost) -> None:
    place.call("--once")
    boot_id = "11111111-2222-3333-4444-555555555555\n"
    host.write("proc/sys/kernel/random/boot_id", boot_id)
    assert place.call("restore").returncode == 0
    assert host.knob("pages_to_scan") == "500"


def test_a_restore_that_is_not_permitted_can_be_tried_again(
    place: Workplace, host: FakeHost
) -> None:
    before = host.controls()
    place.call("--once")
    result = place.call_read_only("restore")
    assert result.returncode == 4, result.stderr
    assert "pages_to_scan" in result.stderr
    assert host.knob("run") == "1"
    assert place.call("restore").returncode == 0
    assert host.controls() == before


def test_once_on_a_read_only_sysfs_is_not_permitted(place: Workplace) -> None:
    result = place.call_read_only("--once")
    assert result.returncode == 4, result.stderr
    assert "ead-only" in result.stderr


def test_once_after_a_reboot_keeps_the_values_of_this_boot(
    place: Workplace, host: FakeHost
) -> None:
    place.call("--once")
    boot_id = "11111111-2222-3333-4444-555555555555\n"
    host.write("proc/sys/kernel/random/boot_id", boot_id)
    host.set_knobs(run=0, pages_to_scan=222, sleep_millisecs=33)
    place.call("--once")
    place.call("restore")
    assert (host.knob("pages_to_scan"), host.knob("sleep_millisecs")) == ("222", "33")


def test_restore_leaves_a_control_that_somebody_else_changed(
    place: Workplace, host: FakeHost
) -> None:
    place.call("--once")
    host.set_knobs(pages_to_scan=999)
    place.call("restore")
    assert host.knob("pages_to_scan") == "999"
    assert (host.knob("run"), host.knob("sleep_millisecs")) == ("0", "20")


def test_a_first_run_of_2_is_restored_as_0(place: Workplace, host: FakeHost) -> None:
    host.set_knobs(run=2)
    place.call("--once")
    place.call("restore")
    assert host.knob("run") == "0"


def test_restore_survives_an_original_json_cut_short(place: Workplace) -> None:
    place.call("--once")
    place.originals.write_text(place.originals.read_text()[:20])
    result = place.call("restore")
    assert result.returncode != 70
    assert "Traceback" not in result.stderr
    assert str(place.originals) in result.stderr + result.stdout


def test_restore_tries_every_control_though_one_refuses(place: Workplace, host: FakeHost) -> None:
    place.call("--once")
    (host.ksm / "pages_to_scan").unlink()
    (host.ksm / "pages_to_scan").mkdir()
    result = place.call("restore")
    assert result.returncode != 0
    assert "pages_to_scan" in result.stderr
    assert (host.knob("run"), host.knob("sleep_millisecs")) == ("0", "20")
