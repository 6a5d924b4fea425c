# shellcheck shell=bash
# What tools/quickstart, tools/test and tools/check-package have in common: packages, a Python, a virtual environment,
# a root file system. It is sourced, does nothing by itself, and each of its steps does nothing when it was done before.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
compiled=(setup.py pyproject.toml pyx tools/build_proc.py tools/flavour.py) # what a build in place depends on
missing=() # Debian packages that want() found missing
python=    # the Python that choose_python() chose
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1

say() { printf '\n==> %s\n' "$*"; }

fail() {
	printf '%s: %s\n' "$0" "$*" >&2
	exit 1
}

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# ldd fails for a static program, and for nothing else that could stand there.
has_static_busybox() { has busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }

has_c_headers() { has gcc && echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1; }

# want PACKAGE COMMAND...: the package is missing when the command fails.
want() {
	local package=$1
	shift
	"$@" || missing+=("$package")
}

# Fit is a CPython of at least 3.10 that can make virtual environments and build extensions.
is_fit() {
	"$1" - >/dev/null 2>&1 <<-'END'
		import os, sys, sysconfig, ensurepip, venv
		fit = sys.implementation.name == "cpython" and sys.version_info >= (3, 10)
		sys.exit(not (fit and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))))
	END
}

# The one that PYTHON names, else the first python3 of the PATH, else Debian's own.
choose_python() {
	local candidate
	for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
		if is_fit "$candidate"; then
			python=$(command -v "$candidate")
			return 0
		fi
	done
	[ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no CPython >= 3.10 with venv, ensurepip and its headers (Python.h)"
	return 1
}

want_python() {
	choose_python || missing+=(python3 python3-venv python3-dev)
	want gcc has gcc
	want libc6-dev has_c_headers
}

install_missing() {
	[ ${#missing[@]} -gt 0 ] || return 0
	say "Debian packages: ${missing[*]}"
	has apt-get || fail "these are missing and there is no apt-get to install them with: ${missing[*]}"
	[ "$(id -u)" -eq 0 ] || fail "these are missing; run as root: apt-get install ${missing[*]}"
	# One at a time: another of these commands may run beside this one, and apt-get itself does not wait for its turn.
	flock "$root/tools/setup.sh" apt-get update -qq </dev/null || fail "apt-get update failed: see above"
	DEBIAN_FRONTEND=noninteractive flock "$root/tools/setup.sh" \
		apt-get install -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null ||
		fail "apt-get install failed: see above"
	missing=()
	[ -n "$python" ] || choose_python || fail "Debian's python3 is older than 3.10: set PYTHON to a newer one"
}

# make_venv DIR: made anew when it was not finished, was made by another Python, or at another place.
make_venv() {
	local venv=$1 made
	made="$venv $("$python" -c 'import sys; print(sys.version, sys.executable)')"
	[ "$(cat "$venv/made" 2>/dev/null)" != "$made" ] || return 0
	say "virtual environment ${venv#"$root/"} of $("$python" --version)"
	"$python" -m venv --clear "$venv"
	echo "$made" >"$venv/made"
}

# fingerprint DIR-OR-FILE...: of all sources below, so that a build is made when one of them has changed.
fingerprint() {
	(cd "$root" && find "$@" -type f \( -name '*.py' -o -name '*.py[ix]' -o -name '*.px[di]' -o -name '*.[ch]' \
		-o -name '*.toml' -o -name '*.proto' -o -name '*.binpb' \) -print0 | sort -z | xargs -0 sha256sum | sha256sum)
}

# copy_sources DIR: all that git knows of the clone, as it is now, for a build that is not to touch the clone.
copy_sources() {
	rm -rf "$1"
	mkdir -p "$1"
	(cd "$root" && git ls-files -z | tar c --null -T -) | tar x -C "$1"
}

# once STAMP FINGERPRINT COMMAND...: runs the command unless it has succeeded with the same fingerprint before.
once() {
	local stamp=$1 print=$2
	shift 2
	[ "$(cat "$stamp" 2>/dev/null)" != "$print" ] || return 0
	"$@"
	echo "$print" >"$stamp"
}

# install_libctrd: into .venv, built in place, for whoever starts Python in the clone gets the package that lies there.
install_libctrd() {
	make_venv "$root/.venv"
	once "$root/.venv/installed" "$(fingerprint "${compiled[@]}")" pip_install_libctrd
}

pip_install_libctrd() {
	say "libctrd into .venv"
	"$root/.venv/bin/pip" install -q -e "$root"
}

# make_rootfs DIR: a root file system of busybox, every applet a hard link to the one file.
make_rootfs() {
	local rootfs=$1 new=$1.new
	[ ! -d "$rootfs" ] || return 0
	say "root file system ${rootfs#"$root/"}"
	rm -rf "$new"
	mkdir -p "$new"/{bin,dev,etc,home,proc,root,sys,tmp}
	chmod 1777 "$new/tmp"
	cp "$(command -v busybox)" "$new/bin/busybox"
	"$new/bin/busybox" --install "$new/bin"
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$new/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$new/etc/group"
	mv "$new" "$rootfs"
}

# What is installed by `make_test_venv`.
install_in_place() {
	say "libctrd in place, and what tests and checks need"
	"$venv/bin/pip" install -q 'setuptools>=77' 'Cython>=3.1' 'cffi>=1.16'
	"$venv/bin/pip" install -q --no-build-isolation -e "${root}[test,lint]"
}

# The environment of the tests, .venv-test, with the package in place, unless that is up to date. Sets venv.
make_test_venv() {
	venv=$root/.venv-test
	make_venv "$venv"
	once "$venv/built" "$(fingerprint "${compiled[@]}")" install_in_place
}
