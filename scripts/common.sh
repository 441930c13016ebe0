# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts here: where things are, which tools build the kernel,
# and how a stage is announced and timed.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$TOP/build
LOG=$BUILD/log
mkdir -p "$LOG"

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# stage LOG TEXT COMMAND...: say what is done, do it with its output in
# build/log/LOG.log, say how long it took; end the script if it failed.  Not to
# be used in a condition, where bash would not stop at a COMMAND's first error.
stage() {
	local log=$LOG/$1.log text=$2 start=$SECONDS status ticker
	shift 2
	echo "==> $text"
	(while sleep 30 && kill -0 $$ 2>/dev/null; do
		echo "    $((SECONDS - start)) s: $(tail -n 1 "$log" | cut -c 1-70)"
	done) &
	ticker=$!
	set +e
	(set -e; "$@") >"$log" 2>&1
	status=$?
	kill $ticker
	wait $ticker 2>/dev/null
	set -e
	if [ $status != 0 ]; then
		tail -n 20 "$log" >&2
		die "failed to $text, after $((SECONDS - start)) s; all of its output: $log"
	fi
	echo "==> $text: done in $((SECONDS - start)) s"
}

# The first rustc that has the library source, which the kernel builds for itself.
find_rustc() {
	local rustc
	for rustc in /usr/bin/rustc "$(command -v rustc)"; do
		[ -e "$("$rustc" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/core/src/lib.rs" ] || continue
		echo "$rustc"
		return
	done
	echo rustc
}

# Debian 12 has clang and lld under versioned names only.
if command -v clang-19 >/dev/null; then
	LLVM=-19
	[ -d /usr/lib/llvm-19/lib ] && export LIBCLANG_PATH=/usr/lib/llvm-19/lib
else
	LLVM=1
fi
RUSTC=$(find_rustc)
BINDGEN=$BUILD/tools/bin/bindgen
[ -x "$BINDGEN" ] || BINDGEN=bindgen

# An empty LOCALVERSION keeps the state of git out of the version, and so the
# kernel from being rebuilt for a commit.
KBUILD_VARS=(ARCH=x86_64 LLVM=$LLVM LOCALVERSION=
	RUSTC="$RUSTC" HOSTRUSTC="$RUSTC" RUSTDOC="${RUSTC%rustc}rustdoc"
	CLIPPY_DRIVER="${RUSTC%rustc}clippy-driver" BINDGEN="$BINDGEN")
