# SPDX-License-Identifier: GPL-2.0-or-later
#
# `make run` tunes this host, `make test` tries everything. Both install what they lack, and say so.

PYTHON  ?= python3
PREFIX  ?= /usr/local
DESTDIR ?=

SHELL         := /bin/bash
.SHELLFLAGS   := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS     += --no-builtin-rules

VENV          := .venv
KSM           := /sys/kernel/mm/ksm
DEBIAN_SCRIPT := build/debian-ksmtuned/usr/sbin/ksmtuned
SOURCES       := $(shell find ksmtuned -name '*.py' -o -name py.typed)

# Where `make install` puts things.
bindir  = $(PREFIX)/bin
libdir  = $(PREFIX)/lib/ksmtuned
unitdir = $(PREFIX)/lib/systemd/system
confdir = /etc

.PHONY: help run test check bench contest install uninstall clean FORCE

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r goal what; do
	    printf '  make %-10s %s\n' "$$goal" "$$what"
	done
	echo
	echo '  PYTHON=python3      which Python, 3.11 or later'
	echo '  PREFIX=/usr/local   where install puts the program'
	echo '  DESTDIR=            a folder to install into, for packagers'
	echo '  PYTEST_ARGS=        passed to pytest: make test PYTEST_ARGS="-k classic -x"'
	echo '  CONTEST_ARGS=       passed to the contest: make contest CONTEST_ARGS="--scenario late"'

run: $(VENV)/installed ## tune this host once; without root, say what would be done
	@$(WORDS)
	ksmtuned=$$PWD/$(VENV)/bin/ksmtuned
	if [ "$$(id -u)" -ne 0 ]; then
	    say 'You are not root: a dry run, nothing is written. `sudo make run` tunes.'
	    exec "$$ksmtuned" --once --dry-run
	elif [ -d $(KSM) ] && [ ! -w $(KSM)/run ]; then
	    say '$(KSM) cannot be written here (a container?): a dry run, nothing is written.'
	    exec "$$ksmtuned" --once --dry-run
	fi
	say 'Reading this host, deciding once, writing once'
	exec "$$ksmtuned" --once

test: check $(DEBIAN_SCRIPT) ## all checks and all tests
	@$(WORDS)
	say 'Running the tests'
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/installed-dev ## format, lint, strict types
	@$(WORDS)
	say 'Format, lint, types'
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy --strict
	if command -v shellcheck >/dev/null; then
	    shellcheck .ci/run
	else
	    say 'No shellcheck here: .ci/run was not checked'
	fi

bench: $(VENV)/installed-dev ## what the daemon itself costs: CPU a tick, memory, forks
	@$(VENV)/bin/python tests/bench.py

contest: $(VENV)/installed-dev $(DEBIAN_SCRIPT) ## race other KSM controllers on this kernel (root, 13 minutes)
	@$(VENV)/bin/python -m benchmarks.contest $(CONTEST_ARGS)

# --- What this machine lacks ----------------------------------------------------------------

define WORDS
say() { printf '\n==> %s\n' "$$*"; }
die() { printf 'make: %s\n' "$$*" >&2; exit 1; }
endef

# require PYTHON: it is new enough, and all that it takes to build systemd-python with it is here.
# Asks for the thing, not for the package: a Python from elsewhere needs none of Debian's.
define REQUIRE
$(WORDS)
find_missing() {
    missing=()
    local name=python3 origin=
    if command -v "$$1" >/dev/null; then
        "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            die "$$1 is $$("$$1" -V 2>&1); ksmtuned needs 3.11 or later: make PYTHON=/path/to/python3.11"
        origin=$$("$$1" -c 'import sys; print(sys.base_prefix)')
        if [ "$$origin" = /usr ] && [ "$$(readlink -f "$$(command -v "$$1")")" != "$$(readlink -f /usr/bin/python3)" ]; then
            name=python$$("$$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        fi
        "$$1" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$$name-venv")
        "$$1" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
            missing+=("$$name-dev")
        if [ "$${#missing[@]}" -gt 0 ] && [ "$$origin" != /usr ]; then
            die "$$1 (in $$origin) lacks its venv module or its headers; take another: make PYTHON=/usr/bin/python3"
        fi
    elif [ "$$1" = python3 ] || [ "$$1" = /usr/bin/python3 ]; then
        missing+=(python3 python3-venv python3-dev)
    else
        die "$$1: no such program; PYTHON names a Python of 3.11 or later"
    fi
    echo '#include <stdio.h>' | gcc -fsyntax-only -x c - 2>/dev/null || missing+=(gcc libc6-dev)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    pkg-config --exists libsystemd 2>/dev/null || missing+=(libsystemd-dev)
}
require() {
    find_missing "$$1"
    [ "$${#missing[@]}" -gt 0 ] || return 0
    say "Missing packages: $${missing[*]}"
    command -v apt-get >/dev/null ||
        die "there is no apt-get here; install what these Debian packages hold: $${missing[*]}"
    [ "$$(id -u)" -eq 0 ] ||
        die "you are not root; run this, then make again:  sudo apt-get install $${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update || say 'apt-get update complained; trying with what it has'
    apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$${missing[@]}"
    find_missing "$$1"
    [ "$${#missing[@]}" -eq 0 ] || die "still missing after apt-get: $${missing[*]}"
}
endef

# --- The virtual environment, in step with pyproject.toml, the Python and this folder -----------

IDENTITY = "$(PYTHON)" -c 'import os, sys; print(os.getcwd(), sys.base_prefix, sys.version)'

# Changes only if one of them does.
build/python: FORCE
	@$(WORDS)
	mkdir -p build
	now=$$($(IDENTITY) 2>/dev/null || echo none)
	if [ "$$(cat $@ 2>/dev/null)" != "$$now" ]; then
	    { echo "$$now" >$@; } 2>/dev/null ||
	        die "build/ belongs to another user, and its Python differs; run make as that user, or sudo make clean"
	fi

# $(1): what to install.
define INSTALL
@$(REQUIRE)
require "$(PYTHON)"
if [ "$$($(IDENTITY))" != "$$(cat $(VENV)/python 2>/dev/null)" ]; then
    say "Virtual environment $(VENV), $$("$(PYTHON)" -V)"
    "$(PYTHON)" -m venv --clear $(VENV)
fi
say 'Installing $(1) and what it needs (half a minute when the cache is empty)'
$(VENV)/bin/python -m pip install --disable-pip-version-check --no-input --use-pep517 -e '$(1)'
$(IDENTITY) | tee build/python >$(VENV)/python
endef

$(VENV)/installed: pyproject.toml build/python
	$(call INSTALL,.)
	touch $@

$(VENV)/installed-dev: pyproject.toml build/python
	$(call INSTALL,.[dev])
	touch $(VENV)/installed $@

# --- Debian's own ksmtuned, for the differential test ---------------------------------------------

# Not having it is no error: the test skips and says why. Under CI it is one.
$(DEBIAN_SCRIPT):
	@$(WORDS)
	say "Fetching Debian's ksmtuned, to compare with"
	folder=build/debian-ksmtuned
	fetch() {
	    command -v apt-get >/dev/null || { echo 'no apt-get here'; return 1; }
	    if ! apt-cache show ksmtuned >/dev/null 2>&1 && [ "$$(id -u)" -eq 0 ]; then
	        apt-get update || return 1
	    fi
	    rm -rf "$$folder" && mkdir -p "$$folder" || return 1
	    (cd "$$folder" && apt-get download -o APT::Sandbox::User=root ksmtuned) || return 1
	    dpkg -x "$$folder"/ksmtuned_*.deb "$$folder" && [ -e $@ ]
	}
	if ! fetch; then
	    [ "$${CI:-}" != true ] || die "could not get Debian's ksmtuned, and CI=true: that is an error"
	    say "Could not get it: the differential test will be skipped"
	fi

# --- Installing ---------------------------------------------------------------------------------

# The unit's ProtectHome= and PrivateTmp= hide a Python that lives in a home or in /tmp.
define PICK_PYTHON
python=$(PYTHON)
top=$$("$(PYTHON)" -c 'import os, sys; print(os.path.realpath(sys.base_prefix).split("/")[1])' 2>/dev/null)
case "$$top" in
root|home|tmp|var|run)
    if /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=/usr/bin/python3
        say "$(PYTHON) lives where the service may not look: using $$python"
    elif [ -n '$(DESTDIR)' ]; then
        say "Warning: $(PYTHON) lives where the service may not look (ProtectHome=, PrivateTmp=)"
    else
        die "$(PYTHON) lives where the service may not look (ProtectHome=, PrivateTmp=); install Debian's python3"
    fi ;;
esac
endef

# What will be copied: the program and its dependencies for that Python, without pip, without
# scripts, and without the files in which pip notes where it built.
build/stage/done: pyproject.toml LICENSE $(SOURCES) build/python
	@$(REQUIRE)
	$(PICK_PYTHON)
	require "$$python"
	say "Building for $$("$$python" -V) (half a minute when the cache is empty)"
	rm -rf build/stage build/lib build/bdist.*
	"$$python" -m venv build/stage/pip
	build/stage/pip/bin/python -m pip install --disable-pip-version-check --no-input --use-pep517 --no-compile \
	    --target build/stage/site-packages .
	rm -rf build/stage/site-packages/bin build/stage/site-packages/*.dist-info/{RECORD,REQUESTED,direct_url.json}
	strip --strip-unneeded build/stage/site-packages/systemd/*.so
	"$$python" -c 'import os, sys; print(os.path.realpath(sys._base_executable))' >build/stage/python
	"$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' >build/stage/version
	rm -rf build/stage/pip
	touch $@

install: build/stage/done ## install the program, the unit and /etc/ksmtuned.toml
	@$(WORDS)
	case '$(PREFIX)' in /*) ;; *) die 'PREFIX must be an absolute path' ;; esac
	umask 022
	lib='$(DESTDIR)$(libdir)' conf='$(DESTDIR)$(confdir)/ksmtuned.toml'
	python=$$(<build/stage/python) version=$$(<build/stage/version)
	say "Installing ksmtuned into $(DESTDIR)$(PREFIX)"
	
	# A virtual environment by hand: no pip, no activate scripts, no path of this machine's.
	# It is built beside the old one, which a running daemon may still be reading from.
	rm -rf "$$lib.new"
	install -d "$$lib.new/bin" "$$lib.new/lib/python$$version"
	ln -s "$$python" "$$lib.new/bin/python"
	printf 'home = %s\ninclude-system-site-packages = false\nversion = %s\n' \
	    "$${python%/*}" "$$version" >"$$lib.new/pyvenv.cfg"
	cp -R build/stage/site-packages "$$lib.new/lib/python$$version/"
	chmod -R u=rwX,go=rX "$$lib.new"
	"$$python" -I -m compileall -q --invalidation-mode unchecked-hash \
	    -s "$$lib.new" -p '$(libdir)' "$$lib.new/lib"
	
	# The configuration as shipped is kept, to tell an edited one from an old one.
	install -m 644 etc/ksmtuned.toml "$$lib.new/ksmtuned.toml"
	install -d "$$conf.d"
	if [ ! -e "$$conf" ] || cmp -s "$$conf" "$$lib/ksmtuned.toml"; then
	    install -m 644 etc/ksmtuned.toml "$$conf"
	elif ! cmp -s "$$conf" etc/ksmtuned.toml; then
	    install -m 644 etc/ksmtuned.toml "$$conf.new"
	    say "Kept your $$conf; the new one is beside it: $$conf.new"
	fi
	rm -rf "$$lib.old"
	[ ! -e "$$lib" ] || mv "$$lib" "$$lib.old"
	mv "$$lib.new" "$$lib"
	rm -rf "$$lib.old"
	
	# -I: root's code comes from this environment alone, whatever PYTHON* variables say.
	install -d '$(DESTDIR)$(bindir)' '$(DESTDIR)$(unitdir)'
	printf '%s\n' '#!$(libdir)/bin/python -I' 'import sys' '' \
	    'from ksmtuned.cli import main' '' 'sys.exit(main())' >'$(DESTDIR)$(bindir)/ksmtuned'
	chmod 755 '$(DESTDIR)$(bindir)/ksmtuned'
	sed 's|=/usr/local/bin/ksmtuned|=$(bindir)/ksmtuned|' systemd/ksmtuned.service \
	    >'$(DESTDIR)$(unitdir)/ksmtuned.service'
	chmod 644 '$(DESTDIR)$(unitdir)/ksmtuned.service'
	if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then
	    systemctl daemon-reload
	    say 'Start it now and at every boot:  systemctl enable --now ksmtuned'
	    if systemctl -q is-active ksmtuned; then say 'The old version runs until:  systemctl restart ksmtuned'; fi
	fi

uninstall: ## stop the service, give the kernel its values back, remove all but edited configuration
	@$(WORDS)
	lib='$(DESTDIR)$(libdir)' conf='$(DESTDIR)$(confdir)/ksmtuned.toml'
	if [ -z '$(DESTDIR)' ]; then
	    if [ -d /run/systemd/system ] &&
	       [ "$$(systemctl show -P FragmentPath ksmtuned)" = '$(unitdir)/ksmtuned.service' ]; then
	        say 'Stopping the service'
	        systemctl disable --now ksmtuned
	    fi
	    if [ -e /run/ksmtuned/original.json ] && [ -x '$(bindir)/ksmtuned' ]; then
	        '$(bindir)/ksmtuned' restore || die 'nothing is removed: the kernel did not get its values back'
	    fi
	    rm -rf /run/ksmtuned
	fi
	if [ -e "$$conf" ] && [ -e "$$lib/ksmtuned.toml" ] && cmp -s "$$conf" "$$lib/ksmtuned.toml"; then rm -f "$$conf"; fi
	rm -f "$$conf.new" '$(DESTDIR)$(bindir)/ksmtuned' '$(DESTDIR)$(unitdir)/ksmtuned.service'
	rm -rf "$$lib" "$$lib.new" "$$lib.old"
	rmdir --ignore-fail-on-non-empty "$$conf.d" '$(DESTDIR)$(unitdir)' '$(DESTDIR)$(PREFIX)/lib/systemd' 2>/dev/null || true
	for kept in "$$conf" "$$conf.d"; do
	    if [ -e "$$kept" ]; then say "Kept, because you edited it: $$kept"; fi
	done
	if [ -z '$(DESTDIR)' ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

clean: ## remove what make made here
	@rm -rf build dist *.egg-info $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
